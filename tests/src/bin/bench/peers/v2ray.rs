//! The way that tproxy-bpf replaces: v2ray behind the rules of the TPROXY guides, IPv4.

use anyhow::Result;
use lab::{Lab, addr::TYPED_DIRECT, servers::V2ray};
use serde_json::json;

use crate::ways::Running;

const PORT: u16 = 12345;
/// The table that delivers locally, and the mark that leads there.
const TABLE: &str = "100";
/// The mark of v2ray's own sockets.
const OWN: u8 = 255;

/// Sets up rules and routes and starts v2ray.
pub fn start(lab: &Lab) -> Result<Option<Running>> {
    lab.gateway.ip(&[
        &format!("rule add fwmark 1 table {TABLE}"),
        &format!("route add local 0.0.0.0/0 dev lo table {TABLE}"),
    ])?;
    let mut rules = vec!["-N V2RAY".to_owned()];
    rules.extend(
        TYPED_DIRECT
            .iter()
            .map(|net| format!("-A V2RAY -d {net} -j RETURN")),
    );
    rules.push(format!("-A V2RAY -m mark --mark {OWN} -j RETURN"));
    for protocol in ["tcp", "udp"] {
        rules.push(format!(
            "-A V2RAY -p {protocol} -j TPROXY --on-ip 127.0.0.1 --on-port {PORT} --tproxy-mark 1"
        ));
    }
    rules.push("-A PREROUTING -j V2RAY".to_owned());
    // What belongs to a connection that v2ray holds need not go through the list again.
    for rule in [
        "-N DIVERT",
        "-A DIVERT -j MARK --set-mark 1",
        "-A DIVERT -j ACCEPT",
        "-I PREROUTING -p tcp -m socket -j DIVERT",
    ] {
        rules.push(rule.to_owned());
    }
    for rule in rules {
        let words = ["iptables", "-w", "-t", "mangle"];
        let argv: Vec<&str> = words.into_iter().chain(rule.split(' ')).collect();
        lab.gateway.run(&argv)?;
    }
    let configuration = json!({
        "log": { "loglevel": "warning" },
        "inbounds": [{
            "port": PORT,
            "protocol": "dokodemo-door",
            "settings": { "network": "tcp,udp", "followRedirect": true },
            "streamSettings": { "sockopt": { "tproxy": "tproxy" } }
        }],
        "outbounds": [{
            "protocol": "freedom",
            "streamSettings": { "sockopt": { "mark": OWN } }
        }]
    });
    let v2ray = V2ray::start(&lab.gateway, lab.dir(), &configuration, PORT)?;
    Ok(Some(Running::new(v2ray.process().pid(), v2ray)))
}
