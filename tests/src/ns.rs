//! A network namespace, and running programs and threads in it.

use std::{
    fs::{self, File},
    io,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::SigSet,
};

use crate::process::{self, Output, Process};

/// Where `ip netns` keeps its names.
pub(crate) const NETNS_DIR: &str = "/run/netns";

/// A named network namespace. Programs run in it keep the host's mounts, bpffs among them
/// (`ip netns exec` would hide it).
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    inode: u64,
    file: Arc<File>,
}

impl Namespace {
    /// Makes it with `ip netns add`, with loopback up.
    pub(crate) fn create(name: &str) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(["netns", "add", name]);
        process::run(command, Duration::from_secs(10))?.ok()?;
        let path = format!("{NETNS_DIR}/{name}");
        let file = File::open(&path).with_context(|| format!("opening {path}"))?;
        let inode = file.metadata()?.ino();
        Ok(Self {
            name: name.to_owned(),
            inode,
            file: Arc::new(file),
        })
    }

    /// Its name, as `ip netns` knows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it, for `nsenter --net=`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        PathBuf::from(NETNS_DIR).join(&self.name)
    }

    /// Its inode, under which tproxy-bpf keeps its state.
    #[must_use]
    pub const fn inode(&self) -> u64 {
        self.inode
    }

    /// The open file that stands for it.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// `program`, to be run in this namespace, in a process group of its own, with nothing on standard input.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).process_group(0);
        let file = Arc::clone(&self.file);
        let enter = move || -> io::Result<()> {
            setns(&*file, CloneFlags::CLONE_NEWNET)?;
            // The binaries block the signals they wait for; their children shall not.
            SigSet::empty().thread_set_mask()?;
            Ok(())
        };
        // SAFETY: between fork and exec only setns(2) and sigprocmask(2) are called; both are
        // async-signal-safe, nothing is allocated, and the file is kept open by the closure.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// The command for `argv`: program and arguments.
    ///
    /// # Panics
    /// When `argv` is empty.
    #[must_use]
    pub fn argv(&self, argv: &[&str]) -> Command {
        let (program, args) = argv.split_first().expect("a program to run");
        let mut command = self.command(program);
        command.args(args);
        command
    }

    /// Runs `argv` to its end and wants it to succeed.
    ///
    /// # Errors
    /// When it cannot be started, takes over a minute, or fails; the message holds what it printed.
    pub fn run(&self, argv: &[&str]) -> Result<Output> {
        self.try_run(argv)?.ok()
    }

    /// Runs `argv` to its end, whatever its exit code.
    ///
    /// # Errors
    /// When it cannot be started or takes over a minute.
    pub fn try_run(&self, argv: &[&str]) -> Result<Output> {
        process::run(self.argv(argv), Duration::from_secs(60))
            .with_context(|| format!("in namespace {}", self.name))
    }

    /// Starts `argv` and lets it run. It is killed when the guard is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self, argv: &[&str]) -> Result<Process> {
        Process::spawn(self.argv(argv)).with_context(|| format!("in namespace {}", self.name))
    }

    /// Gives `lines` to `ip -batch`.
    ///
    /// # Errors
    /// When one of them fails.
    pub fn ip(&self, lines: &[&str]) -> Result<()> {
        let mut command = self.command("ip");
        command.args(["-batch", "-"]);
        process::run_with_input(
            command,
            lines.join("\n").as_bytes(),
            Duration::from_secs(10),
        )?
        .ok()
        .with_context(|| format!("setting up {}", self.name))?;
        Ok(())
    }

    /// Runs `work` on a thread of its own in this namespace. Sockets made there stay there,
    /// whoever uses them afterwards.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            let handle = scope.spawn(|| -> Result<T> {
                setns(&*self.file, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("entering namespace {}", self.name))?;
                Ok(work())
            });
            match handle.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Sets sysctls: `("net/ipv4/ip_forward", "1")`.
    ///
    /// # Errors
    /// When one does not exist or refuses the value.
    pub fn sysctl(&self, values: &[(&str, &str)]) -> Result<()> {
        self.enter(|| {
            for (key, value) in values {
                ensure!(key.starts_with("net/"), "{key} is not of the network");
                fs::write(format!("/proc/sys/{key}"), value)
                    .with_context(|| format!("setting {key} to {value} in {}", self.name))?;
            }
            Ok(())
        })?
    }
}
