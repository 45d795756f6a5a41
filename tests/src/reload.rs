//! A proxy whose configuration is changed while it runs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::{Lab, Process, Tproxy};

/// See the module. It logs each connection when that has ended.
#[derive(Debug)]
pub struct Reloadable {
    path: PathBuf,
    tproxy: Tproxy,
}

impl Reloadable {
    /// Starts it with this configuration.
    ///
    /// # Errors
    /// As [`Lab::tproxy`].
    pub fn start(lab: &Lab, config: &str) -> Result<Self> {
        let path = PathBuf::from(lab.write(config)?);
        let file = path.to_str().context("the path of the lab is not UTF-8")?;
        let mut command = lab.tproxy_command(&["run", "-c", file])?;
        command.env("RUST_LOG", "info");
        let tproxy = Lab::tproxy_by(command)?;
        Ok(Self { path, tproxy })
    }

    /// The file of the configuration.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its process.
    #[must_use]
    pub fn process(&self) -> &Process {
        self.tproxy.process()
    }

    /// Changes the configuration, asks for a reload, and waits for a new line of the log with this text.
    ///
    /// # Errors
    /// When the line does not come; the message holds the log.
    pub fn reload(&self, config: &str, line: &str) -> Result<String> {
        fs::write(&self.path, config)?;
        self.again(line)
    }

    /// Asks for a reload, and waits for the line.
    ///
    /// # Errors
    /// As [`Reloadable::reload`].
    pub fn again(&self, line: &str) -> Result<String> {
        let seen = self.process().lines().len();
        self.process().signal(Signal::SIGHUP)?;
        let limit = Duration::from_secs(10);
        self.process().wait_for_line_after(seen, line, limit)
    }

    /// Ends it.
    ///
    /// # Errors
    /// When it does not end well.
    pub fn stop(self) -> Result<()> {
        self.tproxy.stop()
    }
}
