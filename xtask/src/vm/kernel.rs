//! The kernel: a package of Debian 12, unpacked into the build's folder. Nothing of it is installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// Its package, but for the number of the build. The oldest kernel that a Debian with support has.
const PACKAGE: &str = "linux-image-6.1.0-";
const FLAVOUR: &str = "-amd64";

/// What of the package is unpacked: the kernel, the network, file systems, and drivers that are not for hardware.
const PARTS: [&str; 9] = [
    "./boot/vmlinuz-*",
    "./lib/modules/*/modules.*",
    "./lib/modules/*/kernel/arch/*",
    "./lib/modules/*/kernel/crypto/*",
    "./lib/modules/*/kernel/drivers/net/bonding/*",
    "./lib/modules/*/kernel/drivers/virtio/*",
    "./lib/modules/*/kernel/fs/*",
    "./lib/modules/*/kernel/lib/*",
    "./lib/modules/*/kernel/net/*",
];
/// Drivers of links that no hardware belongs to.
const LINKS: [&str; 8] = [
    "dummy",
    "ifb",
    "ipvlan/ipvlan",
    "macvlan",
    "tun",
    "veth",
    "vxlan/vxlan",
    "wireguard/wireguard",
];

/// A kernel that is there.
pub struct Kernel {
    /// What `uname -r` says there.
    pub release: String,
    /// The kernel itself.
    pub program: PathBuf,
    /// The folder of its modules.
    pub modules: PathBuf,
}

impl Kernel {
    /// The one that is in the folder already, or the newest build that the package sources of this machine have.
    ///
    /// # Errors
    /// They have none, or it cannot be fetched or unpacked.
    pub fn get(folder: &Path) -> Result<Self> {
        if let Some(kernel) = Self::find(folder) {
            return Ok(kernel);
        }
        let package = newest()?;
        shell::say(&format!(
            "{package} is missing: the kernel that is tested on"
        ));
        let new = folder.join("new");
        match fs::remove_dir_all(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {} failed", new.display()));
            }
            _ => {}
        }
        fs::create_dir_all(&new).with_context(|| format!("making {} failed", new.display()))?;
        let mut fetch = Command::new("apt-get");
        fetch.args(["-q", "download", &package]).current_dir(&new);
        // As root it warns that the folder is closed to the user that it fetches by else.
        shell::run(fetch.args(["-o", "APT::Sandbox::User=root"]))?;
        unpack(&new)?;
        let release = package.trim_start_matches("linux-image-");
        let mut index = Command::new("busybox");
        index.args(["depmod", "-b"]).arg(&new).arg(release);
        shell::run(&mut index)?;
        // Only what is whole has this name.
        let whole = folder.join(release);
        fs::rename(&new, &whole).with_context(|| format!("making {} failed", whole.display()))?;
        Self::find(folder).with_context(|| format!("{package} has no kernel in it"))
    }

    fn find(folder: &Path) -> Option<Self> {
        let releases = fs::read_dir(folder).ok()?.flatten();
        let kernels = releases.filter_map(|entry| {
            let release = entry.file_name().into_string().ok()?;
            let kernel = Self {
                program: entry.path().join(format!("boot/vmlinuz-{release}")),
                modules: entry.path().join(format!("lib/modules/{release}")),
                release,
            };
            kernel.program.is_file().then_some(kernel)
        });
        kernels.max_by_key(|kernel| number(&kernel.release))
    }
}

/// The number of the build in a package's or a release's name.
fn number(name: &str) -> Option<u32> {
    let name = name.trim_start_matches("linux-image-");
    let release = name.strip_prefix(PACKAGE.trim_start_matches("linux-image-"))?;
    release.strip_suffix(FLAVOUR)?.parse().ok()
}

fn newest() -> Result<String> {
    let list = || -> Result<Option<String>> {
        let output = Command::new("apt-cache")
            .args(["pkgnames", PACKAGE])
            .output();
        let text = output.context("starting apt-cache failed")?.stdout;
        let text = String::from_utf8_lossy(&text).into_owned();
        let builds = text.lines().filter(|name| number(name).is_some());
        Ok(builds
            .max_by_key(|name| number(name))
            .map(ToOwned::to_owned))
    };
    if let Some(package) = list()? {
        return Ok(package);
    }
    shell::run(shell::as_root("apt-get", "fetching lists of packages")?.args(["update", "-qq"]))?;
    list()?.with_context(|| {
        format!("no package {PACKAGE}*{FLAVOUR} is to be had here: the kernel is that of Debian 12, whose sources this machine needs")
    })
}

/// Unpacks the package that is in the folder, and removes it.
fn unpack(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut packages = entries.flatten().map(|entry| entry.path());
    let Some(package) = packages.find(|path| path.extension().is_some_and(|end| end == "deb"))
    else {
        bail!("apt-get put no package into {}", folder.display());
    };
    let mut read = Command::new("dpkg-deb");
    read.arg("--fsys-tarfile").arg(&package);
    shell::show(&read);
    let mut read = read
        .stdout(Stdio::piped())
        .spawn()
        .context("starting dpkg-deb failed")?;
    let mut unpack = Command::new("tar");
    unpack
        .args(["-x", "--wildcards", "-C"])
        .arg(folder)
        .args(PARTS);
    for link in LINKS {
        unpack.arg(format!("./lib/modules/*/kernel/drivers/net/{link}.ko"));
    }
    if let Some(pipe) = read.stdout.take() {
        unpack.stdin(pipe);
    }
    shell::run(&mut unpack)?;
    let status = read.wait().context("waiting for dpkg-deb failed")?;
    if !status.success() {
        bail!("dpkg-deb could not read {} ({status})", package.display());
    }
    fs::remove_file(&package).with_context(|| format!("removing {} failed", package.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_are_told_apart_by_their_number() {
        assert_eq!(number("linux-image-6.1.0-56-amd64"), Some(56));
        assert_eq!(number("6.1.0-9-amd64"), Some(9));
        for other in [
            "linux-image-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-amd64-dbg",
            "new",
        ] {
            assert_eq!(number(other), None, "{other}");
        }
    }
}
