//! The program under test, on the gateway.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{Lab, Namespace, Output, Process, process, usage};

/// One line of `tproxy-bpf counters --json`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Counter {
    /// The word of the reason.
    pub reason: String,
    /// What happens to such packets: `pass`, `steer` or `drop`.
    pub effect: String,
    /// How many.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The reason in one sentence.
    pub sentence: String,
}

/// Tests read the log as people do, though it goes to a pipe.
const LOG_FORMAT: (&str, &str) = ("TPROXY_BPF_LOG_FORMAT", "human");

/// The path of `tproxy-bpf`: `TPROXY_BPF` of the environment, or beside the running test or binary.
///
/// # Errors
/// When it is not there.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("TPROXY_BPF") {
        let path = PathBuf::from(path);
        if path.is_file() {
            return Ok(path);
        }
        bail!("TPROXY_BPF names {}, which is no file", path.display());
    }
    let own = std::env::current_exe().context("asking for the path of this program")?;
    // target/PROFILE/deps/TEST or target/PROFILE/BINARY.
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("tproxy-bpf"))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no tproxy-bpf beside {}; build it with `cargo build -p tproxy-userspace`, or name it in TPROXY_BPF",
                own.display()
            )
        })
}

impl Lab {
    /// A command that runs `tproxy-bpf` on the gateway.
    ///
    /// # Errors
    /// When the binary is not there.
    pub fn tproxy_command(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.gateway.command(
            binary()?
                .to_str()
                .context("the path of tproxy-bpf is not UTF-8")?,
        );
        command.args(args).env(LOG_FORMAT.0, LOG_FORMAT.1);
        Ok(command)
    }

    /// Starts `tproxy-bpf` with these arguments on the gateway and waits until it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready in 20 s; the message holds its log.
    pub fn tproxy(&self, args: &[&str]) -> Result<Tproxy> {
        Self::tproxy_by(self.tproxy_command(args)?)
    }

    /// Starts a [command](Lab::tproxy_command) that was changed, with a variable of the environment for
    /// example, and waits until it is ready.
    ///
    /// # Errors
    /// As [`Lab::tproxy`].
    pub fn tproxy_by(mut command: Command) -> Result<Tproxy> {
        command.env(LOG_FORMAT.0, LOG_FORMAT.1);
        let process = Process::spawn(command)?;
        process.wait_for_line("ready", Duration::from_secs(20))?;
        Ok(Tproxy { process })
    }

    /// `tproxy-bpf run` on the LAN link with one outbound, ready.
    ///
    /// # Errors
    /// As [`Lab::tproxy`].
    pub fn tproxy_with(&self, outbound: &str) -> Result<Tproxy> {
        self.tproxy(&["run", "--lan", self.lan(), "--outbound", outbound])
    }

    /// Runs `tproxy-bpf` on the gateway to its end, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started or takes over a minute.
    pub fn tproxy_run(&self, args: &[&str]) -> Result<Output> {
        process::run(self.tproxy_command(args)?, Duration::from_mins(1))
    }

    /// Reads the counters.
    ///
    /// # Errors
    /// When the command fails or prints something else.
    pub fn counters(&self) -> Result<Vec<Counter>> {
        self.tproxy_run(&["counters", "--json"])?.ok()?.json()
    }

    /// The packets counted under one reason.
    ///
    /// # Errors
    /// As [`Lab::counters`], and when there is no such reason.
    pub fn packets(&self, reason: &str) -> Result<u64> {
        self.counters()?
            .into_iter()
            .find(|counter| counter.reason == reason)
            .map(|counter| counter.packets)
            .with_context(|| format!("there is no counter \"{reason}\""))
    }

    /// The pins of the program under test on this gateway.
    #[must_use]
    pub fn pins(&self) -> PathBuf {
        state(crate::remains::PINS, &self.gateway)
    }

    /// Its other state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        state(crate::remains::STATE, &self.gateway)
    }
}

fn state(base: &str, gateway: &Namespace) -> PathBuf {
    Path::new(base).join(gateway.inode().to_string())
}

/// A running `tproxy-bpf`. Dropping it kills it with SIGKILL; what that leaves goes with the lab.
#[derive(Debug)]
pub struct Tproxy {
    process: Process,
}

impl From<Process> for Tproxy {
    fn from(process: Process) -> Self {
        Self { process }
    }
}

impl Tproxy {
    /// Its process and log.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// Its process, to wait for its end.
    pub const fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Sends SIGTERM and wants it to end in order.
    ///
    /// # Errors
    /// When it takes over 15 s or its exit code is not 0; the message holds its log.
    pub fn stop(mut self) -> Result<()> {
        self.process.stop(Duration::from_secs(15))
    }

    /// Kills it with SIGKILL.
    pub fn kill9(mut self) {
        self.process.kill();
    }

    /// Its open files.
    ///
    /// # Errors
    /// When it is gone.
    pub fn open_files(&self) -> Result<usize> {
        usage::open_files(self.process.pid())
    }

    /// Its resident memory, in KiB.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident_kib(&self) -> Result<u64> {
        usage::resident_kib(self.process.pid())
    }

    /// The CPU time it has used, user and system.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu_time(&self) -> Result<Duration> {
        usage::cpu_time(self.process.pid())
    }
}
