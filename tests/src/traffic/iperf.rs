//! iperf3's client.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{
    Namespace, process,
    wait::{SOON, until},
};

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct Test<'a> {
    /// UDP at this rate, in iperf3's notation (`100M`). TCP if `None`.
    pub udp: Option<&'a str>,
    /// From the server to the client.
    pub reverse: bool,
    /// How many streams.
    pub streams: u32,
    /// How long, in whole seconds.
    pub seconds: u32,
    /// Bytes of a write (UDP: of a datagram).
    pub length: Option<u32>,
}

impl<'a> Test<'a> {
    /// TCP, and UDP at this rate in datagrams of 1,200 bytes, each in both directions.
    pub fn all(udp: &'a str) -> impl Iterator<Item = Self> {
        [false, true].into_iter().flat_map(move |reverse| {
            [None, Some(udp)].map(|udp| Self {
                udp,
                reverse,
                length: udp.map(|_| 1_200),
                ..Self::default()
            })
        })
    }
}

impl Default for Test<'_> {
    fn default() -> Self {
        Self {
            udp: None,
            reverse: false,
            streams: 1,
            seconds: 1,
            length: None,
        }
    }
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Report {
    /// What arrived, in bits a second.
    pub bits_per_second: f64,
    /// UDP: lost datagrams, in percent.
    pub lost_percent: f64,
    /// TCP: segments sent again (when the sender is this end).
    pub retransmits: u64,
    /// All that iperf3 said.
    pub json: Value,
}

/// Runs one test against `server`.
///
/// # Errors
/// When iperf3 fails; the message is its own.
pub fn iperf(ns: &Namespace, server: SocketAddr, test: Test<'_>) -> Result<Report> {
    // The server takes one test at a time, and needs a moment to see that the one before has ended.
    let json = until("iperf3's server to be free", SOON, || {
        let json = run(ns, server, test)?;
        let begun = json["start"]["connected"] != serde_json::json!([]);
        let busy = json["error"].as_str().is_some_and(|error| {
            // It closes its listener between two tests, and resets who has come too early.
            error.contains("busy") || !begun && error.contains("reset by peer")
        });
        Ok((!busy).then_some(json))
    })?;
    let end = &json["end"];
    // For UDP "sum" is what the receiver counted, sent over the control connection.
    let received = if test.udp.is_some() {
        &end["sum"]
    } else {
        &end["sum_received"]
    };
    Ok(Report {
        bits_per_second: received["bits_per_second"]
            .as_f64()
            .with_context(|| format!("no rate in iperf3's report: {json}"))?,
        lost_percent: received["lost_percent"].as_f64().unwrap_or_default(),
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or_default(),
        json,
    })
}

fn run(ns: &Namespace, server: SocketAddr, test: Test<'_>) -> Result<Value> {
    let mut command = ns.command("iperf3");
    command.args(["-J", "-c", &server.ip().to_string()]);
    command.args(["-p", &server.port().to_string()]);
    command.args(["--connect-timeout", "5000"]);
    command.args(["-t", &test.seconds.to_string()]);
    command.args(["-P", &test.streams.to_string()]);
    if test.reverse {
        command.arg("-R");
    }
    if let Some(length) = test.length {
        command.args(["-l", &length.to_string()]);
    }
    if let Some(rate) = test.udp {
        command.args(["-u", "-b", rate]);
    }
    let limit = Duration::from_secs(u64::from(test.seconds) + 20);
    process::run(command, limit)?.ok()?.json()
}
