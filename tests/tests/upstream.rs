//! The outbound's server: found by its name, spared by the kernel half, and never the proxy itself.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, Process, Snapshot, Tproxy,
    gateway::binary,
    probe::{at, fate},
    process,
    servers::{Dnsmasq, Microsocks, Nginx},
    traffic::whoami,
    wait::{SOON, until},
    ways::soon,
};
use nix::sys::signal::Signal;

/// The name of the server.
const NAME: &str = "socks.lab";
/// Its port.
const SOCKS: u16 = 1080;
/// The port that the proxy is given where a test must know it.
const OWN: u16 = 7007;

/// A lab with a name server and something to ask for in the internet.
struct Upstream {
    lab: Lab,
    dns: Option<Dnsmasq>,
    _nginx: Nginx,
}

impl Upstream {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        let dns = Dnsmasq::start_renaming(&lab.internet, lab.dir())?;
        let nginx = Nginx::start(&lab.internet, lab.dir())?;
        // The BPF file system, if the machine has none yet, must not be mounted where nobody else sees it.
        lab.tproxy_run(&["status"])?.ok()?;
        Ok(Self {
            lab,
            dns: Some(dns),
            _nginx: nginx,
        })
    }

    fn rename(&self, addresses: &[IpAddr]) -> Result<()> {
        let dns = self.dns.as_ref().context("the name server is down")?;
        dns.rename(NAME, addresses)
    }

    /// A SOCKS5 server at the `n`th upstream address, IPv4.
    fn socks(&self, n: u8) -> Result<Microsocks> {
        Microsocks::start_at(&self.lab.internet, at(Family::V4.upstream(n), SOCKS))
    }

    /// `tproxy-bpf run` on a machine whose `/etc/resolv.conf` names the lab's name server.
    fn command(&self, outbound: &str) -> Result<Command> {
        let dir = self.lab.dir();
        let resolv = dir.join("resolv.conf");
        let server = Family::V4.far(3);
        let text = format!("nameserver {server}\noptions timeout:1 attempts:1\n");
        fs::write(&resolv, text)?;
        let config = dir.join("config.toml");
        let text = format!(
            "[lan]\ninterfaces = [\"{}\"]\n[tcp]\nconnect_timeout = \"2s\"\n[proxy]\nport = {OWN}\n\
             [[outbound]]\nname = \"socks\"\nurl = \"{outbound}\"\n",
            self.lab.lan()
        );
        fs::write(&config, text)?;
        // Its own mount namespace: the machine's file stays as it is.
        let mut command = self.lab.gateway.command("unshare");
        command
            .args(["--mount", "sh", "-c"])
            .arg("mount --bind \"$1\" /etc/resolv.conf && shift && exec \"$@\"")
            .arg("sh")
            .arg(resolv)
            .arg(binary()?)
            .args(["run", "-c"])
            .arg(config);
        Ok(command)
    }

    fn run(&self, outbound: &str) -> Result<Tproxy> {
        Lab::tproxy_by(self.command(outbound)?)
    }

    /// Traffic of the device comes from the `n`th upstream address.
    fn goes_by(&self, n: u8) -> Result<()> {
        let seen = whoami(&self.lab.device, Family::V4.far(1))?;
        ensure!(seen == Family::V4.upstream(n), "the server saw {seen}");
        Ok(())
    }

    /// The prefixes of the bypass set that have this origin.
    fn bypassed(&self, origin: &str) -> Result<BTreeSet<String>> {
        Ok(self
            .lab
            .bypass_list()?
            .iter()
            .filter(|entry| entry["origin"] == origin)
            .filter_map(|entry| Some(entry["prefix"].as_str()?.to_owned()))
            .collect())
    }

    fn spares(&self, addresses: &[IpAddr]) -> Result<()> {
        let bypassed = self.bypassed("outbound")?;
        ensure!(bypassed == hosts(addresses), "bypassed: {bypassed:?}");
        Ok(())
    }

    /// The server's addresses by `status`.
    fn known(&self) -> Result<BTreeSet<IpAddr>> {
        let status = self.lab.status()?;
        Ok(serde_json::from_value(
            status["proxy"]["detail"]["servers"].clone(),
        )?)
    }
}

fn hosts(addresses: &[IpAddr]) -> BTreeSet<String> {
    let host = |ip: &IpAddr| format!("{ip}/{}", Family::of(*ip).host_bits());
    addresses.iter().map(host).collect()
}

