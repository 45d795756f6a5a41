//! The service is restarted, upgraded and stopped while devices use it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Far, Guest, Lab, Snapshot,
    addr::url,
    servers::{Danted, TcpEcho},
    traffic::{HeldDownload, under_load, whoami},
    wait::{SOON, until},
};
use serde_json::Value;

use super::{SERVICE, Service};

const ECHO: u16 = 7;
/// 50 connections a second: the program and all else share the processors.
const PACE: Duration = Duration::from_millis(20);
/// The cgroup of the service, as its systemd has it.
const PROCESSES: &str = "/sys/fs/cgroup/system.slice/tproxy-bpf.service/cgroup.procs";

impl Service<'_> {
    fn main_process(&self) -> Result<u32> {
        Ok(self.property("MainPID")?.parse()?)
    }

    /// All its processes.
    fn processes(&self) -> Result<Vec<u32>> {
        let list = self.0.try_run(&["cat", PROCESSES])?.stdout;
        list.lines().map(|line| Ok(line.parse()?)).collect()
    }

    /// What the proxy itself says.
    fn status(&self) -> Result<Value> {
        let output = self.0.run(&["tproxy-bpf", "status", "--json"])?.stdout;
        Ok(serde_json::from_str(&output)?)
    }

    /// Restarts it in vain.
    fn fails_to_restart(&self) -> Result<()> {
        let done = self.0.try_run(&["systemctl", "restart", SERVICE])?;
        ensure!(done.code() != Some(0), "{}", self.log());
        self.comes_to("SubState", |state| state == "auto-restart")?;
        Ok(())
    }
}

/// Restarts, an upgrade and a configuration with an error, under load: nothing is lost. Then a stop: nothing is left.
pub fn loses_nothing(
    lab: &Lab,
    (guest, before): (&Guest, &Snapshot),
    (far, danted): (&Far, &Danted),
) -> Result<()> {
    let service = Service(guest);
    let _echo = TcpEcho::start(&lab.internet, ECHO)?;
    let (path, content) = far.nginx.offer(96 << 20)?;
    let config = |more: &str| {
        format!(
            "{more}\n[lan]\ninterfaces = [\"{}\"]\n[[outbound]]\nname = \"proxy\"\nurl = \"{}\"\n",
            lab.lan(),
            danted.url(Family::V4)
        )
    };
    let good = config("stage = 2\n[proxy]\ndrain = \"1s\"");
    service.write(&good)?;
    service.systemctl("reload")?;
    service.comes_to("StatusText", |text| !text.contains("own traffic"))?;
    let hold = || -> Result<HeldDownload> {
        let mut download = HeldDownload::start(&lab.device, &url(Family::V4.far(5), &path))?;
        download.advance(1 << 20)?;
        Ok(download)
    };
    let mut download = hold()?;
    let first = service.main_process()?;
    let start = Instant::now();
    let restart = || -> Result<()> {
        for round in 0..3 {
            let old = service.main_process()?;
            match round {
                // To the same version here.
                2 => drop(guest.run(&["dpkg", "--install", "/root/package.deb"])?),
                _ => service.systemctl("restart")?,
            }
            let now = service.main_process()?;
            assert_ne!(now, old, "{}", service.log());
            assert_eq!(service.property("ActiveState")?, "active");
            let status = service.status()?;
            assert_eq!(status["proxy"]["pid"], now, "{status:#}");
            service.systemctl("reload")?;
            service.comes_to("StatusText", |text| text.contains("proxied through"))?;
            download.advance(4 << 20).with_context(|| service.log())?;
        }
        let status = service.status()?;
        let draining = status["proxy"]["detail"]["draining"].as_array();
        let holder = draining.and_then(|all| all.iter().find(|one| one["pid"] == first));
        ensure!(holder.is_some(), "{status:#}");

        // Until the file is mended the process of before serves.
        service.write(&config("stage = 9"))?;
        let old = service.status()?["proxy"]["pid"].clone();
        service.fails_to_restart()?;
        let status = service.status()?;
        assert_eq!(status["proxy"]["pid"], old, "{}", service.log());
        let text = guest.run(&["tproxy-bpf", "status"])?.stdout;
        ensure!(text.contains("until the next one takes over"), "{text}");
        service.write(&good)?;
        service.comes_to("ActiveState", |state| state == "active")?;
        assert_ne!(service.status()?["proxy"]["pid"], old);
        Ok(())
    };
    let loaded = under_load(lab, (ECHO, PACE), restart).with_context(|| service.log());
    let ((), count) = loaded?;
    let took = start.elapsed().as_secs_f32();
    eprintln!("4 restarts in {took:.1} s under {count} connections, none lost");
    ensure!(
        download.finish()?.sha256 == content.sha256,
        "{}",
        service.log()
    );
    assert_eq!(
        whoami(&lab.device, Family::V4.far(1))?,
        Family::V4.upstream(1)
    );

    // A port cannot be taken over, so connections end.
    service.write(&config("stage = 2\n[proxy]\nport = 4321\ndrain = \"1s\""))?;
    service.systemctl("restart")?;
    ensure!(service.log().contains("the next process cannot take over"));
    let now = service.main_process()?;
    until("one process", SOON, || {
        Ok((service.processes()? == [now]).then_some(()))
    })?;
    service.write(&good)?;

    // A stop ends those that drain, too.
    let _held = hold()?;
    service.systemctl("restart")?;
    ensure!(service.processes()?.contains(&now), "{}", service.log());
    stopped(lab, &service, before, true)?;

    // And one that serves only because no other process can.
    service.systemctl("start")?;
    service.write(&config("stage = 9"))?;
    service.fails_to_restart()?;
    stopped(lab, &service, before, false)?;
    service.write(&good)?;
    service.systemctl("start")?;
    eprintln!("restarts and stops: {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Stops it: nothing is left, at once where systemd has a process to wait for.
fn stopped(lab: &Lab, service: &Service<'_>, before: &Snapshot, at_once: bool) -> Result<()> {
    service.systemctl("stop")?;
    if !at_once {
        until("the end of all processes", SOON, || {
            Ok(service.processes()?.is_empty().then_some(()))
        })?;
    }
    assert_eq!(service.processes()?, [0; 0], "{}", service.log());
    assert_eq!(service.property("ActiveState")?, "inactive");
    lab.restored(before).with_context(|| service.log())
}
