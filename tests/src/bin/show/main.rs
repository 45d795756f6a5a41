//! The show: a lab, `tproxy-bpf run` on its gateway, real traffic of its device, and what became of it.
//!
//! `show` stays up until Ctrl-C, `show --once` ends after the account. The exit code is 0 only if
//! everything went as expected.

mod split;

use std::{
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr},
    process::ExitCode,
    time::Instant,
};

use anyhow::{Context, Result, bail, ensure};
use lab::{
    Family, Lab, Snapshot, Tproxy,
    addr::url,
    gateway::{Counter, binary},
    interrupt::Interrupt,
    servers::{Dnsmasq, Nginx, TcpEcho, UdpEcho},
    traffic::{self, whoami},
};
use serde_json::Value;

const USAGE: &str = "usage: show [--once]";
/// The bytes of the downloads.
const FILE: u64 = 64 << 20;
/// The port of the UDP echo.
const ECHO: u16 = 7000;

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Did everything go as expected?
fn run() -> Result<bool> {
    let mut once = false;
    for arg in std::env::args().skip(1) {
        match arg.as_str() {
            "--once" => once = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(true);
            }
            other => bail!("unknown argument \"{other}\"; {USAGE}"),
        }
    }
    let interrupt = Interrupt::catch()?;
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the lab makes network namespaces, which needs root"
    );
    let stage = Stage::set()?;
    println!(
        "A lab of three network namespaces:\n\n  \
         device {}  ──  gateway {} | {}  ──  internet {}\n         \
         {}              {} | {}          {}\n",
        Family::V4.device(),
        Family::V4.gateway_lan(),
        Family::V4.gateway_wan(),
        Family::V4.far(1),
        Family::V6.device(),
        Family::V6.gateway_lan(),
        Family::V6.gateway_wan(),
        Family::V6.far(1),
    );
    let before = Snapshot::take(&stage.lab)?;
    let run = "run --lan lan0 --wan default --outbound direct://";
    println!("On the gateway: tproxy-bpf {run}\n");
    let start = Instant::now();
    let tproxy = stage.lab.tproxy(&run.split(' ').collect::<Vec<_>>())?;
    println!("Ready after {} ms.\n", start.elapsed().as_millis());

    let mut account = Account::default();
    stage.play(&mut account);
    account.check("counters", || stage.counters());
    account.check("status", || stage.status());
    split::play(&mut account)?;
    println!();
    if !once {
        stage.print_commands()?;
        let signal = interrupt.wait();
        println!(
            "\n{}: ending.",
            signal.map_or("end", |signal| signal.as_str())
        );
    }
    account.check("SIGTERM: it detaches and leaves nothing", || {
        stop(tproxy, &stage.lab, &before)
    });
    println!("\n{} of {} as expected.", account.good, account.all);
    Ok(account.good == account.all)
}

fn stop(tproxy: Tproxy, lab: &Lab, before: &Snapshot) -> Result<String> {
    tproxy.stop()?;
    lab.restored(before)?;
    Ok("rules, routes, tc, programs, pins and sysctls as before".to_owned())
}

/// Counts what was expected and what came.
#[derive(Default)]
struct Account {
    good: usize,
    all: usize,
}

impl Account {
    /// Does something, and prints a line on it.
    fn check(&mut self, what: &str, work: impl FnOnce() -> Result<String>) {
        self.all += 1;
        match work() {
            Ok(outcome) => {
                self.good += 1;
                println!("  ok    {what}: {outcome}");
            }
            Err(error) => println!("  WRONG {what}: {error:#}"),
        }
    }
}

/// The lab with all that takes part.
struct Stage {
    // Before the lab, so that they end before it does.
    nginx: Nginx,
    dnsmasq: Dnsmasq,
    udp_echo: UdpEcho,
    ssh: TcpEcho,
    lab: Lab,
}

impl Stage {
    fn set() -> Result<Self> {
        let lab = Lab::new()?;
        Ok(Self {
            nginx: Nginx::start(&lab.internet, lab.dir())?,
            dnsmasq: Dnsmasq::start(&lab.internet)?,
            udp_echo: UdpEcho::start(&lab.internet, ECHO..=ECHO)?,
            ssh: TcpEcho::start(&lab.gateway, 22)?,
            lab,
        })
    }

    fn play(&self, account: &mut Account) {
        println!("Through the proxy (servers see the gateway):");
        for family in Family::BOTH {
            account.check(&format!("TCP {family:?}: download"), || {
                self.download(family)
            });
            account.check(&format!("TCP {family:?}: upload"), || self.upload(family));
            account.check(&format!("UDP {family:?}: DNS"), || self.dns(family));
            account.check(&format!("UDP {family:?}: datagrams"), || {
                self.datagrams(family)
            });
        }
        println!("\nPast it, in the kernel (servers see the device):");
        for family in Family::BOTH {
            let prefix = bypassed(family);
            account.check(&format!("bypass add {prefix}"), || self.bypass(family));
            account.check(
                &format!("port 22 of the gateway's {}", family.gateway_wan()),
                || self.own_address(family),
            );
            account.check(&format!("ping {}", family.far(1)), || {
                let target = family.far(1).to_string();
                self.lab.device.run(&["ping", "-c1", "-W2", &target])?;
                Ok("answered".to_owned())
            });
        }
        println!(
            "\nThe gateway's own programs (servers see the gateway either way, so the counters tell):"
        );
        for family in Family::BOTH {
            account.check(&format!("TCP {family:?}: curl"), || self.own(family));
            account.check(&format!("TCP {family:?}: exempt run -- curl"), || {
                self.exempt(family)
            });
        }
        println!("\nIn its own words:");
    }

