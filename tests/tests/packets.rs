//! What devices send by datagram through Shadowsocks and Trojan: real programs at both ends, the proxy in between.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use anyhow::{Context, Result};
use lab::{
    Family, Lab, SingBox, Tproxy,
    probe::{at, carry},
    servers::{Certificate, Dnsmasq, Nginx, Shadowsocks, Trojan, UdpEcho},
    traffic::{self, open_udp},
    wait::{SOON, until},
};

/// The echoes of datagrams.
const ECHO: std::ops::RangeInclusive<u16> = 7000..=7009;
const PORT: u16 = 8388;
const NAME: &str = "trojan.example";

/// An internet with something to ask.
struct Stage {
    dnsmasq: Dnsmasq,
    echo: UdpEcho,
    lab: Lab,
}

impl Stage {
    fn new() -> Result<Self> {
        // ss-server and sing-box forbid that their datagrams are fragmented.
        let lab = Lab::builder().wan_mtu(65_535).build()?;
        Ok(Self {
            dnsmasq: Dnsmasq::start(&lab.internet)?,
            echo: UdpEcho::start(&lab.internet, ECHO)?,
            lab,
        })
    }

    /// A device asks dnsmasq by every family, and the echo with datagrams of every size and at many peers. `count`
    /// questions were asked of dnsmasq before. The far servers see the machine of the servers.
    fn carries(&self, sizes: &[usize], count: usize) -> Result<()> {
        let device = &self.lab.device;
        for (family, count) in Family::BOTH.into_iter().zip(count + 1..) {
            let answers = traffic::dig(device, family.far(3), "host.lab", "AAAA")?;
            assert_eq!(answers, [Family::V6.far(1).to_string()]);
            let client = self.dnsmasq.client_of("host.lab", count)?;
            assert_ne!(client, family.gateway_wan());
            traffic::echo_sizes(device, at(family.far(5), *ECHO.start()), sizes)?;

            self.echo.forget();
            let addresses: Vec<IpAddr> = (1..=10).map(|number| family.far(number)).collect();
            let peers = traffic::peers(device, &addresses, ECHO, 16)?;
            assert_eq!((peers.asked, peers.answered), (100, 100));
            assert!(peers.wrong.is_empty(), "{:?}", peers.wrong);
            let clients = self.echo.clients();
            // Here a server has all the far addresses for its own, and each time takes the one that it asks.
            let ports: BTreeSet<u16> = clients.keys().map(SocketAddr::port).collect();
            assert_eq!(ports.len(), 1, "one port for all peers: {ports:?}");
        }
        for nothing in ["/datagrams_refused", "/datagrams_dropped"] {
            assert_eq!(self.lab.proxy_count(nothing)?, 0, "{nothing}");
        }
        assert_eq!(self.lab.proxy_traffic()?["failures"], serde_json::json!({}));
        self.lab.all_proxied()?;
        Ok(())
    }

    fn socket(&self, family: Family) -> Result<UdpSocket> {
        let socket = open_udp(&self.lab.device, family)?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(socket)
    }

    /// What is sent comes back in the end, from the same socket of the device all the while.
    fn is_answered_soon(&self, socket: &UdpSocket, target: SocketAddr) -> Result<()> {
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let what = format!("an answer of {target}");
        until(&what, Duration::from_secs(4), || {
            Ok(carry(socket, target, socket, b"anyone?").ok())
        })?;
        Ok(())
    }

    /// `tproxy-bpf run` on a machine that trusts this authority.
    fn trusting(&self, certificate: &Certificate, outbound: &str) -> Result<Tproxy> {
        let args = ["run", "--lan", self.lab.lan(), "--outbound", outbound];
        let mut command = self.lab.tproxy_command(&args)?;
        command
            .env("SSL_CERT_FILE", &certificate.authority)
            .env_remove("SSL_CERT_DIR");
        Lab::tproxy_by(command)
    }
}

