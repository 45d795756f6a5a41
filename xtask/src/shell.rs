//! Commands: shown to the person at the terminal, then run.

use std::env;
use std::ffi::OsStr;
use std::io::IsTerminal as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::{fs, io};

use anyhow::{Context as _, Result, bail};

/// The folder of the workspace.
pub fn root() -> PathBuf {
    // Set by `cargo run`; a folder that was moved since the build is found by it.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// The folder that cargo builds into, wherever its configuration puts it: this program lies in
/// `<target>/<profile>/`.
pub fn target() -> PathBuf {
    env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.parent()?.to_path_buf()))
        .unwrap_or_else(|| root().join("target"))
}

/// A program of the release build.
pub fn release(program: &str) -> PathBuf {
    target().join("release").join(program)
}

/// The cargo that runs us, in the folder of the workspace.
pub fn cargo<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(arguments: I) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments).current_dir(root());
    // Meant for us alone; a build script that watches them would run again for each caller.
    for name in ["CARGO_MANIFEST_DIR", "CARGO_MANIFEST_PATH"] {
        command.env_remove(name);
    }
    command
}

/// The target triple of this machine, as its compiler says.
///
/// # Errors
/// The compiler cannot be started, or says nothing of it.
pub fn host() -> Result<String> {
    let output = Command::new("rustc").arg("-vV").output();
    let text = output.context("starting rustc failed")?.stdout;
    let text = String::from_utf8_lossy(&text);
    let Some(host) = text.lines().find_map(|line| line.strip_prefix("host: ")) else {
        bail!("`rustc -vV` names no host");
    };
    Ok(host.to_owned())
}

/// Are we root?
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// The program as root: itself if we are root, else under sudo with our environment.
///
/// # Errors
/// Neither root nor sudo; `purpose` says what root is needed for.
pub fn as_root(program: impl AsRef<OsStr>, purpose: &str) -> Result<Command> {
    if is_root() {
        return Ok(Command::new(program));
    }
    let Some(sudo) = find_program("sudo") else {
        bail!("{purpose} needs root, and there is no sudo here. Run the same command as root");
    };
    let mut command = Command::new(sudo);
    command.arg("-E").arg(program);
    Ok(command)
}

/// Where a program is: in `PATH`, or where Debian keeps those of the administrator, which the `PATH`
/// of other users leaves out.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

/// Says what comes next, in one line.
pub fn say(text: &str) {
    if io::stderr().is_terminal() {
        eprintln!("\x1b[1m{text}\x1b[0m");
    } else {
        eprintln!("{text}");
    }
}

/// Runs it and returns how it ended.
///
/// # Errors
/// It cannot be started.
pub fn status(command: &mut Command) -> Result<ExitStatus> {
    show(command);
    command
        .status()
        .with_context(|| format!("starting {} failed", name(command)))
}

/// Runs it; anything but success is an error.
///
/// # Errors
/// It cannot be started, or it fails.
pub fn run(command: &mut Command) -> Result<()> {
    let status = status(command)?;
    if !status.success() {
        bail!("{} failed ({status})", name(command));
    }
    Ok(())
}

/// Becomes it, so that signals and the exit code are its own.
///
/// # Errors
/// It cannot be started.
pub fn exec(command: &mut Command) -> Result<std::process::ExitCode> {
    show(command);
    let error = command.exec();
    Err(error).with_context(|| format!("starting {} failed", name(command)))
}

/// Does it succeed? Nothing is shown.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Prints the command as it could be typed.
pub fn show(command: &Command) {
    let line = line(command);
    if io::stderr().is_terminal() {
        eprintln!("\x1b[2m$ {line}\x1b[0m");
    } else {
        eprintln!("$ {line}");
    }
}

fn name(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let name = program.file_name().unwrap_or(program.as_os_str());
    let first = command.get_args().next().unwrap_or_default();
    // "cargo clippy" says more than "cargo", a script handed to a shell does not.
    if name == "cargo" {
        format!("cargo {}", first.to_string_lossy())
    } else {
        name.to_string_lossy().into_owned()
    }
}

fn line(command: &Command) -> String {
    let root = root();
    let short = |text: &OsStr| {
        let text = text.to_string_lossy();
        let relative = text.strip_prefix(&format!("{}/", root.display()));
        relative.map_or_else(|| text.to_string(), ToString::to_string)
    };
    let mut words = Vec::new();
    if let Some(folder) = command.get_current_dir()
        && folder != root
    {
        words.push(format!("cd {} &&", quote(&short(folder.as_os_str()))));
    }
    for (key, value) in command.get_envs() {
        if let Some(value) = value
            && shown(key)
        {
            words.push(format!(
                "{}={}",
                key.to_string_lossy(),
                quote(&short(value))
            ));
        }
    }
    let program = Path::new(command.get_program());
    let cargo = program.file_name().filter(|name| *name == "cargo");
    words.push(quote(&short(cargo.unwrap_or(command.get_program()))));
    words.extend(command.get_args().map(|word| quote(&short(word))));
    words.join(" ")
}

/// Long values that tell nobody anything stay out of the line.
fn shown(key: &OsStr) -> bool {
    key != "PATH" && key != "CARGO_ENCODED_RUSTFLAGS"
}

fn quote(word: &str) -> String {
    let plain = |c: char| {
        c.is_ascii_alphanumeric()
            || matches!(c, '-' | '_' | '/' | '.' | '=' | ':' | ',' | '+' | '@' | '%')
    };
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_command_can_be_typed() {
        let mut command = Command::new("/opt/x/cargo");
        command
            .args(["test", "it's", "", "a b", "--x=1"])
            .env("SHOWN", "a b")
            .env("PATH", "/secret");
        assert_eq!(
            line(&command),
            r"SHOWN='a b' cargo test 'it'\''s' '' 'a b' --x=1"
        );
    }

    #[test]
    fn paths_in_the_workspace_are_shown_without_it() {
        let mut command = Command::new(root().join("target/release/show"));
        command.current_dir(root());
        assert_eq!(line(&command), "target/release/show");
    }
}
