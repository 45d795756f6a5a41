//! `lint`: every check runs, then the failed ones are named.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::book;
use crate::bpf_toolchain;
use crate::setup::{self, Need};
use crate::shell;

/// What is built for this machine; the kernel half has a compiler of its own.
pub const HOST: [&str; 3] = ["--workspace", "--exclude", "tproxy-ebpf"];

/// The fuzzer's program is not built otherwise. All checks have it, so that they share what is built.
const FEATURES: &str = "--features=fuzz-targets/libfuzzer";

/// All checks.
///
/// # Errors
/// A check cannot be started.
pub fn all() -> Result<ExitCode> {
    setup::ensure(Need::Lint)?;
    let checks = [
        ("formatting", format()),
        ("clippy", clippy()),
        ("clippy of the kernel half", kernel_clippy()?),
        ("rustdoc", rustdoc()),
        ("documentation", book::command()?),
        ("fetching", fetch()),
        ("dependencies", dependencies()?),
    ];
    let mut failed = Vec::new();
    for (name, mut command) in checks {
        let status = shell::status(&mut command).with_context(|| format!("checking {name}"))?;
        if !status.success() {
            failed.push(name);
        }
    }
    if failed.is_empty() {
        println!("lint: all clean");
        return Ok(ExitCode::SUCCESS);
    }
    println!("lint: findings in {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}

fn format() -> Command {
    shell::cargo(["fmt", "--all", "--check"])
}

fn clippy() -> Command {
    let mut command = shell::cargo(["clippy"]);
    command
        .args(HOST)
        .args([FEATURES, "--all-targets", "--", "-D", "warnings"]);
    command
}

fn kernel_clippy() -> Result<Command> {
    let root = shell::root();
    let (compiler, linker) = bpf_toolchain::find(&root).map_err(anyhow::Error::msg)?;
    let mut command = compiler.cargo("clippy", &root.join("tproxy-ebpf"), &linker);
    command
        .arg("--target-dir")
        .arg(shell::target().join("bpf-clippy"))
        .args(["--", "-D", "warnings"]);
    Ok(command)
}

fn rustdoc() -> Command {
    let mut command = shell::cargo(["doc"]);
    command
        .args(HOST)
        .args([FEATURES, "--no-deps", "--document-private-items"])
        .env("RUSTDOCFLAGS", "-D warnings");
    command
}

/// What is not built here has a licence, too: crates of other systems.
fn fetch() -> Command {
    shell::cargo(["fetch", "--locked"])
}

/// Licences, sources and banned crates. The list of advisories is on the network, where a check
/// may fail for reasons that are not in this project, so it is not part of this.
fn dependencies() -> Result<Command> {
    let program = setup::find_tool("cargo-deny").context(
        "cargo-deny is missing, so licences and sources of the dependencies cannot be checked; \
         `cargo xtask setup` builds it",
    )?;
    let mut command = Command::new(program);
    command
        .current_dir(shell::root())
        .args(["--offline", "--all-features", "check"])
        .args(["--hide-inclusion-graph", "licenses", "bans", "sources"]);
    Ok(command)
}
