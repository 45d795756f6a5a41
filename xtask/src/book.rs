//! `book`: the documentation as pages for a browser.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::setup::{self, Need};
use crate::shell;

/// Builds it, and shows it if that is wanted.
///
/// # Errors
/// There is no mdbook, or it finds something wrong.
pub fn build(open: bool) -> Result<ExitCode> {
    setup::ensure(Need::Book)?;
    let mut command = command()?;
    if open {
        command.arg("--open");
    }
    shell::run(&mut command)?;
    let page = shell::target().join("book/index.html");
    println!("The documentation is at {}", page.display());
    Ok(ExitCode::SUCCESS)
}

/// What builds it. Links and examples are checked by the tests.
///
/// # Errors
/// There is no mdbook.
pub fn command() -> Result<Command> {
    let program = setup::find_tool("mdbook").context(
        "mdbook is missing, so the documentation cannot be built; `cargo xtask setup` gets it",
    )?;
    let mut command = Command::new(program);
    command
        .current_dir(shell::root())
        .args(["build", "docs", "--dest-dir"])
        .arg(shell::target().join("book"));
    Ok(command)
}
