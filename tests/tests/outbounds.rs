//! What devices do through each kind of outbound but SOCKS5: HTTP proxies with and without TLS, chains, none at all.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context, Result};
use lab::{
    Family, Lab, Tproxy,
    addr::url,
    probe::{at, carry, is_reset_at_once},
    servers::{Danted, Nginx, Stunnel, TcpEcho, Tinyproxy, UdpEcho},
    traffic::{self, HeldDownload, open_udp, whoami},
    wait::SOON,
};

const MIB: u64 = 1 << 20;
/// Sizes for the families.
const MUCH: [u64; 2] = [1024 * MIB, 16 * MIB];
const SOME: [u64; 2] = [16 * MIB; 2];

/// Downloads and uploads of such sizes to each family, all of it by the fourth upstream address.
fn carries(lab: &Lab, nginx: &Nginx, sizes: [u64; 2], what: &str) -> Result<()> {
    for (family, bytes) in Family::BOTH.into_iter().zip(sizes) {
        let (path, content) = nginx.offer(bytes)?;
        let server = family.far(1);
        let down = traffic::download(&lab.device, &url(server, &path))?;
        assert_eq!((down.bytes, &down.sha256), (content.bytes, &content.sha256));
        let name = format!("{what}-{family:?}").replace(' ', "-");
        let to = url(server, &format!("upload/{name}"));
        let up = traffic::upload(&lab.device, &content.path, &to)?;
        assert_eq!(nginx.uploaded(&name)?, content.sha256);
        assert_eq!(whoami(&lab.device, server)?, family.upstream(4));
        eprintln!("{what} to {family:?}: down {:?}, up {up:?}", down.elapsed);
    }
    Ok(())
}

/// `tproxy-bpf run` on a machine that trusts this proxy's authority.
fn trusting(lab: &Lab, stunnel: &Stunnel, outbound: &str) -> Result<Tproxy> {
    let mut command = lab.tproxy_command(&["run", "--lan", lab.lan(), "--outbound", outbound])?;
    command
        .env("SSL_CERT_FILE", stunnel.authority())
        .env_remove("SSL_CERT_DIR");
    Lab::tproxy_by(command)
}

/// Sends a datagram that cannot be answered.
fn is_not_answered(lab: &Lab, target: SocketAddr, pointer: &str) -> Result<()> {
    let before = lab.proxy_count(pointer)?;
    let socket = open_udp(&lab.device, Family::of(target.ip()))?;
    socket.send_to(b"anyone?", target)?;
    lab.await_proxy_count(pointer, before + 1)?;
    socket.set_nonblocking(true)?;
    let answer = socket.recv_from(&mut [0; 16]).map_err(|error| error.kind());
    assert_eq!(answer, Err(ErrorKind::WouldBlock));
    Ok(())
}

fn no_failures(lab: &Lab) -> Result<()> {
    lab.await_proxy_count("/connections", 0)?;
    assert_eq!(lab.proxy_traffic()?["failures"], serde_json::json!({}));
    Ok(())
}

