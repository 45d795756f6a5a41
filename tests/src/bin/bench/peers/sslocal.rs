//! sslocal of shadowsocks-rust behind TPROXY rules of nft, to the server of the same crate.

use std::{fs, net::SocketAddr};

use anyhow::{Context, Result};
use lab::{
    Family, Lab, Namespace, Process, tools,
    wait::{Transport, listening},
};
use serde_json::{Value, json};

use super::steering::{Led, Steering};
use crate::ways::Running;

const PORT: u16 = 12350;
const SERVER: u16 = 8402;
/// No cipher: what is compared is relaying, and the others do none either.
const METHOD: &str = "none";

/// Starts the server, sslocal and the rules that lead to it.
///
/// # Errors
/// When one of them is not there or does not listen in time; the message holds its log.
pub fn start(lab: &Lab) -> Result<Option<Running>> {
    let address = SocketAddr::new(Family::V4.upstream(1), SERVER);
    let server = json!({
        "address": address.ip(),
        "port": address.port(),
        "method": METHOD,
        "password": "",
    });
    let far = json!({ "servers": [server], "mode": "tcp_and_udp" });
    let near = json!({
        "servers": [server],
        "locals": [{
            "protocol": "redir",
            "mode": "tcp_and_udp",
            "local_address": "127.0.0.1",
            "local_port": PORT,
            "tcp_redir": "tproxy",
            "udp_redir": "tproxy",
        }],
    });
    let server = run(lab, &lab.internet, "ssserver", &far, SERVER)?;
    let process = run(lab, &lab.gateway, "sslocal", &near, PORT)?;
    let steering = Steering::tproxy(lab, PORT, Led::Both)?;
    Ok(Some(Running::new(
        process.pid(),
        (steering, process, server),
    )))
}

/// One of its programs, listening at this port for both.
fn run(lab: &Lab, ns: &Namespace, name: &str, configuration: &Value, port: u16) -> Result<Process> {
    let program = tools::pinned(name).with_context(|| {
        format!("there is no {name} to compare with; `cargo xtask bench --peers` gets it")
    })?;
    let path = lab.dir().join(format!("{name}.json"));
    fs::write(&path, configuration.to_string())
        .with_context(|| format!("writing {}", path.display()))?;
    let (program, path) = (program.to_string_lossy(), path.to_string_lossy());
    let process = ns.spawn(&[&program, "-c", &path])?;
    listening(ns, Transport::Tcp, port)
        .and_then(|()| listening(ns, Transport::Udp, port))
        .with_context(|| format!("{name} said: {}", process.lines().join("\n")))?;
    Ok(process)
}
