//! A small Debian with systemd on the gateway: where the package is tried as its users have it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use tproxy_userspace::control::cgroup;

use crate::{
    Lab, Output, Process,
    process::{run, words},
    wait::{SOON, until},
};

/// The release, whose systemd is the oldest that the unit is for.
const RELEASE: &str = "bookworm";
/// Beside what each Debian has: `apt`, systemd, and what `masquerade` needs.
const PACKAGES: &str = "apt,systemd,nftables";
/// What would ask the network, or change what is not the guest's alone.
const MASKED: [&str; 7] = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "systemd-binfmt.service",
    "systemd-modules-load.service",
    "systemd-random-seed.service",
    "systemd-sysctl.service",
];
/// How long fetching and unpacking it may take.
const PATIENCE: Duration = Duration::from_mins(4);

/// A root folder, and systemd in it once it is booted. Dropping it ends all that runs there.
#[derive(Debug)]
pub struct Guest {
    root: PathBuf,
    cgroup: PathBuf,
    init: Option<Process>,
}

impl Guest {
    /// A fresh root in the folder of the lab. What is fetched for it is kept beside what cargo builds, for the next
    /// time.
    ///
    /// # Errors
    /// When Debian's packages cannot be fetched, or there is no cgroup2.
    pub fn new(lab: &Lab) -> Result<Self> {
        let root = lab.dir().join("guest");
        fs::create_dir(&root)?;
        let mut unpack = Command::new("tar");
        unpack
            .args(["--extract", "--numeric-owner", "--file"])
            .arg(archive()?)
            .arg("--directory")
            .arg(&root);
        run(unpack, PATIENCE)?.ok()?;
        for unit in MASKED {
            symlink("/dev/null", root.join("etc/systemd/system").join(unit))?;
        }
        let name = lab.dir().file_name().unwrap_or_default();
        let cgroup = group_of(&name.to_string_lossy());
        let cgroup = cgroup.context("no cgroup2 is mounted, and systemd needs one")?;
        Ok(Self {
            root,
            cgroup,
            init: None,
        })
    }

    /// Its root folder, as the host sees it.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Runs a command in it to its end: before it is booted in its root alone, and then as from a login.
    ///
    /// # Errors
    /// When it cannot be started, or takes over a minute.
    pub fn try_run(&self, argv: &[&str]) -> Result<Output> {
        let mut command = match &self.init {
            None => {
                let mut command = Command::new("chroot");
                command.arg(&self.root);
                command
            }
            Some(_) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--target={}", self.first_process()?));
                command.args(["--all", "--"]);
                command
            }
        };
        command
            .args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"])
            .args(["LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"])
            .args(argv);
        run(command, Duration::from_mins(1))
    }

    /// The same, for a command that must succeed.
    ///
    /// # Errors
    /// As [`Guest::try_run`], and when it fails.
    pub fn run(&self, argv: &[&str]) -> Result<Output> {
        self.try_run(argv)?.ok()
    }

    /// Starts systemd in the namespace of the lab's gateway, and waits until it is up.
    ///
    /// # Errors
    /// When it does not come up; with what it says.
    pub fn boot(&mut self, lab: &Lab) -> Result<()> {
        fs::create_dir(&self.cgroup)
            .with_context(|| format!("making {}", self.cgroup.display()))?;
        let mut command = lab.gateway.command("sh");
        command
            .args(["-c", include_str!("guest.sh"), "guest.sh"])
            .args([&self.root, &self.cgroup]);
        self.init = Some(Process::spawn(command)?);
        let up = until("systemd", SOON, || {
            // At first there is nobody to ask.
            let Ok(output) = self.try_run(&["systemctl", "is-system-running"]) else {
                return Ok(None);
            };
            let state = output.stdout.trim().to_owned();
            Ok(["running", "degraded"].contains(&&*state).then_some(state))
        });
        let state = up.with_context(|| self.log())?;
        if state == "degraded" {
            let failed = self.run(&["systemctl", "list-units", "--failed", "--no-pager"])?;
            bail!("units of the guest failed:\n{}", failed.stdout);
        }
        Ok(())
    }

    /// What its systemd has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        let lines = self.init.as_ref().map(Process::lines);
        lines.unwrap_or_default().join("\n")
    }

    /// The process id that its systemd has on the host.
    fn first_process(&self) -> Result<u32> {
        let outer = self.init.as_ref().context("it is not booted")?.pid();
        let file = format!("/proc/{outer}/task/{outer}/children");
        let children = fs::read_to_string(&file).with_context(|| format!("reading {file}"))?;
        let first = children.split_whitespace().next();
        Ok(first.context("its systemd does not run")?.parse()?)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // With its first process all others of a namespace end.
        self.init = None;
        let gone = until("the guest's end", SOON, || {
            remove_cgroups(&self.cgroup);
            Ok((!self.cgroup.exists()).then_some(()))
        });
        if let Err(error) = gone {
            eprintln!("{error:#}");
        }
    }
}

/// Where the processes of the guest are that the lab of this name has.
pub(crate) fn group_of(lab: &str) -> Option<PathBuf> {
    Some(cgroup::mount().ok()??.join(format!("guest.{lab}")))
}

/// Removes a cgroup with all below it, as far as they are empty.
pub(crate) fn remove_cgroups(folder: &Path) {
    let below = fs::read_dir(folder).into_iter().flatten().flatten();
    for entry in below.filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path());
    }
    fs::remove_dir(folder).ok();
}

/// The root as a tarball. It is made anew when it is not there: about a minute, most of it for what is fetched.
fn archive() -> Result<PathBuf> {
    let own = std::env::current_exe().context("asking for the path of this program")?;
    // target/PROFILE/deps/TEST.
    let target = own.ancestors().nth(3).context("the test lies in target")?;
    let folder = target.join("lab-files");
    fs::create_dir_all(&folder)?;
    let name = format!("{RELEASE}-{}.tar", PACKAGES.replace(',', "-"));
    let archive = folder.join(name);
    if archive.is_file() {
        return Ok(archive);
    }
    let made = folder.join(format!("guest.{}.tar", std::process::id()));
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=essential", "--mode=root", "--quiet"])
        // Nobody reads texts in other languages here.
        .arg("--aptopt=Acquire::Languages \"none\"")
        .arg(format!("--include={PACKAGES}"))
        .args([RELEASE.as_ref(), made.as_os_str()])
        .arg(format!("deb {} {RELEASE} main", mirror()?));
    let text = words(&command);
    let fetched = run(command, PATIENCE).and_then(Output::ok);
    if let Err(error) = fetched {
        fs::remove_file(&made).ok();
        return Err(error).context(format!(
            "a Debian to try the package in cannot be fetched (`{text}`); this test needs the package registry \
             that apt is configured with"
        ));
    }
    fs::rename(&made, &archive)?;
    Ok(archive)
}

/// Where this machine's apt gets Debian from.
fn mirror() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release")?;
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no release")?;
    let mut command = Command::new("apt-get");
    command.args([
        "indextargets",
        "--format",
        "$(RELEASE) $(COMPONENT) $(SITE)",
    ]);
    command.arg("Created-By: Packages");
    let targets = run(command, SOON)?.ok()?.stdout;
    let site = targets
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{codename} main ")));
    let site = site.with_context(|| format!("apt is configured with no source for {codename}"))?;
    ensure!(!site.is_empty(), "apt names no site for {codename}");
    Ok(site.to_owned())
}
