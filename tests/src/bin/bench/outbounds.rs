//! Relaying by a server of some protocol: ours, and sing-box in the place of ours, to the same server. IPv4, TCP.
//!
//! The server is sing-box, too: it does all these protocols, so both go to the same one.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use lab::{Family, Lab, Namespace, Process, SingBox, servers::Certificate};
use serde_json::{Value, json};

use crate::ways::{Running, Stopping};

/// What the names of these rows begin with.
pub const NAME: &str = "outbounds";
/// Where the server listens.
const SERVER: u16 = 8400;
/// Where sing-box listens for what the kernel steers to it, its mark and the table that delivers locally.
const INBOUND: u16 = 12346;
const MARK: u8 = 1;
const TABLE: u8 = 101;
/// The name in the server's certificate.
const HOST: &str = "proxy.test";
/// 16 bytes for all that want a key, and as good a password as any for the others.
const KEY: &str = "AAECAwQFBgcICQoLDA0ODw==";

/// A protocol to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `socks5://`
    Socks5,
    /// `http://`
    Http,
    /// `https://`
    Https,
    /// `ss://` with aes-128-gcm
    ShadowsocksAes,
    /// `ss://` with chacha20-ietf-poly1305
    ShadowsocksChacha,
    /// `ss://` with 2022-blake3-aes-128-gcm
    Shadowsocks2022,
    /// `trojan://`
    Trojan,
}

impl Protocol {
    const fn method(self) -> &'static str {
        match self {
            Self::ShadowsocksChacha => "chacha20-ietf-poly1305",
            Self::Shadowsocks2022 => "2022-blake3-aes-128-gcm",
            _ => "aes-128-gcm",
        }
    }

    /// The type of inbound and outbound in sing-box, and whether it is inside of TLS.
    const fn kind(self) -> (&'static str, bool) {
        match self {
            Self::Socks5 => ("socks", false),
            Self::Http => ("http", false),
            Self::Https => ("http", true),
            Self::ShadowsocksAes | Self::ShadowsocksChacha | Self::Shadowsocks2022 => {
                ("shadowsocks", false)
            }
            Self::Trojan => ("trojan", true),
        }
    }

    fn url(self) -> String {
        let server = server();
        let port = server.port();
        match self {
            Self::Socks5 => format!("socks5://{server}"),
            Self::Http => format!("http://{server}"),
            Self::Https => format!("https://{server}"),
            Self::Trojan => format!("trojan://password@{server}?sni={HOST}"),
            _ => {
                let key = KEY.replace('=', "%3D");
                format!("ss://{}:{key}@{}:{port}", self.method(), server.ip())
            }
        }
    }

    fn inbound(self, certificate: &Certificate) -> Value {
        let (kind, tls) = self.kind();
        let server = server();
        let mut inbound = json!({
            "type": kind,
            "listen": server.ip(),
            "listen_port": server.port(),
        });
        match kind {
            "shadowsocks" => {
                inbound["method"] = self.method().into();
                inbound["password"] = KEY.into();
            }
            "trojan" => inbound["users"] = json!([{ "password": "password" }]),
            _ => {}
        }
        if tls {
            inbound["tls"] = json!({
                "enabled": true,
                "certificate_path": certificate.chain,
                "key_path": certificate.key,
            });
        }
        inbound
    }

    fn outbound(self, certificate: &Certificate) -> Value {
        let (kind, tls) = self.kind();
        let server = server();
        let mut outbound = json!({
            "type": kind,
            "server": server.ip(),
            "server_port": server.port(),
        });
        match kind {
            "shadowsocks" => {
                outbound["method"] = self.method().into();
                outbound["password"] = KEY.into();
            }
            "trojan" => outbound["password"] = "password".into(),
            _ => {}
        }
        if tls {
            outbound["tls"] = json!({
                "enabled": true,
                "server_name": HOST,
                "certificate_path": certificate.authority,
            });
        }
        outbound
    }
}