#[test]
fn a_name_is_asked_for_by_marked_sockets_and_what_it_means_is_spared() -> Result<()> {
    let upstream = Upstream::new()?;
    let lab = &upstream.lab;
    let before = Snapshot::take(lab)?;
    lab.gateway.run(&[
        "nft",
        "add table inet marked; \
         add chain inet marked out { type filter hook output priority filter; }; \
         add rule inet marked out meta l4proto { tcp, udp } th dport 53 meta mark & 0xf0 != 0xb0 drop",
    ])?;
    let socks = upstream.socks(2)?;
    let addresses = Family::BOTH.map(|family| family.upstream(2));
    upstream.rename(&addresses)?;
    let tproxy = upstream.run(&socks.url_by(NAME))?;
    // Nobody is at the IPv6 address.
    upstream.goes_by(2)?;
    upstream.spares(&addresses)?;
    assert_eq!(upstream.known()?, addresses.into());
    let text = lab.tproxy_run(&["status"])?.ok()?.stdout;
    for address in addresses {
        assert!(text.contains(&address.to_string()), "{text}");
    }
    // The device's own way to the server is spared too.
    let passed = lab.packets("bypassed")?;
    assert_eq!(fate(&lab.device, at(addresses[0], 9))?.0, b"");
    assert!(lab.packets("bypassed")? > passed);
    tproxy.stop()?;
    lab.gateway.run(&["nft", "delete table inet marked"])?;
    lab.restored(&before)
}

#[test]
fn a_name_that_moves_is_followed_and_a_dead_name_server_breaks_nothing() -> Result<()> {
    let mut upstream = Upstream::new()?;
    let (one, two) = (Family::V4.upstream(1), Family::V4.upstream(2));
    let first = upstream.socks(1)?;
    upstream.rename(&[one])?;
    let tproxy = upstream.run(&first.url_by(NAME))?;
    upstream.goes_by(1)?;
    upstream.spares(&[one])?;

    // The server is gone: the name is looked up at once.
    let second = upstream.socks(2)?;
    upstream.rename(&[two])?;
    drop(first);
    soon("the new address", || upstream.goes_by(2))?;
    soon("the bypass set", || upstream.spares(&[two]))?;
    assert_eq!(upstream.known()?, [two].into());

    // Both are there: the name is looked up when its time is over, 10 s at least.
    let first = upstream.socks(1)?;
    upstream.rename(&[one])?;
    until("the next look-up", Duration::from_secs(20), || {
        Ok(upstream.spares(&[one]).ok())
    })?;
    upstream.goes_by(1)?;

    // No name server: what is known goes on to be used, also after look-ups that failed.
    drop(upstream.dns.take());
    let port = at(one, SOCKS);
    drop(first);
    let failed = "Still in use: 198.51.100.1:1080";
    soon("a look-up that fails", || {
        upstream.goes_by(1).expect_err("nobody is there");
        let lines = tproxy.process().lines();
        ensure!(lines.iter().any(|line| line.contains(failed)), "{lines:?}");
        Ok(())
    })?;
    let _first = Microsocks::start_at(&upstream.lab.internet, port)?;
    upstream.goes_by(1)?;
    upstream.spares(&[one])?;
    drop(second);
    tproxy.stop()
}

#[test]
fn a_start_that_waits_for_the_name_server_can_be_ended() -> Result<()> {
    let upstream = Upstream::new()?;
    let lab = &upstream.lab;
    let before = Snapshot::take(lab)?;
    let dns = upstream.dns.as_ref().context("it was started")?;
    dns.process().signal(Signal::SIGSTOP)?;
    let mut process = Process::spawn(upstream.command("socks5://socks.lab:1080")?)?;
    until("the proxy to take its place", SOON, || {
        Ok(lab.state().exists().then_some(()))
    })?;
    process.stop(Duration::from_secs(5))?;
    lab.restored(&before)
}

