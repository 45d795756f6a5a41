//! Two gateways with one address, as `docs/two-gateways.md` has it: keepalived moves it, and devices go on.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    path::PathBuf,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Family, Lab, Namespace, Process, Tproxy,
    gateway::binary,
    process::run,
    servers::{Danted, PASSWORD, TcpEcho, USER},
    traffic::echo_line,
    wait::{SOON, patient, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;
use tproxy_userspace::control::life::{Life, life};

const PAGE: &str = include_str!("../../docs/two-gateways.md");
const ECHO: u16 = 7;
const SSH: u16 = 22;
/// A connection that takes longer is none.
const TRY: Duration = Duration::from_millis(200);
/// A device waits no longer for its next connection.
const OUTAGE: Duration = Duration::from_secs(2);

/// The only block of the page that begins with this.
fn block(fence: &str, begin: &str) -> Result<String> {
    let fence = format!("```{fence}\n");
    let mut blocks = PAGE
        .split(&fence)
        .skip(1)
        .filter_map(|rest| Some(rest.split_once("```")?.0));
    let block = blocks.find(|block| block.starts_with(begin));
    Ok(block
        .with_context(|| format!("no {begin} on the page"))?
        .to_owned())
}

/// The address that moves.
fn shared(family: Family) -> IpAddr {
    let text = match family {
        Family::V4 => "10.77.0.9",
        Family::V6 => "2001:db8:77::9",
    };
    text.parse().expect("an address")
}

/// One of the two machines.
struct Machine<'l> {
    ns: &'l Namespace,
    /// Its link to the devices, and the one to the provider.
    links: [&'static str; 2],
    config: String,
    /// keepalived's configuration.
    vrrp: PathBuf,
    proxy: Option<Tproxy>,
    keepalived: Option<Process>,
    _ssh: TcpEcho,
}

impl<'l> Machine<'l> {
    fn start(
        lab: &Lab,
        ns: &'l Namespace,
        links: [&'static str; 2],
        priority: &str,
    ) -> Result<Self> {
        let password = PASSWORD.replace(' ', "%20");
        let path = |end: &str| lab.dir().join(format!("{}{end}", ns.name()));
        let config = block("toml", "stage")?
            .replace("eth0", links[0])
            .replace("user:password", &format!("{USER}:{password}"));
        fs::write(path(".toml"), config)?;
        let program = binary()?;
        let program = program.to_str().context("not UTF-8")?;
        let vrrp = block("text", "global_defs")?
            .replace("interface eth0", &format!("interface {}", links[0]))
            .replace("priority 150", priority)
            .replace("/usr/bin/tproxy-bpf", program);
        fs::write(path(".conf"), vrrp)?;
        let mut machine = Self {
            ns,
            links,
            config: path(".toml").to_string_lossy().into_owned(),
            vrrp: path(".conf"),
            proxy: None,
            keepalived: None,
            _ssh: TcpEcho::start(ns, SSH)?,
        };
        machine.serve()?;
        machine.announce()?;
        Ok(machine)
    }

    fn serve(&mut self) -> Result<()> {
        let mut command = self.ns.command(binary()?.to_str().context("not UTF-8")?);
        command.args(["run", "-c", &self.config]);
        self.proxy = Some(Lab::tproxy_by(command)?);
        Ok(())
    }

    fn announce(&mut self) -> Result<()> {
        let file = |end: &str| self.vrrp.with_extension(end).to_string_lossy().into_owned();
        let keepalived = self.ns.spawn(&[
            "keepalived",
            "--dont-fork",
            "--log-console",
            "--vrrp",
            "--use-file",
            &file("conf"),
            "--pid",
            &file("pid"),
            "--vrrp_pid",
            &file("vrrp.pid"),
        ])?;
        self.keepalived = Some(keepalived);
        Ok(())
    }

    /// Both programs are killed, and nothing comes from its links any more: as a machine that has lost its power.
    fn dies(&mut self) -> Result<()> {
        let down: Vec<_> = self
            .links
            .iter()
            .map(|link| format!("link set {link} down"))
            .collect();
        self.ns
            .ip(&down.iter().map(String::as_str).collect::<Vec<_>>())?;
        self.keepalived = None;
        self.proxy = None;
        // keepalived's own child is in a group of its own, and would be taken for one that runs.
        for end in ["vrrp.pid", "pid"] {
            let file = self.vrrp.with_extension(end);
            // It may be about to remove it, as its parent is dead.
            let Ok(text) = fs::read_to_string(&file) else {
                continue;
            };
            let pid: u32 = text.trim().parse()?;
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).ok();
            until(&format!("the end of process {pid}"), SOON, || {
                Ok((life(pid) == Life::Gone).then_some(()))
            })?;
            fs::remove_file(&file).ok();
        }
        Ok(())
    }

    /// It starts anew. What a reboot clears is cleared.
    fn returns(&mut self, lab: &Lab) -> Result<()> {
        let program = binary()?;
        let program = program.to_str().context("not UTF-8")?;
        self.ns.run(&[program, "detach"])?;
        for family in Family::BOTH {
            let address = format!(
                "{}/{}",
                shared(family),
                if family == Family::V4 { 24 } else { 64 }
            );
            self.ns
                .try_run(&["ip", "addr", "del", &address, "dev", self.links[0]])?;
        }
        self.ns
            .try_run(&["ip", "addr", "del", "fe80::77:9/64", "dev", self.links[0]])?;
        let up: Vec<_> = self
            .links
            .iter()
            .map(|link| format!("link set {link} up"))
            .collect();
        self.ns
            .ip(&up.iter().map(String::as_str).collect::<Vec<_>>())?;
        ways_out(lab, self.ns, self.links[1])?;
        self.serve()?;
        self.announce()
    }

    fn has(&self, family: Family) -> Result<bool> {
        let addresses = self
            .ns
            .run(&["ip", "-o", "addr", "show", "dev", self.links[0]])?
            .stdout;
        Ok(addresses.contains(&format!(" {}/", shared(family))))
    }

    /// Waits until it has both addresses, or none.
    fn comes_to_have(&self, wanted: bool) -> Result<()> {
        let what = format!("{} to have the address: {wanted}", self.ns.name());
        let waited = until(&what, 3 * SOON, || {
            let both = [self.has(Family::V4)?, self.has(Family::V6)?];
            Ok((both == [wanted; 2]).then_some(()))
        });
        let log = self
            .keepalived
            .as_ref()
            .map(|process| process.lines().join("\n"));
        waited.with_context(|| log.unwrap_or_default())
    }

    /// How many connections its proxy has taken so far.
    fn taken(&self) -> Result<u64> {
        let program = binary()?;
        let mut command = self.ns.command(program.to_str().context("not UTF-8")?);
        command.args(["status", "--json"]);
        let status: Value = run(command, SOON)?.ok()?.json()?;
        let count = &status["proxy"]["detail"]["traffic"]["connections_total"];
        count.as_u64().with_context(|| format!("{status:#}"))
    }

    /// A device reaches it by the shared address, and its proxy does not take that.
    fn answers_itself(&self, device: &Namespace) -> Result<()> {
        let before = self.taken()?;
        for family in Family::BOTH {
            echo_line(device, SocketAddr::new(shared(family), SSH))?;
        }
        ensure!(
            self.taken()? == before,
            "a connection to the gateway was proxied"
        );
        Ok(())
    }
}

/// The default routes, which go with their link.
fn ways_out(lab: &Lab, ns: &Namespace, link: &str) -> Result<()> {
    let address = if ns.name() == lab.gateway.name() {
        Family::gateway_wan
    } else {
        Family::neighbour
    };
    // IPv6 loses its addresses with the link.
    let own = format!("addr replace {}/64 dev {link} nodad", address(Family::V6));
    let v4 = format!(
        "route replace default via {} dev {link}",
        Family::V4.internet()
    );
    let v6 = format!(
        "route replace ::/0 via {} dev {link}",
        Family::V6.internet()
    );
    ns.ip(&[&own, &v4, &v6])
}

/// One new connection of the device there and back.
fn works(target: SocketAddr) -> bool {
    let limit = patient(TRY);
    let attempt = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&target, limit)?;
        stream.set_read_timeout(Some(limit))?;
        stream.write_all(b"hello")?;
        let mut back = [0; 5];
        stream.read_exact(&mut back)?;
        Ok(&back == b"hello")
    };
    attempt().unwrap_or(false)
}

