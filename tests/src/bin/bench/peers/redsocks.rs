//! redsocks behind REDIRECT, to a SOCKS5 server. TCP alone: for its UDP the destination would have to be typed in.

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicU16, Ordering::Relaxed},
};

use anyhow::{Context, Result};
use lab::{
    Family, Lab,
    wait::{Transport, listening},
};
use serde_json::json;

use super::{sing_box, steering::Steering};
use crate::ways::Running;

const SERVER: u16 = 8401;

/// Starts the server, redsocks and the rule that leads to it.
///
/// The server is sing-box, which splices, too. microsocks copies by small pieces: with it, streams are a fifth to a tenth as fast, and twice
/// as many connections come about.
///
/// # Errors
/// When one of them does not listen in time; the message holds its log.
pub fn start(lab: &Lab) -> Result<Option<Running>> {
    let address = SocketAddr::new(Family::V4.upstream(1), SERVER);
    let configuration_of_server = json!({
        "log": { "level": "warn" },
        "inbounds": [{ "type": "socks", "listen": address.ip(), "listen_port": SERVER }],
        "outbounds": [{ "type": "direct" }],
    });
    let server =
        sing_box::program()?.serve(&lab.internet, lab.dir(), &configuration_of_server, SERVER)?;
    let port = own_port();
    let path = lab.dir().join("redsocks.conf");
    fs::write(&path, configuration(port, address))
        .with_context(|| format!("writing {}", path.display()))?;
    let process = lab
        .gateway
        .spawn(&["redsocks", "-c", &path.to_string_lossy()])?;
    listening(&lab.gateway, Transport::Tcp, port)
        .with_context(|| format!("redsocks said: {}", process.lines().join("\n")))?;
    let steering = Steering::redirect(lab, port)?;
    Ok(Some(Running::new(
        process.pid(),
        (steering, process, server),
    )))
}

/// Another one each time: it does not ask for a port (SO_REUSEADDR) that connections of the run before still hold.
fn own_port() -> u16 {
    static STARTS: AtomicU16 = AtomicU16::new(0);
    let ports = super::SHORT_LIVED;
    ports.start() + STARTS.fetch_add(1, Relaxed) % (ports.end() - ports.start() + 1)
}

/// It splices, which it does not unless told.
fn configuration(port: u16, server: SocketAddr) -> String {
    format!(
        "base {{\n  \
           log_debug = off;\n  \
           log_info = off;\n  \
           log = stderr;\n  \
           daemon = off;\n  \
           redirector = iptables;\n\
         }}\n\
         redsocks {{\n  \
           local_ip = 0.0.0.0;\n  \
           local_port = {port};\n  \
           ip = {};\n  \
           port = {};\n  \
           type = socks5;\n  \
           listenq = 4096;\n  \
           splice = true;\n\
         }}\n",
        server.ip(),
        server.port()
    )
}