#[test]
fn an_outbound_that_is_the_proxy_itself_does_not_start() -> Result<()> {
    let upstream = Upstream::new()?;
    let lab = &upstream.lab;
    let before = Snapshot::take(lab)?;
    upstream.rename(&[Family::V4.gateway_lan()])?;
    let own = [
        "127.0.0.1".to_owned(),
        "0.0.0.0".to_owned(),
        "[::1]".to_owned(),
        "[::ffff:127.0.0.1]".to_owned(),
        Family::V4.gateway_wan().to_string(),
        format!("[{}]", Family::V6.gateway_lan()),
        NAME.to_owned(),
    ];
    for host in own {
        let command = upstream.command(&format!("socks5://{host}:{OWN}"))?;
        let output = process::run(command, Duration::from_mins(1))?;
        assert_eq!(output.code(), Some(1), "{host}: {}", output.stderr);
        for part in ["leads back into this proxy", "7007", "`[proxy] port`"] {
            assert!(output.stderr.contains(part), "{host}: {}", output.stderr);
        }
        lab.restored(&before)?;
    }
    // A name that means nothing, and a name server that does not answer for it.
    let command = upstream.command("socks5://nobody.lab:1080")?;
    let output = process::run(command, Duration::from_mins(1))?;
    assert_eq!(output.code(), Some(1), "{}", output.stderr);
    for part in ["nobody.lab", "/etc/resolv.conf"] {
        assert!(output.stderr.contains(part), "{}", output.stderr);
    }
    lab.restored(&before)?;
    // Another program of the gateway may be the server; that is told.
    let tproxy = upstream.run("socks5://127.0.0.1:7008")?;
    let lines = tproxy.process().lines();
    assert!(
        lines
            .iter()
            .any(|line| line.contains("runs on this gateway")),
        "{lines:?}"
    );
    upstream.spares(&[])?;
    tproxy.stop()
}

#[test]
fn a_name_that_becomes_the_proxy_itself_is_an_alarm_until_it_moves_on() -> Result<()> {
    let upstream = Upstream::new()?;
    let lab = &upstream.lab;
    let server = Microsocks::start_at(&lab.internet, SocketAddr::new(Family::V4.upstream(1), OWN))?;
    upstream.rename(&[Family::V4.upstream(1)])?;
    let tproxy = upstream.run(&server.url_by(NAME))?;
    upstream.goes_by(1)?;
    upstream.rename(&[[127, 0, 0, 1].into()])?;
    drop(server);
    soon("the loop to be told", || {
        fate(&lab.device, at(Family::V4.far(1), 80))?;
        ensure!(lab.proxy_count("/failures/loop")? > 0, "no loop counted");
        Ok(())
    })?;
    let lines = tproxy.process().lines();
    assert!(
        lines
            .iter()
            .any(|line| line.contains("leads back into this proxy")),
        "{lines:?}"
    );
    let text = lab.tproxy_run(&["status"])?.ok()?.stdout;
    assert!(text.contains(" loop"), "{text}");
    // Nothing came to the listener.
    assert_eq!(lab.proxy_count("/failures/own_port")?, 0);
    upstream.spares(&[])?;
    let _server = Microsocks::start_at(&lab.internet, at(Family::V4.upstream(2), OWN))?;
    upstream.rename(&[Family::V4.upstream(2)])?;
    soon("the next address", || upstream.goes_by(2))?;
    soon("the bypass set", || {
        upstream.spares(&[Family::V4.upstream(2)])
    })?;
    tproxy.stop()
}

#[test]
fn what_is_spared_goes_with_the_proxy_and_what_others_spare_stays() -> Result<()> {
    let upstream = Upstream::new()?;
    let lab = &upstream.lab;
    let (one, two) = (Family::V4.upstream(1), Family::V4.upstream(2));
    let url = |address: IpAddr| format!("socks5://{address}:{SOCKS}");
    lab.tproxy_run(&["attach", lab.lan()])?.ok()?;
    lab.bypass(&["add", &one.to_string()])?;

    let tproxy = upstream.run(&url(two))?;
    upstream.spares(&[two])?;
    tproxy.stop()?;
    upstream.spares(&[])?;

    // One that the user put there stays the user's.
    let tproxy = upstream.run(&url(one))?;
    upstream.spares(&[])?;
    assert_eq!(upstream.bypassed("command")?, hosts(&[one]));
    tproxy.stop()?;
    assert_eq!(upstream.bypassed("command")?, hosts(&[one]));

    // A killed proxy's is what the next start corrects.
    let tproxy = upstream.run(&url(two))?;
    tproxy.kill9();
    upstream.spares(&[two])?;
    let tproxy =
        upstream.run(&url(Family::V6.upstream(3)).replace("2001:db8:b::3", "[2001:db8:b::3]"))?;
    upstream.spares(&[Family::V6.upstream(3)])?;
    lab.bypass(&["flush"])?;
    upstream.spares(&[])?;
    tproxy.stop()?;
    upstream.spares(&[])
}
