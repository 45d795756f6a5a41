//! `run --takeover`: another process takes the place of the proxy, and nobody notices.

use std::{
    env,
    fmt::Write as _,
    fs::{self, File},
    io::{Read, Write},
    net::{SocketAddr, UdpSocket},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use lab::{
    Family, Far, Lab, Snapshot, Tproxy,
    addr::url,
    probe::{at, udp_at},
    process::Process,
    servers::TcpEcho,
    traffic::{HeldDownload, connect, open_udp, under_load},
    wait::{SOON, until},
};
use nix::sys::signal::Signal;
use serde_json::Value;

const ECHO: u16 = 7;
/// 200 connections a second.
const PACE: Duration = Duration::from_millis(5);

/// The configuration of all processes of a test, and the one that serves now.
struct House<'l> {
    lab: &'l Lab,
    config: String,
    now: Tproxy,
}

impl<'l> House<'l> {
    fn start(lab: &'l Lab, more: &str) -> Result<Self> {
        let config = lab.write(more)?;
        let now = lab.tproxy(&["run", "--config", &config, "--takeover"])?;
        Ok(Self { lab, config, now })
    }

    /// Lets another process take over, and gives the one that was there.
    fn take_over(&mut self) -> Result<Tproxy> {
        let next = self
            .lab
            .tproxy(&["run", "--config", &self.config, "--takeover"])?;
        let before = std::mem::replace(&mut self.now, next);
        let taken = format!("process {} has taken over", self.pid());
        before.process().wait_for_line(&taken, SOON)?;
        let status = self.lab.status()?;
        ensure!(status["proxy"]["pid"] == self.pid(), "{status:#}");
        Ok(before)
    }

    /// Lets another process fail when this one takes nothing new any more: it cannot get the lock to attach links.
    fn fails_late(&mut self, far: &Far) -> Result<()> {
        let door = self.lab.state().join("takeover.sock");
        for _ in 0..10 {
            let lines = self.now.process().lines().len();
            let mut command = vec!["run", "--takeover"];
            command.extend(["--config", &self.config]);
            let mut next = Process::spawn(self.lab.tproxy_command(&command)?)?;
            let pid = next.pid();
            let taken = format!("process {pid} has taken over");
            let told = |log: &[String]| log[lines..].iter().any(|line| line.contains(&taken));
            // It goes and comes back in no time.
            while door.exists() && !told(&self.now.process().lines()) {
                thread::yield_now();
            }
            let lock = File::open(self.lab.state().join("lock"))?;
            lock.lock()?;
            let (mut ended, mut lost) = (None, false);
            until("an end", SOON, || {
                ended = next.ended()?;
                lost = told(&self.now.process().lines());
                Ok((lost || ended.is_some()).then_some(()))
            })?;
            drop(lock);
            if lost {
                // It was faster than this test. It serves, and the next one is to fail.
                self.now = Tproxy::from(next);
                continue;
            }
            ensure!(ended.is_some_and(|status| status.code() == Some(1)));
            let gone_on = format!("process {pid} did not take over, and this one goes on");
            let process = self.now.process();
            process.wait_for_line_after(lines, &gone_on, SOON)?;
            far.sees_proxy(self.lab)?;
            ensure!(self.lab.status()?["proxy"]["pid"] == self.pid());
            return Ok(());
        }
        Err(anyhow!("it was always too fast"))
    }

    fn pid(&self) -> u32 {
        self.now.process().pid()
    }

    fn reload(&self) -> Result<()> {
        let process = self.now.process();
        let before = process.lines().len();
        process.signal(Signal::SIGHUP)?;
        process.wait_for_line_after(before, "reloaded", SOON)?;
        Ok(())
    }
}

/// Waits until a process that drains has ended by itself.
fn ends(mut old: Tproxy) -> Result<()> {
    let status = old.process_mut().wait(SOON);
    let status = status.with_context(|| format!("{:#?}", old.process().lines()))?;
    ensure!(status.success(), "{:?}", old.process().lines());
    Ok(())
}

#[test]
fn not_one_connection_is_lost() -> Result<()> {
    // A hundred of each when a person asks for it.
    let rounds = match env::var("LAB_TAKEOVERS") {
        Ok(rounds) => rounds.parse()?,
        Err(_) => 5,
    };
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    let far = Far::start(&lab)?;
    let _echo = TcpEcho::start(&lab.internet, ECHO)?;
    let (path, content) = far.nginx.offer(96 << 20)?;
    let mut text = String::new();
    writeln!(text, "[lan]\ninterfaces = [\"{}\"]", lab.lan())?;
    let mut house = House::start(&lab, &text)?;
    let first = house.pid();
    let mut downloads = Vec::new();
    for number in 0..10 {
        let family = Family::BOTH[number % 2];
        let mut download = HeldDownload::start(&lab.device, &url(family.far(5), &path))?;
        download.advance(1 << 20)?;
        downloads.push(download);
    }
    let start = Instant::now();
    let (old, count) = under_load(&lab, (ECHO, PACE), || {
        let mut old = Vec::new();
        for round in 0..rounds {
            old.push(house.take_over()?);
            house.reload()?;
            let download = &mut downloads[round % 10];
            download.advance((32 << 20) / (rounds as u64).div_ceil(10))?;
        }
        Ok(old)
    })?;
    let took = start.elapsed();
    eprintln!("{rounds} takeovers and reloads in {took:?} under {count} connections, none lost");
    let status: Value = lab.status()?;
    let draining = &status["proxy"]["detail"]["draining"];
    let draining = draining.as_array().context("no list")?;
    let holder = draining.iter().find(|one| one["pid"] == first);
    ensure!(holder.is_some(), "{status:#}");
    for download in downloads {
        assert_eq!(download.finish()?.sha256, content.sha256);
    }
    for old in old {
        ends(old)?;
    }
    until("nobody to drain", SOON, || {
        let status = lab.status()?;
        let none = status["proxy"]["detail"]["draining"] == Value::Array(Vec::new());
        Ok(none.then_some(()))
    })?;
    house.now.stop()?;
    drop(far);
    lab.restored(&before)
}

