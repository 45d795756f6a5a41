//! Relaying by a server of some protocol: ours, and sing-box in the place of ours, to the same server. IPv4, TCP.
//!
//! The server is sing-box, too: it does all these protocols, so both go to the same one.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use lab::{Family, Lab, Process, SingBox, servers::Certificate};
use serde_json::{Value, json};

use crate::{
    ours::Stopping,
    peers::steering::{Led, Steering},
    ways::Running,
};

/// What the names of these rows begin with.
pub const NAME: &str = "outbounds";
/// Where the server listens.
const SERVER: u16 = 8400;
/// Where sing-box listens for what the kernel steers to it.
const INBOUND: u16 = 12346;
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
    let steering = Steering::tproxy(lab, INBOUND, Led::Tcp)?;
    Ok(Some(Running::new(pid, (steering, process, server))))
}
