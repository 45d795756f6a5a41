//! sing-box, which writes and reads rule sets itself: a second opinion on lists. And a server of several protocols.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    Namespace, Process,
    process::{self, Output},
    tools,
    wait::{Transport, listening},
};

/// Far longer than it ever takes.
const LIMIT: Duration = Duration::from_secs(30);

/// The program.
#[derive(Debug)]
pub struct SingBox(std::path::PathBuf);

impl SingBox {
    /// It, from the project's own folder or from `PATH`, or `None` (and a line that says so) where it is not: `cargo
    /// xtask setup` gets it where it can. With `LAB_REQUIRE_ALL` in the environment it must be there.
    ///
    /// # Errors
    /// It is missing and must not be.
    pub fn or_skip() -> Result<Option<Self>> {
        match tools::find("sing-box") {
            Some(program) => Ok(Some(Self(program))),
            None if std::env::var_os("LAB_REQUIRE_ALL").is_some() => {
                bail!("there is no sing-box; `cargo xtask setup` gets it")
            }
            None => {
                eprintln!("SKIPPED: there is no sing-box; `cargo xtask setup` gets it");
                Ok(None)
            }
        }
    }

    /// Runs it with these arguments to its end.
    ///
    /// # Errors
    /// It fails; with what it says.
    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.0);
        command.args(["--disable-color"]).args(arguments);
        process::run(command, LIMIT)?.ok()
    }

    /// Does the rule set in this file match the name or address?
    ///
    /// # Errors
    /// It cannot read the file.
    pub fn matches(&self, file: &Path, format: &str, asked: &str) -> Result<bool> {
        let file = file.to_str().context("the path is text")?;
        let output = self.run(&["rule-set", "match", "-f", format, file, asked])?;
        Ok(output.stderr.contains("match rules."))
    }

    /// Starts it with a configuration of the caller's and waits for TCP `port`, one of those it is configured to listen at.
    /// Its files are in `dir`.
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn serve(
        &self,
        ns: &Namespace,
        dir: &Path,
        configuration: &serde_json::Value,
        port: u16,
    ) -> Result<Process> {
        let process = self.start(ns, dir, configuration, &port.to_string())?;
        listening(ns, Transport::Tcp, port)
            .with_context(|| format!("sing-box said: {}", process.lines().join("\n")))?;
        Ok(process)
    }

    /// Starts it, and leaves it to the caller to wait until it is ready. Its files are in `dir`; `name` tells those of one
    /// from those of another in this namespace.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(
        &self,
        ns: &Namespace,
        dir: &Path,
        configuration: &serde_json::Value,
        name: &str,
    ) -> Result<Process> {
        let path = dir.join(format!("sing-box-{}-{name}.json", ns.inode()));
        fs::write(&path, configuration.to_string())
            .with_context(|| format!("writing {}", path.display()))?;
        let program = self.0.to_str().context("the path is text")?;
        let mut command = ns.command(program);
        command.args(["--disable-color", "run", "-D"]).arg(dir);
        command.arg("-c").arg(path);
        Process::spawn(command)
    }
}
