//! The package, from its installation to its removal, as a user of a small Debian has it: its service runs under that
//! Debian's systemd on the gateway.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use lab::{
    Family, Far, Guest, Lab, Snapshot,
    gateway::binary,
    process::run,
    servers::Danted,
    traffic::whoami,
    wait::{SOON, until},
};

#[path = "install/restart.rs"]
mod restart;

/// Packing takes some seconds; others may build at the same time.
const PATIENCE: Duration = Duration::from_mins(3);
/// A service that failed waits for 5 s before it starts, and may take over from another process then.
const COMING: Duration = Duration::from_secs(30);
const CONFIG: &str = "etc/tproxy-bpf/config.toml";
const SERVICE: &str = "tproxy-bpf";

/// The folder of the project.
fn project() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Packs the program under test. Gives the Debian package.
fn pack(out: &Path) -> Result<PathBuf> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(project())
        .args(["xtask", "dist", "--binary"])
        .arg(binary()?)
        .arg("--out")
        .arg(out);
    // A folder for its files is the lab's; cargo's variables are about this test.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(name);
        }
    }
    run(command, PATIENCE)?.ok()?;
    let mut names = fs::read_dir(out)?.flatten().map(|entry| entry.path());
    let package = names.find(|path| path.extension().is_some_and(|end| end == "deb"));
    package.with_context(|| format!("there is no package in {}", out.display()))
}

impl Service<'_> {
    /// What systemd says of the service.
    fn property(&self, name: &str) -> Result<String> {
        let show = ["systemctl", "show", "--property", name, "--value", SERVICE];
        Ok(self.0.run(&show)?.stdout.trim().to_owned())
    }

    fn systemctl(&self, verb: &str) -> Result<()> {
        let done = self.0.run(&["systemctl", verb, SERVICE]);
        done.with_context(|| self.log())?;
        Ok(())
    }

    /// What it has logged, and systemd with it.
    fn log(&self) -> String {
        let log = ["journalctl", "--no-pager", "--unit", SERVICE];
        let own = self.0.try_run(&log).map(|output| output.stdout);
        format!("{}\n{}", self.0.log(), own.unwrap_or_default())
    }

    /// Waits until systemd says this of it.
    fn comes_to(&self, name: &str, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let mut last = String::new();
        let come = until("the service", COMING, || {
            last = self.property(name)?;
            Ok(wanted(&last).then_some(()))
        });
        come.with_context(|| format!("{name} is {last:?}\n{}", self.log()))?;
        Ok(last)
    }

    fn write(&self, config: &str) -> Result<()> {
        fs::write(self.0.root().join(CONFIG), config).context("writing the configuration")
    }
}

/// The service in a guest.
struct Service<'g>(&'g Guest);

/// All that is called so in the root, but for what the package manager and the logs remember.
fn remains(root: &Path) -> Result<Vec<String>> {
    let mut find = Command::new("find");
    find.arg(root)
        .args(["-xdev", "-name", "*tproxy*"])
        .args(["-not", "-path", "*/var/log/*"]);
    let found = run(find, SOON)?.ok()?.stdout;
    Ok(found.lines().map(str::to_owned).collect())
}

