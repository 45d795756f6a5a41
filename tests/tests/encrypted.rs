//! What devices do through Shadowsocks and Trojan servers, and what every kind of server does with a wrong password.

use std::{
    fs,
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr},
    path::Path,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use lab::{
    Family, Lab, SingBox, Tproxy,
    addr::url,
    probe::{End, at, is_reset_after, is_reset_at_once, read_to_end},
    servers::{Certificate, Danted, Nginx, Shadowsocks, Stunnel, TcpEcho, Tinyproxy, Trojan},
    traffic::{self, HeldDownload, banner, connect, whoami},
    wait::{SOON, until},
};

const MIB: u64 = 1 << 20;
/// One cipher of a protocol carries so much, and each of the others so much.
const MUCH: u64 = 1024 * MIB;
const SOME: u64 = 64 * MIB;
/// What Trojan servers have a certificate for.
const NAME: &str = "trojan.lab";
/// The ports of the echo and of the server that speaks first.
const ECHO: u16 = 7;
const SPEAKS: u16 = 25;
/// The beginning of a TLS client hello.
const HELLO: &[u8] = b"\x16\x03\x01\x00\x06hello!";

/// Keys of 16 and of 32 bytes, each for a server and for one of its users.
const SHORT: &str = "AAECAwQFBgcICQoLDA0ODw==";
const SHORT_USER: &str = "EBESExQVFhcYGRobHB0eHw==";
const LONG: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const LONG_USER: &str = "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=";

/// Something to talk to in the internet.
struct Stage {
    lab: Lab,
    nginx: Nginx,
    _tcp: [TcpEcho; 2],
}

impl Stage {
    fn new() -> Result<Self> {
        let lab = Lab::new()?;
        Ok(Self {
            nginx: Nginx::start(&lab.internet, lab.dir())?,
            _tcp: [
                TcpEcho::start(&lab.internet, ECHO)?,
                TcpEcho::start_speaking(&lab.internet, SPEAKS)?,
            ],
            lab,
        })
    }

    /// Runs `tproxy-bpf` where what is for the first far address of each family takes the first of these outbounds, and
    /// so on. It trusts these authorities, and has a line for each connection.
    fn run(&self, outbounds: &[Outbound], authorities: &[&Path]) -> Result<Tproxy> {
        let mut text = format!("[lan]\ninterfaces = [\"{}\"]\n", self.lab.lan());
        for (outbound, far) in outbounds.iter().zip(1..) {
            let (name, url, rest) = (&outbound.name, &outbound.url, &outbound.rest);
            let [v4, v6] = Family::BOTH.map(|family| family.far(far));
            text += &format!(
                "[[outbound]]\nname = \"{name}\"\nurl = \"{url}\"\n{rest}\n\
                 [[rule]]\nprefix = [\"{v4}\", \"{v6}\"]\noutbound = \"{name}\"\n"
            );
        }
        let mut command = self
            .lab
            .tproxy_command(&["run", "-c", &self.lab.write(&text)?])?;
        command.env("RUST_LOG", "info").env_remove("SSL_CERT_DIR");
        if !authorities.is_empty() {
            let mut bundle = Vec::new();
            for authority in authorities {
                bundle.extend(fs::read(authority)?);
            }
            let path = self.lab.dir().join("trusted.pem");
            fs::write(&path, bundle)?;
            command.env("SSL_CERT_FILE", path);
        }
        Lab::tproxy_by(command)
    }

    /// Downloads and uploads, questions and their answers in both directions at once, and a server that speaks first.
    fn carries(&self, far: u8, bytes: u64, families: &[Family], what: &str) -> Result<()> {
        let device = &self.lab.device;
        for family in families {
            let server = family.far(far);
            self.moves(server, bytes, what)?;
            echoes(&self.lab, at(server, ECHO)).with_context(|| format!("{what}: the echo"))?;
            let time = banner(device, at(server, SPEAKS));
            let time = time.with_context(|| format!("{what}: who speaks first"))?;
            ensure!(time < Duration::from_secs(2), "{what}: {time:?}");
            // It went by the server, which is where all destinations are.
            assert_eq!(whoami(device, server)?, server);
        }
        Ok(())
    }

