//! `run` and `bench`: a release build, which then takes the place of this program, so that Ctrl-C
//! reaches it and its exit code is ours.

use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::setup::{self, Need};
use crate::shell;

/// The environment variable that tells the lab which `tproxy-bpf` to try.
pub const PROGRAM: &str = "TPROXY_BPF";

/// The show in the lab.
///
/// # Errors
/// The build fails, or the show cannot be started.
pub fn show(once: bool) -> Result<ExitCode> {
    setup::ensure(Need::Lab)?;
    build()?;
    let mut show = in_lab("show")?;
    if once {
        show.arg("--once");
    }
    shell::exec(&mut show)
}

/// The measurements in the lab. The other proxies are only fetched for who wants to see them.
///
/// # Errors
/// As [`show`].
pub fn bench(arguments: &[String]) -> Result<ExitCode> {
    let with_peers = arguments.iter().any(|argument| argument == "--peers");
    setup::ensure(if with_peers { Need::Peers } else { Need::Lab })?;
    build()?;
    shell::exec(in_lab("bench")?.args(arguments))
}

/// `tproxy-bpf` on this very machine.
///
/// # Errors
/// As [`show`].
pub fn here(arguments: &[String]) -> Result<ExitCode> {
    setup::ensure(Need::Build)?;
    // All of it, as for the lab: cargo would build a part with other features of what it shares.
    build()?;
    let mut program = shell::as_root(shell::release("tproxy-bpf"), "tproxy-bpf")?;
    shell::exec(program.args(arguments))
}

/// The release build of everything but the kernel half, which comes along by itself.
///
/// # Errors
/// It fails.
pub fn build() -> Result<()> {
    shell::run(&mut shell::cargo(["build", "--release"]))
}

fn in_lab(program: &str) -> Result<Command> {
    let mut command = shell::as_root(shell::release(program), "the lab of network namespaces")?;
    command
        .current_dir(shell::root())
        .env(PROGRAM, shell::release("tproxy-bpf"));
    Ok(command)
}
