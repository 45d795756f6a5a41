//! The way that tproxy-bpf replaces: v2ray behind the rules of the TPROXY guides.

use anyhow::Result;
use lab::{Lab, servers::V2ray};
use serde_json::json;

use super::{Protocols, Steering};
use crate::ways::Running;

const PORT: u16 = 12345;

/// Starts it.
pub fn start(lab: &Lab) -> Result<Option<Running>> {
    let configuration = json!({
        "log": { "loglevel": "warning" },
        "inbounds": [{
            "port": PORT,
            "protocol": "dokodemo-door",
            "settings": { "network": "tcp,udp", "followRedirect": true },
            "streamSettings": { "sockopt": { "tproxy": "tproxy" } }
        }],
        "outbounds": [{ "protocol": "freedom" }]
    });
    let v2ray = V2ray::start(&lab.gateway, lab.dir(), &configuration, PORT)?;
    let pid = v2ray.process().pid();
    let steering = Steering::tproxy(lab, Protocols::Both, PORT, None)?;
    Ok(Some(Running::new(pid, (steering, v2ray))))
}
