//! The server of iperf3.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::{Namespace, Process, wait::SOON};

/// `iperf3 -s` at one address: one test at a time.
#[derive(Debug)]
pub struct Iperf {
    process: Process,
    address: SocketAddr,
}

impl Iperf {
    /// The port that iperf3 itself would choose.
    pub const PORT: u16 = 5201;

    /// Starts it. Not at all addresses: over UDP it would answer from the address that the route back
    /// suggests instead of the one that was asked, and the client would wait for ever.
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(ns: &Namespace, address: IpAddr) -> Result<Self> {
        let address = SocketAddr::new(address, Self::PORT);
        let process = ns.spawn(&[
            "iperf3",
            "-s",
            "--forceflush",
            "-B",
            &address.ip().to_string(),
            "-p",
            &address.port().to_string(),
        ])?;
        process.wait_for_line("Server listening", SOON)?;
        Ok(Self { process, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }
}