    fn moves(&self, server: IpAddr, bytes: u64, what: &str) -> Result<()> {
        let (path, content) = self.nginx.offer(bytes)?;
        let device = &self.lab.device;
        let down = traffic::download(device, &url(server, &path)).context(what.to_owned())?;
        assert_eq!((down.bytes, &down.sha256), (content.bytes, &content.sha256));
        let to = url(server, "upload/whole");
        let up = traffic::upload(device, &content.path, &to).context(what.to_owned())?;
        assert_eq!(self.nginx.uploaded("whole")?, content.sha256);
        eprintln!(
            "{what} to {server}: {} MiB down {:?}, up {up:?}",
            bytes / MIB,
            down.elapsed
        );
        Ok(())
    }
}

struct Outbound {
    name: String,
    url: String,
    /// More keys.
    rest: String,
}

fn outbound(name: &str, url: &str) -> Outbound {
    Outbound {
        name: name.to_owned(),
        url: url.to_owned(),
        rest: String::new(),
    }
}

/// Sends far more than any buffer holds and wants all of it back meanwhile.
fn echoes(lab: &Lab, target: SocketAddr) -> Result<()> {
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|number| ((number * 7) >> 3) as u8)
        .collect();
    let stream = connect(&lab.device, target)?;
    thread::scope(|scope| {
        let sending = scope.spawn(|| (&stream).write_all(&bytes));
        let mut back = vec![0; bytes.len()];
        (&stream).read_exact(&mut back).context("reading")?;
        sending.join().expect("no panic").context("sending")?;
        ensure!(back == bytes, "other bytes came back");
        stream.shutdown(Shutdown::Write)?;
        // How it ends, is the server's: ss-server hangs up without what ends the TLS that is in it.
        ensure!(read_to_end(&stream)?.0.is_empty(), "more came back");
        Ok(())
    })
}

/// How many lines of the log have all of these words.
fn told(tproxy: &Tproxy, words: &[&str]) -> usize {
    let lines = tproxy.process().lines();
    let has = |line: &&String| words.iter().all(|word| line.contains(word));
    lines.iter().filter(has).count()
}

#[test]
fn ss_server_carries_everything_whole() -> Result<()> {
    let stage = Stage::new()?;
    let mut servers = Vec::new();
    let mut outbounds = Vec::new();
    for (method, (port, by)) in ["aes-128-gcm", "aes-256-gcm", "chacha20-ietf-poly1305"]
        .into_iter()
        .zip((8388..).zip([Family::V4, Family::V6, Family::V4]))
    {
        let address = at(by.upstream(1), port);
        let server = Shadowsocks::start(&stage.lab.internet, address, method, "secret: word")?;
        outbounds.push(outbound(method, &server.url()));
        servers.push(server);
    }
    let tproxy = stage.run(&outbounds, &[])?;
    // ss-server itself is three times slower with aes-128-gcm than with the others.
    stage.carries(1, SOME, &[Family::V4], "aes-128-gcm")?;
    stage.carries(2, MUCH, &[Family::V4], "aes-256-gcm")?;
    stage.carries(3, SOME, &[Family::V6], "chacha20-ietf-poly1305")?;
    assert_eq!(
        stage.lab.proxy_traffic()?["failures"],
        serde_json::json!({})
    );
    stage.lab.all_proxied()?;
    tproxy.stop()
}

#[test]
fn sing_box_carries_everything_whole_by_the_methods_of_2022() -> Result<()> {
    let Some(sing_box) = SingBox::or_skip()? else {
        return Ok(());
    };
    let stage = Stage::new()?;
    let (ns, dir) = (&stage.lab.internet, stage.lab.dir());
    let users = |server: &str, user: &str| format!("{server}:{user}");
    let methods = [
        ("2022-blake3-aes-128-gcm", SHORT.to_owned()),
        ("2022-blake3-aes-256-gcm", LONG.to_owned()),
        ("2022-blake3-chacha20-poly1305", LONG.to_owned()),
        ("2022-blake3-aes-128-gcm", users(SHORT, SHORT_USER)),
        ("2022-blake3-aes-256-gcm", users(LONG, LONG_USER)),
    ];
    let mut servers = Vec::new();
    let mut outbounds = Vec::new();
    for ((method, password), port) in methods.iter().zip(8388..) {
        let by = [Family::V4, Family::V6][usize::from(port % 2)];
        let address = at(by.upstream(1), port);
        let server = Shadowsocks::start_2022(&sing_box, ns, dir, address, method, password)?;
        outbounds.push(outbound(&format!("to-{port}"), &server.url()));
        servers.push(server);
    }
    let tproxy = stage.run(&outbounds, &[])?;
    for ((method, _), far) in methods.iter().zip(1..) {
        let family = [Family::V4, Family::V6][usize::from(far % 2)];
        stage.carries(far, SOME, &[family], method)?;
        // The end of the device's way leaves the destination's open.
        let mut stream = connect(&stage.lab.device, at(family.far(far), ECHO))?;
        stream.write_all(b"hello")?;
        stream.shutdown(Shutdown::Write)?;
        assert_eq!(read_to_end(&stream)?, (b"hello".to_vec(), End::Fin));
    }
    assert_eq!(
        stage.lab.proxy_traffic()?["failures"],
        serde_json::json!({})
    );
    tproxy.stop()
}