#[test]
fn an_http_proxy_carries_downloads_and_uploads_whole() -> Result<()> {
    for (password, by, sizes) in [(false, Family::V4, MUCH), (true, Family::V6, SOME)] {
        let lab = Lab::new()?;
        let nginx = Nginx::start(&lab.internet, lab.dir())?;
        let proxy = Tinyproxy::start(&lab.internet, lab.dir(), password)?;
        let tproxy = lab.tproxy_with(&proxy.url(by))?;
        carries(&lab, &nginx, sizes, &format!("http by {by:?}"))?;
        no_failures(&lab)?;
        lab.all_proxied()?;
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn an_https_proxy_carries_downloads_and_uploads_whole() -> Result<()> {
    let lab = Lab::new()?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let proxy = Tinyproxy::start(&lab.internet, lab.dir(), true)?;
    let stunnel = Stunnel::start(&lab.internet, lab.dir())?;
    for (by, sizes) in Family::BOTH.into_iter().zip([MUCH, SOME]) {
        let tproxy = trusting(&lab, &stunnel, &stunnel.url(&proxy, by))?;
        carries(&lab, &nginx, sizes, &format!("https by {by:?}"))?;
        no_failures(&lab)?;
        tproxy.stop()?;
    }
    // A machine that trusts somebody else.
    let outbound = stunnel.url(&proxy, Family::V4);
    let tproxy = lab.tproxy_with(&outbound)?;
    is_reset_at_once(&lab, at(Family::V4.far(1), 80))?;
    lab.await_proxy_count("/failures/proxy_tls", 1)?;
    let told = tproxy
        .process()
        .wait_for_line("the TLS handshake with", SOON)?;
    assert!(!told.contains(Tinyproxy::PASSWORD), "{told}");
    tproxy.stop()
}

#[test]
fn a_wrong_password_is_a_reset_and_is_told_once() -> Result<()> {
    let lab = Lab::new()?;
    let _nginx = Nginx::start(&lab.internet, lab.dir())?;
    let proxy = Tinyproxy::start(&lab.internet, lab.dir(), true)?;
    let wrong = proxy.url(Family::V4).replace(Tinyproxy::PASSWORD, "other");
    let tproxy = lab.tproxy_with(&wrong)?;
    for (family, count) in Family::BOTH.into_iter().zip(1..) {
        is_reset_at_once(&lab, at(family.far(1), 80))?;
        lab.await_proxy_count("/failures/proxy_auth", count)?;
    }
    let words = "refused the user \"lab\"; check user and password";
    let told = || {
        let lines = tproxy.process().lines();
        lines.iter().filter(|line| line.contains(words)).count()
    };
    assert_eq!(told(), 1, "{:?}", tproxy.process().lines());
    let status = lab.tproxy_run(&["status", "--json"])?.ok()?.stdout;
    assert!(!status.contains("other"), "{status}");
    // Nor without one.
    tproxy.stop()?;
    let without = format!("http://{}:{}", Family::V4.upstream(4), Tinyproxy::PORT);
    let tproxy = lab.tproxy_with(&without)?;
    is_reset_at_once(&lab, at(Family::V4.far(1), 80))?;
    tproxy
        .process()
        .wait_for_line("wants a user and password", SOON)?;
    tproxy.stop()
}

#[test]
fn a_proxy_that_is_killed_ends_transfers_and_the_next_one_serves() -> Result<()> {
    let lab = Lab::new()?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let (path, _) = nginx.offer(64 * MIB)?;
    let proxy = Tinyproxy::start(&lab.internet, lab.dir(), false)?;
    let tproxy = lab.tproxy_with(&proxy.url(Family::V4))?;
    let before = tproxy.open_now()?;
    let mut download = HeldDownload::start(&lab.device, &url(Family::V6.far(1), &path))?;
    download.advance(4 * MIB)?;
    drop(proxy);
    assert!(download.finish().is_err());
    is_reset_at_once(&lab, at(Family::V4.far(1), 80))?;
    lab.await_proxy_count("/failures/connect_refused", 1)?;
    let _proxy = Tinyproxy::start(&lab.internet, lab.dir(), false)?;
    let server = Family::V4.far(1);
    assert_eq!(whoami(&lab.device, server)?, Family::V4.upstream(4));
    lab.await_proxy_count("/connections", 0)?;
    tproxy.back_to(before)?;
    tproxy.stop()
}

#[test]
fn datagrams_have_no_way_by_http_and_rules_have_one_for_them() -> Result<()> {
    let lab = Lab::new()?;
    let _echo = UdpEcho::start(&lab.internet, 7..=7)?;
    let proxy = Tinyproxy::start(&lab.internet, lab.dir(), false)?;
    let config = format!(
        "[[outbound]]\nname = \"http\"\nurl = \"{}\"\n\
         [[rule]]\nprotocol = \"udp\"\nprefix = [\"{}\"]\noutbound = \"direct\"\n",
        proxy.url(Family::V4),
        Family::V4.far(2)
    );
    let tproxy = lab.tproxy_configured(&config)?;
    is_not_answered(&lab, at(Family::V4.far(1), 7), "/failures/unsupported")?;
    let socket = open_udp(&lab.device, Family::V4)?;
    socket.set_read_timeout(Some(SOON))?;
    carry(&socket, at(Family::V4.far(2), 7), &socket, b"hello")?;
    tproxy.stop()
}

#[test]
fn a_server_is_reached_through_another_one() -> Result<()> {
    let lab = Lab::new()?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let proxy = Tinyproxy::start(&lab.internet, lab.dir(), true)?;
    let danted = Danted::start(&lab.internet, lab.dir())?;
    let run = |last: (&str, &str), first: (&str, &str)| {
        lab.tproxy_configured(&format!(
            "[[outbound]]\nname = \"{}\"\nurl = \"{}\"\nvia = \"{}\"\n\
             [[outbound]]\nname = \"{}\"\nurl = \"{}\"\n",
            last.0, last.1, first.0, first.0, first.1
        ))
    };
    let spared = || -> Result<BTreeSet<String>> {
        let list = lab.bypass_list()?;
        let servers = list.iter().filter(|entry| entry["origin"] == "outbound");
        Ok(servers
            .filter_map(|entry| Some(entry["prefix"].as_str()?.to_owned()))
            .collect())
    };
    let (http, socks) = (proxy.url(Family::V6), danted.url(Family::V4));
    let tproxy = run(("http", &http), ("socks", &socks))?;
    carries(&lab, &nginx, SOME, "http through socks5")?;
    no_failures(&lab)?;
    let asked = format!("{}.{}", Family::V6.upstream(4), Tinyproxy::PORT);
    let lines = danted.process().lines();
    assert!(lines.iter().any(|line| line.contains(&asked)), "{lines:?}");
    // Only the first one is spoken to from here.
    assert_eq!(spared()?, [format!("{}/32", Family::V4.upstream(1))].into());
    tproxy.stop()?;

    let tproxy = run(("socks", &socks), ("http", &http))?;
    for family in Family::BOTH {
        assert_eq!(whoami(&lab.device, family.far(1))?, family.upstream(1));
    }
    no_failures(&lab)?;
    assert_eq!(
        spared()?,
        [format!("{}/128", Family::V6.upstream(4))].into()
    );
    is_not_answered(&lab, at(Family::V4.far(1), 7), "/failures/unsupported")?;
    tproxy.stop()
}

#[test]
fn a_rule_blocks_and_all_else_goes_on() -> Result<()> {
    let lab = Lab::new()?;
    let nginx = Nginx::start(&lab.internet, lab.dir())?;
    let tcp = TcpEcho::start(&lab.internet, 7)?;
    let udp = UdpEcho::start(&lab.internet, 7..=7)?;
    let config = lab.write(&format!(
        "[lan]\ninterfaces = [\"{}\"]\n[[rule]]\nname = \"no\"\nport = [7]\noutbound = \"block\"\n",
        lab.lan()
    ))?;
    let mut command = lab.tproxy_command(&["run", "-c", &config])?;
    // With a line for each connection.
    command.env("RUST_LOG", "info");
    let tproxy = Lab::tproxy_by(command)?;
    for (family, count) in Family::BOTH.into_iter().zip([1, 3]) {
        let target = at(family.far(3), 7);
        is_reset_at_once(&lab, target)?;
        lab.await_proxy_count("/blocked", count)?;
        is_not_answered(&lab, target, "/blocked")?;
        assert_eq!(whoami(&lab.device, family.far(1))?, family.gateway_wan());
    }
    assert!(tcp.clients().is_empty() && udp.clients().is_empty());
    no_failures(&lab)?;
    let told = tproxy
        .process()
        .wait_for_line("outcome=\"blocked\"", SOON)?;
    assert!(told.contains("outbound=\"block\" rule=\"no\""), "{told}");
    drop(nginx);
    tproxy.stop()
}

#[test]
fn a_direct_outbound_leaves_from_the_address_and_link_that_it_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let _nginx = Nginx::start(&lab.internet, lab.dir())?;
    let echo = UdpEcho::start(&lab.internet, 7..=7)?;
    let (v4, v6) = ("192.0.2.9", "2001:db8:2::9");
    for (address, length) in [(v4, 24), (v6, 64)] {
        let address = format!("{address}/{length}");
        lab.gateway
            .run(&["ip", "address", "add", &address, "dev", "wan0", "nodad"])?;
    }
    let config = format!(
        "[[outbound]]\nname = \"other\"\nurl = \"direct://\"\nsource = [\"{v4}\", \"{v6}\"]\n\
         interface = \"wan0\"\nmark = 0x100\n[[rule]]\nport = [81]\noutbound = \"direct\"\n"
    );
    let tproxy = lab.tproxy_configured(&config)?;
    lab.gateway.run(&[
        "nft",
        "add table inet marked; \
         add chain inet marked out { type filter hook output priority filter; }; \
         add rule inet marked out oifname wan0 meta l4proto { tcp, udp } meta mark != 0x1b0 drop",
    ])?;
    for (family, source) in Family::BOTH.into_iter().zip([v4, v6]) {
        let source: IpAddr = source.parse().context("an address")?;
        assert_eq!(whoami(&lab.device, family.far(1))?, source);
        let socket = open_udp(&lab.device, family)?;
        socket.set_read_timeout(Some(SOON))?;
        carry(&socket, at(family.far(2), 7), &socket, b"hello")?;
        assert!(echo.clients().keys().any(|client| client.ip() == source));
    }
    no_failures(&lab)?;
    tproxy.stop()
}