#[test]
fn a_package_is_installed_serves_and_leaves_nothing() -> Result<()> {
    let lab = Lab::new()?;
    let far = Far::start(&lab)?;
    let danted = Danted::start(&lab.internet, lab.dir())?;
    // What systemd itself sets when it comes up.
    lab.gateway.sysctl(&[("net/unix/max_dgram_qlen", "512")])?;
    let before = Snapshot::take(&lab)?;
    let out = lab.dir().join("dist");
    let started = Instant::now();
    let (guest, package) = thread::scope(|scope| {
        let packed = scope.spawn(|| pack(&out));
        let guest = Guest::new(&lab);
        let packed = packed.join().map_err(|_| anyhow!("packing panicked"));
        (guest, packed)
    });
    let (mut guest, package) = (guest?, package??);
    eprintln!(
        "a Debian and the package: {:.1} s",
        started.elapsed().as_secs_f32()
    );
    fs::copy(&package, guest.root().join("root/package.deb"))?;

    // As in an image that is being built: nothing may start.
    let policy = guest.root().join("usr/sbin/policy-rc.d");
    fs::write(&policy, "#!/bin/sh\nexit 101\n")?;
    run(
        {
            let mut command = Command::new("chmod");
            command.arg("755").arg(&policy);
            command
        },
        SOON,
    )?
    .ok()?;
    let install = [
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
        "/root/package.deb",
    ];
    let said = guest.run(&install)?.stdout;
    ensure!(said.contains(&format!("write /{CONFIG}")), "{said}");
    fs::remove_file(&policy)?;
    lab.restored(&before)
        .context("after the installation alone")?;
    let files = guest.run(&["dpkg", "--verify", "tproxy-bpf"])?;
    ensure!(files.stdout.is_empty(), "{files:?}");
    // What is in the package is the package's: no file there is for the administrator to edit.
    let own = guest.run(&[
        "dpkg-query",
        "--show",
        "--showformat=${Conffiles}",
        "tproxy-bpf",
    ])?;
    ensure!(own.stdout.trim().is_empty(), "{own:?}");

    guest.boot(&lab)?;
    let examples = "/usr/share/doc/tproxy-bpf/examples";
    for stage in 1..=4 {
        let file = format!("{examples}/stage-{stage}.toml");
        let checked = guest.run(&["tproxy-bpf", "check", &file])?.stdout;
        ensure!(checked.contains(&format!("stage = {stage}")), "{checked}");
    }
    let service = Service(&guest);
    // It was enabled, and without a configuration nothing is started, and nothing fails.
    assert_eq!(service.property("UnitFileState")?, "enabled");
    assert_eq!(service.property("ActiveState")?, "inactive");
    service.systemctl("start")?;
    assert_eq!(service.property("ConditionResult")?, "no");
    let units = [
        "/lib/systemd/system/tproxy-bpf.service",
        "/lib/systemd/system/tproxy-bpf-restart.service",
    ];
    let verify = ["systemd-analyze", "verify", "--man=no", units[0], units[1]];
    let verified = guest.run(&verify)?;
    assert_eq!(verified.stderr, "");
    let security = [
        "systemd-analyze",
        "security",
        "--threshold=30",
        "--no-pager",
        SERVICE,
    ];
    let security = guest.run(&security)?.stdout;
    eprintln!("{}", security.lines().last().unwrap_or_default().trim());

    first_use(&lab, &guest, &danted)?;
    lives_on(&lab, &guest, &danted)?;
    restart::loses_nothing(&lab, (&guest, &before), (&far, &danted))?;

    // Removed while it runs: it ends, and takes everything along but the configuration.
    guest.run(&["apt-get", "remove", "--yes", "tproxy-bpf"])?;
    lab.restored(&before).context("after the removal")?;
    far.sees_device(&lab)?;
    guest.run(&["test", "!", "-e", "/run/tproxy-bpf"])?;
    let left = remains(guest.root())?;
    ensure!(guest.root().join(CONFIG).is_file(), "{left:?}");
    guest.run(&["apt-get", "purge", "--yes", "tproxy-bpf"])?;
    assert_eq!(remains(guest.root())?, [""; 0]);
    assert_eq!(
        guest.try_run(&["systemctl", "status", SERVICE])?.code(),
        Some(4)
    );
    drop(guest);
    lab.restored(&before)
}