#[test]
fn trojan_carries_everything_whole_alone_and_in_chains() -> Result<()> {
    let stage = Stage::new()?;
    let (ns, dir) = (&stage.lab.internet, stage.lab.dir());
    let certificate = Certificate::make(dir, &[NAME])?;
    let address = at(Family::V6.upstream(1), 8443);
    let trojan = Trojan::start(ns, dir, address, &certificate)?;
    let address = at(Family::V4.upstream(1), 8388);
    let shadowsocks = Shadowsocks::start(ns, address, "aes-256-gcm", "secret")?;
    let through = |name: &str, url: &str, other: &str| Outbound {
        rest: format!("via = \"{other}\""),
        ..outbound(name, url)
    };
    let tproxy = stage.run(
        &[
            outbound("trojan", &trojan.url(NAME)),
            outbound("ss", &shadowsocks.url()),
            through("trojan-by-ss", &trojan.url(NAME), "ss"),
            through("ss-by-trojan", &shadowsocks.url(), "trojan"),
            outbound("other", &trojan.url("other.lab")),
        ],
        &[&certificate.authority],
    )?;
    stage.carries(1, MUCH, &[Family::V4], "trojan")?;
    stage.carries(1, SOME, &[Family::V6], "trojan")?;
    stage.carries(3, SOME, &[Family::V4], "trojan through ss")?;
    stage.carries(4, SOME, &[Family::V6], "ss through trojan")?;
    assert_eq!(
        stage.lab.proxy_traffic()?["failures"],
        serde_json::json!({})
    );
    // A server of another name is not spoken to.
    is_reset_after(&stage.lab, at(Family::V4.far(5), ECHO), HELLO)?;
    stage.lab.await_proxy_count("/failures/proxy_tls", 1)?;
    tproxy.process().wait_for_line("?sni=NAME", SOON)?;
    tproxy.stop()
}