#[test]
fn ss_server_carries_datagrams() -> Result<()> {
    let stage = Stage::new()?;
    let ns = &stage.lab.internet;
    let servers = [
        ("aes-256-gcm", Family::V4),
        ("chacha20-ietf-poly1305", Family::V6),
    ];
    for (index, (method, by)) in servers.into_iter().enumerate() {
        let server = Shadowsocks::start(ns, at(by.upstream(1), PORT), method, "secret: word")?;
        let tproxy = stage.lab.tproxy_with(&server.url())?;
        // It takes no more than 2,794 bytes, with salt, address and tag, unless it is told another `--mtu`.
        stage
            .carries(&[0, 1, 1_200, 2_794 - 32 - 19 - 16], 2 * index)
            .with_context(|| format!("{method}: {}", server.process().lines().join("\n")))?;
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn sing_box_carries_datagrams_of_2022() -> Result<()> {
    const SHORT: &str = "AAECAwQFBgcICQoLDA0ODw==";
    const USER: &str = "EBESExQVFhcYGRobHB0eHw==";
    const LONG: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let Some(sing_box) = SingBox::or_skip()? else {
        return Ok(());
    };
    let stage = Stage::new()?;
    let (ns, dir) = (&stage.lab.internet, stage.lab.dir());
    let users = format!("{SHORT}:{USER}");
    let servers = [
        ("2022-blake3-aes-256-gcm", LONG, Family::V6),
        ("2022-blake3-chacha20-poly1305", LONG, Family::V4),
        ("2022-blake3-aes-128-gcm", &users, Family::V4),
    ];
    for (index, (method, password, by)) in servers.into_iter().enumerate() {
        let address = at(by.upstream(1), PORT + index as u16);
        let server = Shadowsocks::start_2022(&sing_box, ns, dir, address, method, password)?;
        let tproxy = stage.lab.tproxy_with(&server.url())?;
        // It cuts off what is longer than 15,174 bytes.
        stage
            .carries(&[0, 1, 1_200, 8_000, 15_000], 2 * index)
            .with_context(|| format!("{method}: {}", server.process().lines().join("\n")))?;
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn trojan_carries_datagrams() -> Result<()> {
    let stage = Stage::new()?;
    let (ns, dir) = (&stage.lab.internet, stage.lab.dir());
    let certificate = Certificate::make(dir, &[NAME])?;
    for (index, by) in Family::BOTH.into_iter().enumerate() {
        let server = Trojan::start(ns, dir, at(by.upstream(2), 443), &certificate)?;
        let tproxy = stage.trusting(&certificate, &server.url(NAME))?;
        // The largest that it takes is 8 KiB with address and length.
        stage
            .carries(&[0, 1, 1_200, 8_000], 2 * index)
            .with_context(|| server.process().lines().join("\n"))?;
        tproxy.stop()?;
    }
    Ok(())
}

#[test]
fn another_password_is_silence_or_told() -> Result<()> {
    let stage = Stage::new()?;
    let (ns, dir) = (&stage.lab.internet, stage.lab.dir());
    let target = at(Family::V4.far(5), *ECHO.start());
    let socket = stage.socket(Family::V4)?;

    let address = at(Family::V4.upstream(1), PORT);
    let server = Shadowsocks::start(ns, address, "aes-128-gcm", "secret")?;
    let tproxy = stage.lab.tproxy_with(&server.url_with("another"))?;
    socket.send_to(b"anyone?", target)?;
    server
        .process()
        .wait_for_line("failed to handshake", SOON)?;
    assert_eq!(stage.lab.proxy_count("/associations")?, 1);
    assert!(stage.echo.clients().is_empty());
    tproxy.stop()?;

    // Who has another password is shown a web server, if there is one.
    let _nginx = Nginx::start(ns, dir)?;
    let certificate = Certificate::make(dir, &[NAME])?;
    for (number, port) in [(2, 443), (3, 444)] {
        let server = Trojan::start(ns, dir, at(Family::V4.upstream(number), port), &certificate)?;
        let wrong = server.url(NAME).replace("secret", "another");
        let tproxy = stage.trusting(&certificate, &wrong)?;
        socket.send_to(b"anyone?", target)?;
        let told = tproxy.process().wait_for_line("check the password", SOON)?;
        assert!(!told.contains("another"), "{told}");
        stage.lab.await_proxy_count("/failures/proxy_auth", 1)?;
        tproxy.stop()?;
    }
    assert!(stage.echo.clients().is_empty());
    Ok(())
}

#[test]
fn a_server_that_is_killed_is_used_again_when_it_is_back() -> Result<()> {
    let stage = Stage::new()?;
    let (ns, dir) = (&stage.lab.internet, stage.lab.dir());
    let by = Family::V4;
    let target = at(by.far(5), *ECHO.start());
    let socket = stage.socket(by)?;

    let start = || Shadowsocks::start(ns, at(by.upstream(1), PORT), "aes-128-gcm", "secret");
    let server = start()?;
    let tproxy = stage.lab.tproxy_with(&server.url())?;
    carry(&socket, target, &socket, b"before")?;
    drop(server);
    // Port unreachable comes back for it.
    socket.send_to(b"lost", target)?;
    let _server = start()?;
    stage.is_answered_soon(&socket, target)?;
    assert_eq!(stage.lab.proxy_count("/associations_total")?, 1);
    tproxy.stop()?;

    let certificate = Certificate::make(dir, &[NAME])?;
    let start = || Trojan::start(ns, dir, at(by.upstream(2), 443), &certificate);
    let server = start()?;
    let tproxy = stage.trusting(&certificate, &server.url(NAME))?;
    let before = tproxy.open_now()?;
    stage.is_answered_soon(&socket, target)?;
    drop(server);
    stage.lab.await_proxy_count("/associations", 0)?;
    let _server = start()?;
    stage.is_answered_soon(&socket, target)?;
    assert_eq!(stage.lab.proxy_count("/associations_total")?, 2);
    // When the spare connections have gone.
    tproxy.back_to((before.0, before.1 + 1))?;
    tproxy.stop()
}

#[test]
fn a_server_of_2022_may_be_restarted_again_and_again() -> Result<()> {
    const KEY: &str = "AAECAwQFBgcICQoLDA0ODw==";
    let Some(sing_box) = SingBox::or_skip()? else {
        return Ok(());
    };
    let stage = Stage::new()?;
    let (ns, dir) = (&stage.lab.internet, stage.lab.dir());
    let address = at(Family::V4.upstream(1), PORT);
    let method = "2022-blake3-aes-128-gcm";
    let start = || Shadowsocks::start_2022(&sing_box, ns, dir, address, method, KEY);
    let mut server = start()?;
    let tproxy = stage.lab.tproxy_with(&server.url())?;
    let target = at(Family::V6.far(5), *ECHO.start());
    let socket = stage.socket(Family::V6)?;
    for _ in 0..4 {
        stage.is_answered_soon(&socket, target)?;
        drop(server);
        server = start()?;
    }
    stage.is_answered_soon(&socket, target)?;
    drop(server);
    tproxy.stop()
}

#[test]
fn trojan_carries_datagrams_through_another_server_and_shadowsocks_does_not() -> Result<()> {
    let stage = Stage::new()?;
    let (ns, dir) = (&stage.lab.internet, stage.lab.dir());
    let certificate = Certificate::make(dir, &[NAME])?;
    let trojan = Trojan::start(ns, dir, at(Family::V6.upstream(2), 443), &certificate)?;
    let first = Shadowsocks::start(ns, at(Family::V4.upstream(1), PORT), "aes-128-gcm", "first")?;
    let second = at(Family::V4.upstream(1), PORT + 1);
    let second = Shadowsocks::start(ns, second, "aes-128-gcm", "second")?;
    let config = stage.lab.write(&format!(
        "[lan]\ninterfaces = [\"{}\"]\n\
         [[outbound]]\nname = \"trojan\"\nurl = \"{}\"\nvia = \"first\"\n\
         [[outbound]]\nname = \"second\"\nurl = \"{}\"\nvia = \"first\"\n\
         [[outbound]]\nname = \"first\"\nurl = \"{}\"\n\
         [[rule]]\nport = [7009]\noutbound = \"second\"\n",
        stage.lab.lan(),
        trojan.url(NAME),
        second.url(),
        first.url()
    ))?;
    let mut command = stage.lab.tproxy_command(&["run", "-c", &config])?;
    command
        .env("SSL_CERT_FILE", &certificate.authority)
        .env_remove("SSL_CERT_DIR");
    let tproxy = Lab::tproxy_by(command)?;
    for family in Family::BOTH {
        let socket = stage.socket(family)?;
        let target = at(family.far(5), *ECHO.start());
        carry(&socket, target, &socket, b"hello")?;
    }
    stage.echo.forget();
    let socket = stage.socket(Family::V4)?;
    socket.send_to(b"anyone?", at(Family::V4.far(5), *ECHO.end()))?;
    stage.lab.await_proxy_count("/failures/unsupported", 1)?;
    assert!(stage.echo.clients().is_empty());
    tproxy.stop()
}