/// What somebody does who has it for the first time.
fn first_use(lab: &Lab, guest: &Guest, danted: &Danted) -> Result<()> {
    let service = Service(guest);
    // As it would be without what was tried above.
    guest.run(&["apt-get", "purge", "--yes", "tproxy-bpf"])?;
    let config = format!(
        "stage = 2\n[lan]\ninterfaces = [\"{}\"]\n[[outbound]]\nname = \"proxy\"\nurl = \"{}\"\n",
        lab.lan(),
        danted.url(Family::V4)
    );
    let started = Instant::now();
    guest.run(&[
        "apt-get",
        "install",
        "--yes",
        "--no-install-recommends",
        "/root/package.deb",
    ])?;
    let installed = started.elapsed();
    service.write(&config)?;
    service.systemctl("start")?;
    let client = whoami(&lab.device, Family::V4.far(1))?;
    let took = started.elapsed();
    assert_eq!(
        client,
        Family::V4.upstream(1),
        "it did not go through the proxy"
    );
    println!(
        "first use: 2 commands, {} lines of configuration, {:.1} s to the first page, {:.1} s of them for apt",
        config.lines().count(),
        took.as_secs_f32(),
        installed.as_secs_f32()
    );
    // `start` came back when it was ready, and not before.
    assert_eq!(service.property("ActiveState")?, "active");
    let status = service.property("StatusText")?;
    ensure!(status.contains("proxied through socks5://"), "{status}");
    Ok(())
}

/// Reloads, a failure, a restart and a kill.
fn lives_on(lab: &Lab, guest: &Guest, danted: &Danted) -> Result<()> {
    let service = Service(guest);
    let process = || service.property("MainPID");
    let config = |more: &str| {
        format!(
            "{more}\n[lan]\ninterfaces = [\"{}\"]\n[[outbound]]\nname = \"proxy\"\nurl = \"{}\"\n",
            lab.lan(),
            danted.url(Family::V4)
        )
    };
    let proxied = || -> Result<()> {
        assert_eq!(
            whoami(&lab.device, Family::V4.far(1))?,
            Family::V4.upstream(1)
        );
        Ok(())
    };
    let first = process()?;

    // All that a run may do, under the restrictions of the unit.
    let all = "stage = 3\non_proxy_down = \"drop\"\n[gateway]\nforward = true\nmasquerade = true\n\
               [exempt]\nuids = [\"daemon\"]\ncgroups = [\"/system.slice/systemd-journald.service\"]";
    service.write(&config(all))?;
    service.systemctl("reload")?;
    service.comes_to("StatusText", |text| {
        text.contains("the gateway's own traffic")
    })?;
    let exempt = guest.run(&["tproxy-bpf", "exempt", "list"])?.stdout;
    for word in ["daemon", "systemd-journald.service", "in force"] {
        ensure!(exempt.contains(word), "{exempt}");
    }
    let tables = guest.run(&["nft", "list", "tables"])?.stdout;
    ensure!(tables.contains("tproxy_bpf"), "{tables:?}");
    proxied()?;

    service.write(&config("stage = 9"))?;
    service.systemctl("reload")?;
    service.comes_to("StatusText", |text| text.contains("9 is not a stage"))?;
    assert_eq!(service.property("ActiveState")?, "active");
    assert_eq!(process()?, first);
    proxied()?;

    service.write(&config(all))?;
    service.systemctl("restart")?;
    let second = process()?;
    assert_ne!(first, second);
    proxied()?;

    // What is killed comes back; until then the kernel drops.
    guest.run(&["systemctl", "kill", "--signal=KILL", SERVICE])?;
    service.comes_to("NRestarts", |count| count == "1")?;
    service.comes_to("ActiveState", |state| state == "active")?;
    proxied()
}

/// The shell takes them, and so does shellcheck where it is installed.
#[test]
fn the_scripts_of_the_package_are_sound() -> Result<()> {
    let folder = project().join("packaging");
    let scripts = [
        "debian/postinst",
        "debian/prerm",
        "debian/postrm",
        "openwrt/tproxy-bpf.init",
    ];
    let paths = scripts.map(|script| folder.join(script));
    for path in &paths {
        let mut check = Command::new("sh");
        check.arg("-n").arg(path);
        run(check, SOON)?.ok()?;
    }
    let mut check = Command::new("shellcheck");
    check.arg("--shell=sh").args(&paths);
    if Command::new("shellcheck").arg("--version").output().is_ok() {
        run(check, SOON)?.ok()?;
    }
    Ok(())
}