    fn own(&self, family: Family) -> Result<String> {
        let before = self.lab.packets("tcp_opened")?;
        let seen = whoami(&self.lab.gateway, family.far(1))?;
        came_from(seen, family.gateway_wan())?;
        let opened = self.lab.packets("tcp_opened")? - before;
        ensure!(opened == 1, "{opened} connections came to the proxy");
        Ok("its connection went through the proxy, once".to_owned())
    }

    fn exempt(&self, family: Family) -> Result<String> {
        let before = self.lab.packets("tcp_opened")?;
        let url = url(family.far(1), "whoami");
        let curl = [
            "exempt",
            "run",
            "--",
            "curl",
            "-sSf",
            "--max-time",
            "10",
            &url,
        ];
        self.lab.tproxy_run(&curl)?.ok()?;
        let opened = self.lab.packets("tcp_opened")? - before;
        ensure!(opened == 0, "{opened} connections came to the proxy");
        Ok("its connection went past the proxy".to_owned())
    }

    fn download(&self, family: Family) -> Result<String> {
        let server = family.far(1);
        let (path, content) = self.nginx.offer(FILE)?;
        let down = traffic::download(&self.lab.device, &url(server, &path))?;
        ensure!(down.sha256 == content.sha256, "the file came damaged");
        let seen = self.nginx.request_for(&format!("/{path}"))?.client;
        came_from(seen, family.gateway_wan())?;
        let rate = content.bytes as f64 * 8e-9 / down.elapsed.as_secs_f64();
        Ok(format!(
            "{} MiB from {server}, whole, {rate:.1} Gbit/s; it saw {seen}",
            FILE >> 20
        ))
    }

    fn upload(&self, family: Family) -> Result<String> {
        let (_, content) = self.nginx.offer(FILE)?;
        let name = format!("{family:?}");
        let path = format!("/upload/{name}");
        let to = url(family.far(2), &path);
        traffic::upload(&self.lab.device, &content.path, &to)?;
        ensure!(
            self.nginx.uploaded(&name)? == content.sha256,
            "the file came damaged"
        );
        let seen = self.nginx.request_for(&path)?.client;
        came_from(seen, family.gateway_wan())?;
        Ok(format!(
            "{} MiB to {}, whole; it saw {seen}",
            FILE >> 20,
            family.far(2)
        ))
    }

    fn dns(&self, family: Family) -> Result<String> {
        let server = family.far(3);
        let asked = self.dnsmasq.clients_of("host.lab").len();
        let over_udp = traffic::dig(&self.lab.device, server, "host.lab", "AAAA")?;
        let seen = self.dnsmasq.client_of("host.lab", asked + 1)?;
        let over_tcp = traffic::dig_tcp(&self.lab.device, server, "host.lab", "AAAA")?;
        ensure!(
            over_udp == over_tcp && over_udp == [Family::V6.far(1).to_string()],
            "the answers are {over_udp:?} over UDP and {over_tcp:?} over TCP"
        );
        came_from(seen, family.gateway_wan())?;
        Ok(format!(
            "{server} said {}; it saw {seen}",
            over_udp.concat()
        ))
    }

    fn datagrams(&self, family: Family) -> Result<String> {
        let target = SocketAddr::new(family.far(4), ECHO);
        self.udp_echo.forget();
        traffic::echo_sizes(&self.lab.device, target, &[1, 1_472, 1_473, 9_000, 65_507])?;
        let clients = self.udp_echo.clients();
        let (seen, _) = clients.first_key_value().context("no datagram came")?;
        ensure!(
            clients.len() == 1,
            "one socket became {} clients",
            clients.len()
        );
        came_from(seen.ip(), family.gateway_wan())?;
        Ok(format!(
            "1 to 65,507 bytes to {target} and back, whole; it saw {seen}"
        ))
    }

    fn bypass(&self, family: Family) -> Result<String> {
        let prefix = bypassed(family);
        let server = family.upstream(1);
        let device = &self.lab.device;
        came_from(whoami(device, server)?, family.gateway_wan())
            .context("before it was bypassed")?;
        self.lab.tproxy_run(&["bypass", "add", prefix])?.ok()?;
        let seen = whoami(device, server)?;
        came_from(seen, family.device()).context("once it was bypassed")?;
        let target = SocketAddr::new(server, ECHO);
        self.udp_echo.forget();
        traffic::echo_sizes(device, target, &[1, 9_000])?;
        let clients = self.udp_echo.clients();
        let (udp, _) = clients.first_key_value().context("no datagram came")?;
        came_from(udp.ip(), family.device())?;
        Ok(format!(
            "the next TCP and UDP go direct; {server} saw {seen}"
        ))
    }