/// A device's socket, and the one that its datagrams come from on the far side.
struct Talk {
    device: UdpSocket,
    far: UdpSocket,
    target: SocketAddr,
}

impl Talk {
    fn new(lab: &Lab, family: Family, port: u16) -> Result<Self> {
        let target = at(family.far(1), port);
        let far = udp_at(&lab.internet, target)?;
        far.set_read_timeout(Some(SOON))?;
        let device = open_udp(&lab.device, family)?;
        device.set_read_timeout(Some(SOON))?;
        Ok(Self {
            device,
            far,
            target,
        })
    }

    /// There and back. Gives where it came from.
    fn say(&self, size: usize) -> Result<SocketAddr> {
        let payload: Vec<u8> = (0..size).map(|at| at as u8).collect();
        let mut buffer = vec![0; 70_000];
        self.device.send_to(&payload, self.target)?;
        let (length, from) = self.far.recv_from(&mut buffer).context("there")?;
        ensure!(buffer[..length] == payload, "{length} of {size} bytes");
        self.far.send_to(&buffer[..length], from)?;
        let (length, peer) = self.device.recv_from(&mut buffer).context("back")?;
        ensure!(buffer[..length] == payload && peer == self.target, "{peer}");
        Ok(from)
    }
}

#[test]
fn a_device_keeps_the_port_that_its_datagrams_come_from() -> Result<()> {
    let lab = Lab::new()?;
    let mut text = String::new();
    writeln!(text, "[lan]\ninterfaces = [\"{}\"]", lab.lan())?;
    writeln!(text, "[udp]\nidle = \"6s\"")?;
    let mut house = House::start(&lab, &text)?;
    let talks = [
        Talk::new(&lab, Family::V4, 4000)?,
        Talk::new(&lab, Family::V6, 4000)?,
    ];
    let say = || -> Result<Vec<SocketAddr>> { talks.iter().map(|talk| talk.say(1200)).collect() };
    let ports = say()?;
    let mut old = Vec::new();
    // Through two processes: the last one must reach the first.
    for _ in 0..2 {
        old.push(house.take_over()?);
        for _ in 0..5 {
            assert_eq!(say()?, ports);
        }
    }
    assert_eq!(talks[0].say(65_000)?, ports[0]);
    assert_eq!(lab.proxy_count("/associations_total")?, 0);
    // A socket that is new is the new process's.
    Talk::new(&lab, Family::V4, 4001)?.say(100)?;
    assert_eq!(lab.proxy_count("/associations_total")?, 1);
    // When they idle they have no port any more, and the old processes nothing to do.
    for old in old {
        ends(old)?;
    }
    assert_ne!(say()?, ports);
    assert_eq!(say()?, say()?);
    house.now.stop()
}

#[test]
fn one_that_cannot_serve_leaves_the_proxy_as_it_was() -> Result<()> {
    let lab = Lab::new()?;
    let before = Snapshot::take(&lab)?;
    let far = Far::start(&lab)?;
    let _echo = TcpEcho::start(&lab.internet, 22)?;
    let lan = format!(
        "[udp]\nidle = \"1s\"\n[lan]\ninterfaces = [\"{}\"]\n",
        lab.lan()
    );
    let mut house = House::start(&lab, &lan)?;
    let mut held = connect(&lab.device, at(Family::V4.far(5), 22))?;
    held.set_read_timeout(Some(SOON))?;
    let attempts = [
        ("[proxy]\nport = 1\n", "proxy.port"),
        (
            "[[outbound]]\nname = \"x\"\nurl = \"socks5://no.such.host.invalid:1\"\n",
            "no.such.host.invalid",
        ),
        ("[lan]\nsources = 3\n", "sources"),
    ];
    for (more, word) in attempts {
        let config = lab.dir().join("other.toml");
        fs::write(&config, format!("{lan}{}", more.replace("[lan]\n", "")))?;
        let config = config.to_str().context("UTF-8")?;
        let output = lab.tproxy_run(&["run", "--config", config, "--takeover"])?;
        ensure!(output.code() == Some(1), "{output:?}");
        ensure!(output.stderr.contains(word), "{}", output.stderr);
        far.sees_proxy(&lab)?;
        held.write_all(b"x")?;
        held.read_exact(&mut [0])?;
        assert_eq!(lab.status()?["proxy"]["pid"], house.pid());
    }
    // Killed while it gets ready.
    for _ in 0..3 {
        let command = lab.tproxy_command(&["run", "--config", &house.config, "--takeover"])?;
        let next = Process::spawn(command)?;
        let lines = house.now.process().lines().len();
        let greeted = format!("process {} asks about taking over", next.pid());
        house.now.process().wait_for_line(&greeted, SOON)?;
        drop(next);
        let gave_up = "did not take over";
        house
            .now
            .process()
            .wait_for_line_after(lines, gave_up, SOON)?;
        far.sees_proxy(&lab)?;
    }
    house.fails_late(&far)?;
    // And one without it does not take what another one has.
    let output = lab.tproxy_run(&["run", "--config", &house.config])?;
    ensure!(output.code() == Some(1), "{output:?}");
    ensure!(output.stderr.contains("already runs"), "{}", output.stderr);
    ends(house.take_over().inspect(|_| drop(held))?)?;
    far.sees_proxy(&lab)?;
    house.now.stop()?;
    drop(far);
    lab.restored(&before)
}