/// Tries one connection after the other until `over` and one works. Gives the longest time without one.
fn outage(device: &Namespace, family: Family, over: &AtomicBool) -> Result<Duration> {
    let target = SocketAddr::new(family.far(1), ECHO);
    device.enter(|| {
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        loop {
            let ends = over.load(Relaxed);
            if works(target) {
                longest = longest.max(last.elapsed());
                last = Instant::now();
                if ends {
                    return Ok(longest);
                }
            }
            if last.elapsed() > patient(4 * SOON) {
                bail!("no connection of {family:?} for {:?}", last.elapsed());
            }
        }
    })?
}

/// The longest times without a new connection of each family, from just before `work` until after it.
fn outages(device: &Namespace, work: impl FnOnce() -> Result<()>) -> Result<[Duration; 2]> {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let tries = Family::BOTH.map(|family| {
            scope.spawn({
                let over = &over;
                move || outage(device, family, over)
            })
        });
        let worked = work();
        over.store(true, Relaxed);
        let [v4, v6] = tries.map(|one| one.join().expect("it does not panic"));
        worked?;
        Ok([v4?, v6?])
    })
}

/// The second machine beside the first: a port of the device's switch, and the provider's link that it has.
fn second<'l>(lab: &'l Lab, device: &Namespace) -> Result<&'l Namespace> {
    let b = lab.neighbour.as_ref().context("a neighbour")?;
    b.sysctl(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
    ])?;
    let (v4, v6) = (Family::V4, Family::V6);
    // The device is a switch with three ports, one of which is its own.
    device.ip(&[
        "link add br0 type bridge mcast_snooping 0",
        "addr flush dev eth0",
        &format!("link add eth1 type veth peer name lan0 netns {}", b.name()),
        "link set eth0 master br0",
        "link set eth1 master br0",
        "link set eth1 up",
        "link set br0 up",
        &format!("addr add {}/24 dev br0", v4.device()),
        &format!("addr add {}/64 dev br0 nodad", v6.device()),
        &format!("route replace default via {}", shared(v4)),
        &format!("route replace ::/0 via {}", shared(v6)),
    ])?;
    b.ip(&[
        "link set lan0 up",
        "addr add 10.77.0.3/24 dev lan0",
        "addr add 2001:db8:77::3/64 dev lan0 nodad",
    ])?;
    ways_out(lab, b, "eth0")?;
    Ok(b)
}

