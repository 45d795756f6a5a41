//! Faults, and what comes of them: what a device sees, what leaves by the WAN link, and what is left after `detach`.
//!
//! A [`Scene`] is a lab with something to reach on each side. It [looks](Scene::look) with an expectation, and a
//! [`Row`] of the table holds what was seen.

mod look;
mod table;
mod wan;

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tproxy_userspace::control::life::{Life, life};

pub use look::{Look, Seen, Sight};
pub use table::{Row, whole};
pub use wan::{Leaves, Trickle, Wan};

use crate::{
    Builder, Family, Lab, Output, Process, Snapshot,
    gateway::binary,
    probe::at,
    process,
    servers::{TcpEcho, UdpEcho},
    traffic::connect,
    wait::{SOON, until},
};

/// The port of the TCP echo.
pub const TCP: u16 = 7;
/// The port of the UDP echo.
pub const UDP: u16 = 7000;
/// Where the gateway itself answers, as SSH would.
pub(crate) const SSH: u16 = 22;

/// What the programs do with what is new when no proxy runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It goes direct.
    Pass,
    /// It is dropped.
    Drop,
}

impl Policy {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Pass, Self::Drop];

    /// As it stands in the configuration.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
        }
    }

    /// What devices then see of new traffic.
    #[must_use]
    pub const fn seen(self) -> Seen {
        match self {
            Self::Pass => Seen::Direct,
            Self::Drop => Seen::Nothing,
        }
    }
}

/// What a test does to a process at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL.
    Kill,
    /// SIGSTOP.
    Stop,
}

impl Fault {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Kill, Self::Stop];

    /// As `TPROXY_BPF_FAULT` has it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop => "stop",
        }
    }

    /// Waits until it has happened to a process.
    ///
    /// # Errors
    /// When it does not; the message holds the log.
    pub fn wait(self, process: &mut Process) -> Result<()> {
        let came = match self {
            Self::Kill => process.wait(2 * SOON).map(drop),
            Self::Stop => until("the process to be stopped", 2 * SOON, || {
                Ok((life(process.pid()) == Life::Stopped).then_some(()))
            }),
        };
        came.with_context(|| process.lines().join("\n"))
    }
}

/// A lab with servers on every side, and connections that live from before anything is attached.
#[derive(Debug)]
pub struct Scene {
    /// The lab.
    pub lab: Lab,
    /// What the gateway was like before.
    pub before: Snapshot,
    tcp: TcpEcho,
    udp: UdpEcho,
    _ssh: TcpEcho,
    old: Vec<TcpStream>,
}

impl Scene {
    /// Makes it.
    ///
    /// # Errors
    /// When the lab or a server cannot be made.
    pub fn new(builder: Builder) -> Result<Self> {
        let lab = builder.build()?;
        let tcp = TcpEcho::start(&lab.internet, TCP)?;
        let udp = UdpEcho::start(&lab.internet, UDP..=UDP)?;
        let ssh = TcpEcho::start(&lab.gateway, SSH)?;
        // The BPF file system, if the machine has none yet, comes with the first command.
        lab.tproxy_run(&["status"])?.ok()?;
        let mut scene = Self {
            before: Snapshot::take(&lab)?,
            old: Vec::new(),
            lab,
            tcp,
            udp,
            _ssh: ssh,
        };
        scene.old = scene.streams()?;
        Ok(scene)
    }

    /// Connections of the device to the echo that work, one of each family.
    ///
    /// # Errors
    /// When one does not.
    pub fn streams(&self) -> Result<Vec<TcpStream>> {
        let mut streams = Vec::new();
        for family in Family::BOTH {
            let stream = connect(&self.lab.device, at(family.far(3), TCP))?;
            moves(&stream)?;
            streams.push(stream);
        }
        Ok(streams)
    }

    /// What went direct before anything was attached goes on.
    ///
    /// # Errors
    /// When it does not.
    pub fn old_lives(&self) -> Result<()> {
        self.old
            .iter()
            .try_for_each(moves)
            .context("a connection from before the start")
    }