#[test]
fn a_wrong_password_is_a_reset_recorded_told_once_and_counted() -> Result<()> {
    let stage = Stage::new()?;
    let (lab, ns, dir) = (&stage.lab, &stage.lab.internet, stage.lab.dir());
    let danted = Danted::start(ns, dir)?;
    let tinyproxy = Tinyproxy::start(ns, dir, true)?;
    let stunnel = Stunnel::start(ns, dir)?;
    let certificate = Certificate::make(dir, &[NAME])?;
    let trojan = Trojan::start(ns, dir, at(Family::V4.upstream(2), 8443), &certificate)?;
    let silent = at(Family::V6.upstream(2), 8388);
    let silent = Shadowsocks::start(ns, silent, "aes-128-gcm", "secret")?;
    let by = Family::V6;
    let wrong = |url: String| url.replace(Tinyproxy::PASSWORD, "other");
    let mut outbounds = vec![
        outbound("silent", &silent.url_with("other")),
        outbound("socks5", &danted.url(by).replace("secret", "other")),
        outbound("http", &wrong(tinyproxy.url(by))),
        outbound("https", &wrong(stunnel.url(&tinyproxy, by))),
        outbound("trojan", &trojan.url(NAME).replace("secret", "other")),
    ];
    let mut of_sing_box = Vec::new();
    if let Some(sing_box) = SingBox::or_skip()? {
        for (port, method, right, other) in [
            (8389, "2022-blake3-aes-128-gcm", SHORT, SHORT_USER),
            (8390, "aes-256-gcm", "secret", "other"),
        ] {
            let address = at(by.upstream(2), port);
            let server = Shadowsocks::start_2022(&sing_box, ns, dir, address, method, right)?;
            outbounds.push(outbound(&format!("ss-{port}"), &server.url_with(other)));
            of_sing_box.push(server);
        }
    }
    let authorities: [&Path; 2] = [&certificate.authority, stunnel.authority()];
    let tproxy = stage.run(&outbounds, &authorities)?;
    let is_told = |name: &str, times: usize| -> Result<()> {
        until(&format!("the records of {name}"), SOON, || {
            let record = format!("outbound=\"{name}\" ");
            let found = told(&tproxy, &[&record, "outcome=\"proxy_auth\""]);
            Ok((found == times).then_some(()))
        })?;
        let told = told(
            &tproxy,
            &[&format!("the outbound \"{name}\" does not work: ")],
        );
        ensure!(told == 1, "{name} is told of {told} times");
        Ok(())
    };
    let mut count = 0;
    for (outbound, far) in outbounds.iter().zip(1..).skip(1) {
        for family in Family::BOTH {
            count += 1;
            is_reset_after(lab, at(family.far(far), ECHO), HELLO)?;
            lab.await_proxy_count("/failures/proxy_auth", count)?;
        }
        is_told(&outbound.name, 2)?;
    }
    // ss-server is silent, so that who tries finds nothing, until it ends the connection.
    let mut stream = connect(&lab.device, at(by.far(1), ECHO))?;
    stream.write_all(HELLO)?;
    silent
        .process()
        .wait_for_line("authentication error", SOON)?;
    drop(silent);
    assert_eq!(read_to_end(&stream)?, (Vec::new(), End::Reset));
    lab.await_proxy_count("/failures/proxy_auth", count + 1)?;
    is_told("silent", 1)?;
    let words = "the password or the method is wrong, or the destination hung up";
    assert_eq!(told(&tproxy, &[words]), 1 + of_sing_box.len() / 2);
    let status = lab.tproxy_run(&["status", "--json"])?.ok()?.stdout;
    let log = tproxy.process().lines().join("\n");
    for secret in [SHORT_USER, "other@", "other%"] {
        assert!(
            !status.contains(secret) && !log.contains(secret),
            "{secret}"
        );
    }
    tproxy.stop()
}

#[test]
fn a_server_that_is_killed_ends_transfers_and_the_next_one_serves() -> Result<()> {
    let stage = Stage::new()?;
    let (lab, ns, dir) = (&stage.lab, &stage.lab.internet, stage.lab.dir());
    let certificate = Certificate::make(dir, &[NAME])?;
    let [for_trojan, for_ss] = [8443, 8388].map(|port| at(Family::V6.upstream(1), port));
    let start_ss = || Shadowsocks::start(ns, for_ss, "aes-256-gcm", "secret");
    let start_trojan = || Trojan::start(ns, dir, for_trojan, &certificate);
    let (ss, trojan) = (start_ss()?, start_trojan()?);
    let outbounds = [
        outbound("ss", &ss.url()),
        outbound("trojan", &trojan.url(NAME)),
    ];
    let tproxy = stage.run(&outbounds, &[&certificate.authority])?;
    let before = tproxy.open_now()?;
    let (path, _) = stage.nginx.offer(64 * MIB)?;
    let far = [1, 2].map(|far| Family::V4.far(far));
    let mut downloads = Vec::new();
    for far in far {
        let mut download = HeldDownload::start(&lab.device, &url(far, &path))?;
        download.advance(4 * MIB)?;
        downloads.push(download);
    }
    drop((ss, trojan));
    for download in downloads {
        assert!(download.finish().is_err());
    }
    for (far, count) in far.into_iter().zip(1..) {
        is_reset_at_once(lab, at(far, ECHO))?;
        lab.await_proxy_count("/failures/connect_refused", count)?;
    }
    let _next = (start_ss()?, start_trojan()?);
    for far in far {
        assert_eq!(whoami(&lab.device, far)?, far);
    }
    assert_eq!(lab.proxy_count("/failures/proxy_auth")?, 0);
    lab.await_proxy_count("/connections", 0)?;
    tproxy.back_to(before)?;
    tproxy.stop()
}