fn server() -> SocketAddr {
    SocketAddr::new(Family::V4.upstream(1), SERVER)
}

fn sing_box() -> Result<SingBox> {
    SingBox::or_skip()?.context("the server of these rows is sing-box")
}

/// Starts the server.
fn serve(lab: &Lab, protocol: Protocol) -> Result<(Process, Certificate)> {
    let ip = server().ip().to_string();
    let certificate = Certificate::make(lab.dir(), &[HOST, &ip])?;
    let configuration = json!({
        "log": { "level": "warn" },
        "inbounds": [protocol.inbound(&certificate)],
        "outbounds": [{ "type": "direct" }],
    });
    let process = sing_box()?.serve(&lab.internet, lab.dir(), &configuration, SERVER)?;
    Ok((process, certificate))
}

/// Ours with an outbound of this protocol, and its server.
pub fn ours(lab: &Lab, protocol: Protocol) -> Result<Option<Running>> {
    let (server, certificate) = serve(lab, protocol)?;
    let mut command =
        lab.tproxy_command(&["run", "--lan", lab.lan(), "--outbound", &protocol.url()])?;
    command
        .env("SSL_CERT_FILE", &certificate.authority)
        .env_remove("SSL_CERT_DIR");
    let tproxy = Lab::tproxy_by(command)?;
    let pid = tproxy.process().pid();
    Ok(Some(Running::new(pid, (Stopping::new(tproxy), server))))
}

/// sing-box in its place, which nft steers to.
pub fn peer(lab: &Lab, protocol: Protocol) -> Result<Option<Running>> {
    let (server, certificate) = serve(lab, protocol)?;
    let configuration = json!({
        "log": { "level": "warn" },
        "inbounds": [{
            "type": "tproxy",
            "listen": "127.0.0.1",
            "listen_port": INBOUND,
            "network": "tcp",
        }],
        "outbounds": [protocol.outbound(&certificate)],
    });
    let process = sing_box()?.serve(&lab.gateway, lab.dir(), &configuration, INBOUND)?;
    let pid = process.pid();
    let steering = Steering::set(lab)?;
    Ok(Some(Running::new(pid, (steering, process, server))))
}

/// Rules and routes that lead to sing-box. Dropping it takes them away.
struct Steering(Namespace);

impl Steering {
    fn set(lab: &Lab) -> Result<Self> {
        lab.gateway.ip(&[
            &format!("rule add fwmark {MARK} table {TABLE}"),
            &format!("route add local 0.0.0.0/0 dev lo table {TABLE}"),
        ])?;
        let steering = Self(lab.gateway.clone());
        // What the guides have go direct, then what belongs to a connection that sing-box holds, then the rest.
        lab.gateway.run(&[
            "nft",
            &format!(
                "add table ip sing-box; \
                 add chain ip sing-box lan {{ type filter hook prerouting priority mangle; }}; \
                 add rule ip sing-box lan ip daddr {{ 10.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 172.16.0.0/12, \
                 192.0.2.0/24, 192.168.0.0/16, 224.0.0.0/3, {server} }} return; \
                 add rule ip sing-box lan meta l4proto tcp socket transparent 1 meta mark set {MARK} accept; \
                 add rule ip sing-box lan iifname {lan} meta l4proto tcp tproxy to 127.0.0.1:{INBOUND} \
                 meta mark set {MARK} accept",
                server = server().ip(),
                lan = lab.lan(),
            ),
        ])?;
        Ok(steering)
    }
}

impl Drop for Steering {
    fn drop(&mut self) {
        let rule = format!("rule del fwmark {MARK} table {TABLE}");
        let routes = format!("route flush table {TABLE}");
        let table = ["nft", "delete table ip sing-box"];
        let gone = self.0.ip(&[&rule, &routes]);
        if let Err(error) = gone.and_then(|()| self.0.run(&table).map(|_| ())) {
            eprintln!("taking the rules of sing-box away: {error:#}");
        }
    }
}