    /// `detach` leaves nothing, and what lived from before goes on. Gives the word for the table.
    ///
    /// # Errors
    /// Lists what is left.
    pub fn detached(&self) -> Result<&'static str> {
        self.lab.tproxy_run(&["detach"])?.ok()?;
        self.clean()
    }

    /// Nothing is left, and what lived from before goes on.
    ///
    /// # Errors
    /// Lists what is left.
    pub fn clean(&self) -> Result<&'static str> {
        self.lab.restored(&self.before)?;
        self.old_lives()?;
        Ok("nothing")
    }

    /// A configuration with both kinds of links, and `more` behind it.
    #[must_use]
    pub fn config(&self, policy: Policy, more: &str) -> String {
        format!(
            "on_proxy_down = \"{}\"\n[lan]\ninterfaces = [\"{}\"]\n[wan]\ninterfaces = [\"default\"]\n\
             [proxy]\ndrain = \"30s\"\n[udp]\nidle = \"1s\"\n{more}",
            policy.word(),
            self.lab.lan()
        )
    }

    /// The same in a file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, policy: Policy, more: &str) -> Result<String> {
        let path = self.lab.dir().join("faults.toml");
        fs::write(&path, self.config(policy, more))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// Starts `tproxy-bpf` with a fault that is to come, and does not wait.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, args: &[&str], fault: Option<(&str, Fault)>) -> Result<Process> {
        let mut command = self.lab.tproxy_command(args)?;
        if let Some((step, fault)) = fault {
            let text = format!("{step}={}", fault.word());
            command.env(tproxy_userspace::step::VARIABLE, text);
        }
        Process::spawn(command)
    }

    /// The same, and waits until it serves.
    ///
    /// # Errors
    /// When it does not.
    pub fn run(&self, config: &str, fault: Option<(&str, Fault)>) -> Result<Process> {
        let process = self.spawn(&["run", "-c", config], fault)?;
        process.wait_for_line("ready", 2 * SOON)?;
        Ok(process)
    }
}

impl Scene {
    /// Starts `tproxy-bpf run` with mounts of its own, after a script of the shell has changed them.
    ///
    /// # Errors
    /// When it does not come up.
    pub fn run_behind(&self, mounts: &str, config: &str) -> Result<Process> {
        let mut command = self.lab.gateway.command("unshare");
        let script = format!("{mounts}\nexec \"$0\" run -c \"$1\"");
        command.args(["--mount", "sh", "-ec", &script]);
        command.arg(binary()?).arg(config);
        command.env("TPROXY_BPF_LOG_FORMAT", "human");
        let process = Process::spawn(command)?;
        process.wait_for_line("ready", 2 * SOON)?;
        Ok(process)
    }

    /// Runs a command on the gateway with the mounts of a process.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn beside(&self, process: &Process, argv: &[&str]) -> Result<Output> {
        let mut command = self.lab.gateway.command("nsenter");
        command.arg(format!("--target={}", process.pid()));
        command.args(["--mount", "--"]).args(argv);
        process::run(command, 3 * SOON)
    }

    /// The same for `tproxy-bpf`, which is to refuse with exit code 1 and a message that holds all of these.
    ///
    /// # Errors
    /// When it does not.
    pub fn refused_beside(&self, by: &Process, args: &[&str], words: &[&str]) -> Result<()> {
        let program = binary()?;
        let program = program.to_str().context("a path in UTF-8")?;
        let output = self.beside(by, &[&[program], args].concat())?;
        ensure!(output.code() == Some(1), "{output:?}");
        for word in words {
            ensure!(output.stderr.contains(word), "{}", output.stderr);
        }
        Ok(())
    }
}

/// Goes on after SIGSTOP.
///
/// # Errors
/// When the process is gone.
pub fn go_on(process: &Process) -> Result<()> {
    process.signal(Signal::SIGCONT)
}

/// A connection to an echo carries something there and back.
///
/// # Errors
/// When it does not.
pub fn moves(stream: &TcpStream) -> Result<()> {
    let mut stream = stream;
    stream.write_all(b"there and back")?;
    let mut back = [0; 14];
    stream.read_exact(&mut back).context("the way back")?;
    ensure!(&back == b"there and back", "{back:?}");
    Ok(())
}

/// Connections of a proxy that was killed end with RST, and soon.
///
/// # Errors
/// When one goes on, or ends otherwise.
pub fn are_reset(streams: &[TcpStream]) -> Result<()> {
    for mut stream in streams {
        let error = until("a connection of a killed proxy to be reset", SOON, || {
            Ok(stream.write_all(b"?").err())
        })?;
        ensure!(
            matches!(
                error.kind(),
                std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe
            ),
            "it ended with {error}"
        );
    }
    Ok(())
}

/// How long silence is listened to before it counts as such.
pub(crate) const SILENCE: Duration = Duration::from_millis(300);