    fn own_address(&self, family: Family) -> Result<String> {
        let target = SocketAddr::new(family.gateway_wan(), 22);
        let mut stream = traffic::connect(&self.lab.device, target)?;
        stream.write_all(b"hello")?;
        stream.shutdown(Shutdown::Write)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer == "hello", "it answered {answer:?}");
        let clients = self.ssh.clients();
        let seen = clients.last().context("nobody came")?;
        came_from(seen.ip(), family.device())?;
        Ok(format!("answers as ever; it saw {}", seen.ip()))
    }

    /// Prints the counters, and wants those that this traffic must have moved.
    fn counters(&self) -> Result<String> {
        let counters: Vec<Counter> = self.lab.counters()?;
        let moved = counters.iter().filter(|counter| counter.packets > 0);
        for effect in ["steer", "pass", "drop"] {
            for counter in moved.clone().filter(|counter| counter.effect == effect) {
                println!(
                    "        {effect:<5} {:<18} {:>9} packets {:>12} bytes  {}",
                    counter.reason, counter.packets, counter.bytes, counter.sentence
                );
            }
        }
        let wanted = [
            ("steer", "tcp_opened"),
            ("steer", "tcp_steered"),
            ("steer", "udp_steered"),
            ("steer", "fragment_steered"),
            ("pass", "bypassed"),
            ("pass", "own_address"),
            ("pass", "other_protocol"),
            ("pass", "reply_sent"),
            ("pass", "exempt"),
        ];
        for (effect, reason) in wanted {
            ensure!(
                moved
                    .clone()
                    .any(|counter| counter.reason == reason && counter.effect == effect),
                "\"{reason}\" has not counted anything"
            );
        }
        let dropped: Vec<&str> = moved
            .filter(|counter| counter.effect == "drop")
            .map(|counter| counter.reason.as_str())
            .collect();
        ensure!(dropped.is_empty(), "packets were dropped: {dropped:?}");
        Ok(format!(
            "{} reasons counted something, nothing was dropped",
            counters
                .iter()
                .filter(|counter| counter.packets > 0)
                .count()
        ))
    }

    /// Prints the status, and wants a running proxy with all it relayed.
    fn status(&self) -> Result<String> {
        let shown = self.lab.tproxy_run(&["status"])?.ok()?;
        for line in shown.stdout.lines() {
            println!("        {line}");
        }
        let status: Value = self.lab.tproxy_run(&["status", "--json"])?.ok()?.json()?;
        ensure!(
            status["proxy"]["running"] == true,
            "it says that no proxy runs"
        );
        let link = &status["links"][0]["name"];
        ensure!(link == self.lab.lan(), "it is attached to {link}");
        let traffic = &status["proxy"]["detail"]["traffic"];
        let count = |key: &str| traffic[key].as_u64().unwrap_or_default();
        let (connections, associations) = (count("connections_total"), count("associations_total"));
        // Download, upload, DNS over TCP, the look at who asks, and the gateway's own; DNS and the echo. Two families.
        ensure!(
            connections >= 10 && associations >= 4,
            "it relayed {connections} connections and {associations} associations, where there were 10 and 4"
        );
        Ok(format!(
            "{connections} connections and {associations} associations relayed"
        ))
    }

    fn print_commands(&self) -> Result<()> {
        let enter = |ns: &lab::Namespace| format!("nsenter --net={}", ns.path().display());
        let (device, gateway) = (enter(&self.lab.device), enter(&self.lab.gateway));
        let program = binary()?;
        let program = program.display();
        let (v4, v6) = (Family::V4, Family::V6);
        println!(
            "The lab stays up until Ctrl-C. In another terminal, as root:

  # who does a server see? (first word)
  {device} curl -s {}
  {device} curl -s {}
  {device} dig +short @{} host.lab
  # send a prefix past the proxy, look, and take it back
  {gateway} {program} bypass add 203.0.113.0/24 --comment 'to try'
  {gateway} {program} bypass list --hits
  {gateway} {program} bypass del 203.0.113.0/24
  # a program of the gateway that goes past the proxy
  {gateway} {program} exempt run -- curl -s {}
  # what it does, and why
  {gateway} {program} status
  {gateway} {program} counters
  # a gibibyte of throughput, then the same past the proxy
  {device} curl -o /dev/null {}
  {device} curl -o /dev/null {}
",
            url(v4.far(1), "whoami"),
            url(v6.far(1), "whoami"),
            v4.far(3),
            url(v4.far(1), "whoami"),
            url(v4.far(1), &self.nginx.offer(1 << 30)?.0),
            url(v4.upstream(1), &self.nginx.offer(1 << 30)?.0),
        );
        Ok(())
    }
}

const fn bypassed(family: Family) -> &'static str {
    match family {
        Family::V4 => "198.51.100.0/24",
        Family::V6 => "2001:db8:b::/48",
    }
}

fn came_from(seen: IpAddr, expected: IpAddr) -> Result<()> {
    ensure!(
        seen == expected,
        "the server saw {seen}, where {expected} was expected"
    );
    Ok(())
}
