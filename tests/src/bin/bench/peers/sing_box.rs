//! sing-box by itself.

use anyhow::{Context, Result};
use lab::{
    Lab, SingBox,
    wait::{SOON, until},
};
use serde_json::{Value, json};

use super::{Protocols, Steering};
use crate::ways::Running;

const PORT: u16 = 12346;
const TUN: &str = "tun0";

fn start(lab: &Lab, inbounds: Value) -> Result<lab::Process> {
    let configuration = json!({
        "log": { "level": "warn" },
        "inbounds": inbounds,
        "outbounds": [{ "type": "direct" }],
        "route": { "default_interface": "wan0" },
    });
    let sing_box =
        SingBox::or_skip()?.context("sing-box is one of the programs to compare with")?;
    sing_box.serve(&lab.gateway, lab.dir(), &configuration, PORT)
}

/// Behind TPROXY rules.
pub fn tproxy(lab: &Lab) -> Result<Option<Running>> {
    let inbound = json!([{ "type": "tproxy", "listen": "127.0.0.1", "listen_port": PORT }]);
    let process = start(lab, inbound)?;
    let pid = process.pid();
    let steering = Steering::tproxy(lab, Protocols::Both, PORT, None)?;
    Ok(Some(Running::new(pid, (steering, process))))
}

/// Behind a link of its own, to which it sets the routes itself. What it listens at besides tells that it runs.
pub fn tun(lab: &Lab) -> Result<Option<Running>> {
    let inbounds = json!([
        {
            "type": "tun",
            "interface_name": TUN,
            "address": ["172.19.0.1/30"],
            "auto_route": true,
            "route_exclude_address": ["10.0.0.0/8", "192.0.2.0/24"],
        },
        { "type": "mixed", "listen": "127.0.0.1", "listen_port": PORT },
    ]);
    let process = start(lab, inbounds)?;
    until("the link of sing-box", SOON, || {
        let up = lab.gateway.run(&["ip", "link", "show", TUN]);
        Ok(up.is_ok().then_some(()))
    })?;
    Ok(Some(Running::new(process.pid(), process)))
}
