//! The server of iperf3.

use anyhow::{Context, Result};

use crate::{
    Namespace, Process,
    wait::{Transport, listening},
};

/// `iperf3 -s`: one test at a time, both families.
#[derive(Debug)]
pub struct Iperf {
    process: Process,
    port: u16,
}

impl Iperf {
    /// Starts it at `port` (its own default is 5201).
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(ns: &Namespace, port: u16) -> Result<Self> {
        let process = ns.spawn(&["iperf3", "-s", "-p", &port.to_string()])?;
        listening(ns, Transport::Tcp, port)
            .with_context(|| format!("iperf3 said: {}", process.lines().join("\n")))?;
        Ok(Self { process, port })
    }

    /// Where it listens.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }
}
