//! dnsmasq: fixed names, and who asked for them.

use std::net::IpAddr;

use anyhow::{Context, Result};

use crate::{
    Family, Namespace, Process,
    wait::{SOON, Transport, listening, until},
};

/// dnsmasq on port 53 of every address of a namespace, UDP and TCP, both families.
///
/// `host.lab` has the first far address of each family; `big.lab` has a TXT answer of over 3,000 bytes,
/// which is truncated over UDP.
#[derive(Debug)]
pub struct Dnsmasq {
    process: Process,
}

impl Dnsmasq {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(ns: &Namespace) -> Result<Self> {
        let host = format!(
            "--host-record=host.lab,{},{}",
            Family::V4.far(1),
            Family::V6.far(1)
        );
        let big = vec!["x".repeat(250); 13].join(",");
        let process = ns.spawn(&[
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--user=root",
            "--group=root",
            "--no-resolv",
            "--no-hosts",
            "--no-poll",
            "--cache-size=0",
            "--log-queries",
            "--log-facility=-",
            &host,
            &format!("--txt-record=big.lab,{big}"),
        ])?;
        listening(ns, Transport::Tcp, 53)
            .and_then(|()| listening(ns, Transport::Udp, 53))
            .with_context(|| format!("dnsmasq said: {}", process.lines().join("\n")))?;
        Ok(Self { process })
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// All clients that asked for `name`, in order.
    #[must_use]
    pub fn clients_of(&self, name: &str) -> Vec<IpAddr> {
        let pattern = format!(" {name} from ");
        self.process
            .lines()
            .iter()
            .filter(|line| line.contains("query["))
            .filter_map(|line| line.split_once(&pattern)?.1.trim().parse().ok())
            .collect()
    }

    /// Waits until `count` questions for `name` are logged; gives the last one's client.
    ///
    /// # Errors
    /// When they do not come.
    pub fn client_of(&self, name: &str, count: usize) -> Result<IpAddr> {
        until(&format!("{count} questions for {name}"), SOON, || {
            let clients = self.clients_of(name);
            Ok((clients.len() >= count)
                .then(|| clients.last().copied())
                .flatten())
        })
    }
}
