//! sslocal of shadowsocks-rust, the relay of this kind that is written in Rust and with Tokio, too.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use lab::{
    Family, Lab, Namespace, Process,
    wait::{Transport, listening},
};

use super::{Protocols, Steering};
use crate::ways::Running;

const PORT: u16 = 12349;
const SERVER: u16 = 8388;
const CIPHER: [&str; 4] = ["-m", "aes-128-gcm", "-k", "password"];

/// Starts it and its server.
pub fn start(lab: &Lab) -> Result<Option<Running>> {
    let server = SocketAddr::new(Family::V4.upstream(1), SERVER);
    let at = server.to_string();
    let serving = run(&lab.internet, "ssserver", &["-s", &at, "-U"], SERVER)?;
    let listen = format!("127.0.0.1:{PORT}");
    let process = run(
        &lab.gateway,
        "sslocal",
        &[
            "-b",
            &listen,
            "-s",
            &at,
            "-U",
            "--protocol",
            "redir",
            "--tcp-redir",
            "tproxy",
            "--udp-redir",
            "tproxy",
        ],
        PORT,
    )?;
    let pid = process.pid();
    let steering = Steering::tproxy(lab, Protocols::Both, PORT, Some(server.ip()))?;
    Ok(Some(Running::new(pid, (steering, process, serving))))
}

fn run(ns: &Namespace, name: &str, arguments: &[&str], port: u16) -> Result<Process> {
    let program = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../.tools/bin")
        .join(name);
    let mut command = ns.command(program.to_str().context("the path is text")?);
    command.args(arguments).args(CIPHER);
    let process = Process::spawn(command).with_context(|| {
        format!("{name} of shadowsocks-rust; `cargo xtask bench --peers` builds it")
    })?;
    listening(ns, Transport::Tcp, port)
        .with_context(|| format!("{name} said: {}", process.lines().join("\n")))?;
    Ok(process)
}