#[test]
fn the_other_gateway_takes_new_connections_within_two_seconds() -> Result<()> {
    let lab = Lab::builder().neighbour().build()?;
    let device = &lab.device;
    let b = second(&lab, device)?;
    let _danted = Danted::start(&lab.internet, lab.dir())?;
    let echo = TcpEcho::start(&lab.internet, ECHO)?;
    let mut a = Machine::start(&lab, &lab.gateway, ["lan0", "wan0"], "priority 150")?;
    a.comes_to_have(true)?;
    let mut b = Machine::start(&lab, b, ["lan0", "eth0"], "priority 100")?;
    outages(device, || Ok(()))?;
    ensure!(
        !b.has(Family::V4)? && !b.has(Family::V6)?,
        "both have the address"
    );
    a.answers_itself(device)?;

    // The machine is gone.
    let [v4, v6] = outages(device, || {
        a.dies()?;
        b.comes_to_have(true)
    })?;
    eprintln!("a machine that is gone: {v4:?} without new connections over IPv4, {v6:?} over IPv6");
    ensure!(
        v4 < patient(OUTAGE) && v6 < patient(OUTAGE),
        "{v4:?} and {v6:?} without a connection"
    );
    b.answers_itself(device)?;

    // It is there again, and takes the address.
    let [v4, v6] = outages(device, || {
        a.returns(&lab)?;
        a.comes_to_have(true)?;
        b.comes_to_have(false)
    })?;
    eprintln!("it is there again: {v4:?} over IPv4, {v6:?} over IPv6");
    ensure!(
        v4 < patient(OUTAGE) && v6 < patient(OUTAGE),
        "{v4:?} and {v6:?} without a connection"
    );
    a.answers_itself(device)?;

    // Only its proxy is dead.
    let [v4, v6] = outages(device, || {
        a.proxy.take().context("none")?.kill9();
        b.comes_to_have(true)
    })?;
    eprintln!("a proxy that is dead: {v4:?} over IPv4, {v6:?} over IPv6");
    b.answers_itself(device)?;

    // All of that was proxied, but for what went direct while the first one's proxy was dead.
    let clients = echo.clients();
    let upstreams = Family::BOTH.map(|family| family.upstream(1));
    let proxied = clients
        .iter()
        .filter(|client| upstreams.contains(&client.ip()));
    ensure!(proxied.count() >= 8, "{clients:?}");
    ensure!(
        upstreams.contains(&clients.last().context("none")?.ip()),
        "{clients:?}"
    );
    b.proxy.take().context("none")?.stop()
}
