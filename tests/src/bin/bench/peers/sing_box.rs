//! sing-box with its two inbounds for gateways and the outbound direct, as it comes otherwise.

use anyhow::{Context, Result};
use lab::{
    Lab, Process, SingBox,
    wait::{SOON, until},
};
use serde_json::{Value, json};

use super::steering::{Led, Steering};
use crate::ways::Running;

const PORT: u16 = 12349;
/// The rule that leads to the routes that `auto_route` makes, which come before it.
const RULE: &str = "lookup 2022";

/// The program.
///
/// # Errors
/// When it is not there.
pub fn program() -> Result<SingBox> {
    SingBox::or_skip()?
        .context("there is no sing-box to compare with; `cargo xtask bench --peers` gets it")
}

/// Its `tproxy` inbound behind TPROXY rules of nft.
///
/// # Errors
/// When it does not listen in time; the message holds its log.
pub fn tproxy(lab: &Lab) -> Result<Option<Running>> {
    let configuration = json!({
        "log": { "level": "warn" },
        "inbounds": [{ "type": "tproxy", "listen": "127.0.0.1", "listen_port": PORT }],
        "outbounds": [{ "type": "direct" }],
    });
    let process = program()?.serve(&lab.gateway, lab.dir(), &configuration, PORT)?;
    let steering = Steering::tproxy(lab, PORT, Led::Both)?;
    Ok(Some(Running::new(process.pid(), (steering, process))))
}

/// Its `tun` inbound, which makes its link and routes itself.
///
/// Without `auto_redirect`, which leads TCP past the tun: that starts only where nft has `queue`, and not every kernel does.
///
/// # Errors
/// When its routes are not there in time; the message holds its log.
pub fn tun(lab: &Lab) -> Result<Option<Running>> {
    let process = program()?.start(&lab.gateway, lab.dir(), &with_tun(), "tun")?;
    // It comes before the wait, so that what is there by then goes away again.
    let process = Graceful(process);
    until("sing-box to make its routes", SOON, || {
        let rules = lab.gateway.run(&["ip", "rule"])?.stdout;
        Ok(rules.contains(RULE).then_some(()))
    })
    .with_context(|| format!("sing-box said: {}", process.0.lines().join("\n")))?;
    Ok(Some(Running::new(process.0.pid(), process)))
}

fn with_tun() -> Value {
    json!({
        "log": { "level": "warn" },
        "inbounds": [{
            "type": "tun",
            "interface_name": "tun0",
            "address": ["172.18.0.1/30"],
            "auto_route": true,
            "stack": "system",
        }],
        "outbounds": [{ "type": "direct" }],
        "route": { "auto_detect_interface": true },
    })
}

/// A sing-box that takes back what it made, which it does not when it is killed.
struct Graceful(Process);

impl Drop for Graceful {
    fn drop(&mut self) {
        if let Err(error) = self.0.stop(SOON) {
            eprintln!("stopping sing-box, whose routes may be left: {error:#}");
        }
    }
}
