//! Flows as connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;

use super::{Fault, Name, Shared};
use crate::data::{Flow, View};
use crate::observe::api::reply::Failure;
use crate::observe::process;
use crate::policy::rule::Protocol;

/// All that live.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Connections {
    download_total: u64,
    upload_total: u64,
    connections: Vec<Connection>,
    memory: u64,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Connection {
    id: String,
    metadata: Metadata,
    upload: u64,
    download: u64,
    start: String,
    /// The outbound, then the group that has it.
    chains: Vec<String>,
    rule: String,
    rule_payload: &'static str,
}

/// Ports are texts.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    network: &'static str,
    #[serde(rename = "type")]
    kind: &'static str,
    #[serde(rename = "sourceIP")]
    source_ip: String,
    #[serde(rename = "destinationIP")]
    destination_ip: String,
    source_port: String,
    destination_port: String,
    host: String,
    dns_mode: &'static str,
    process: &'static str,
    process_path: &'static str,
    special_proxy: &'static str,
    sniff_host: String,
    remote_destination: &'static str,
}

impl Connections {
    /// All that live now.
    pub fn of(view: &View) -> Self {
        let stats = view.stats();
        let now = SystemTime::now();
        Self {
            download_total: stats.bytes_down,
            upload_total: stats.bytes_up,
            connections: view
                .flows()
                .iter()
                .map(|flow| Connection::of(flow, now))
                .collect(),
            memory: process::resident().unwrap_or_default(),
        }
    }
}

impl Connection {
    fn of(flow: &Arc<Flow>, now: SystemTime) -> Self {
        let status = flow.status();
        let ip = |address: SocketAddr| address.ip().to_canonical().to_string();
        let port = |address: SocketAddr| address.port().to_string();
        let name = status.name.unwrap_or_default();
        let age = Duration::from_millis(status.age_ms);
        let start = now.checked_sub(age).unwrap_or(now);
        Self {
            id: status.id.to_string(),
            metadata: Metadata {
                network: match status.protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                },
                kind: "TProxy",
                source_ip: ip(status.client),
                destination_ip: ip(status.destination),
                source_port: port(status.client),
                destination_port: port(status.destination),
                sniff_host: name.clone(),
                host: name,
                dns_mode: "normal",
                process: "",
                process_path: "",
                special_proxy: "",
                remote_destination: "",
            },
            upload: status.bytes.up,
            download: status.bytes.down,
            start: humantime::format_rfc3339_millis(start).to_string(),
            chains: status.outbound.into_iter().chain(status.group).collect(),
            rule: status.rule.unwrap_or_else(|| "Match".to_owned()),
            rule_payload: "",
        }
    }
}

pub async fn kill_all(State(hub): Shared) -> Result<StatusCode, Fault> {
    let present = hub.present().await?;
    for flow in present.view.flows() {
        present.view.kill(flow.id);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// One that has ended already is as good as ended: pages end what they saw a second ago.
pub async fn kill(State(hub): Shared, axum::extract::Path(id): Name) -> Result<StatusCode, Fault> {
    let none = || Failure::missing(format!("no connection has the number {id:?}"));
    let number: u64 = id.parse().map_err(|_| none())?;
    hub.present().await?.view.kill(number);
    Ok(StatusCode::NO_CONTENT)
}
