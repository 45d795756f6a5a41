//! How a relay ended, and the record that says so.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use serde::Serialize;

use super::outbound::Outbound;
use super::stats::Counters;

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $failure:literal;)*) => {
        /// How a connection or association ended. One list for access events and statistics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum Outcome {
            $($(#[$doc])* $name,)*
        }

        impl Outcome {
            /// All outcomes in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word for it: lower case, with underscores.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// Did the device not get what it asked for?
            #[must_use]
            pub const fn is_failure(self) -> bool {
                match self { $(Self::$name => $failure,)* }
            }
        }
    };
}

outcomes! {
    /// Both sides sent FIN.
    Finished = "finished", false;
    /// The device reset the connection.
    DeviceReset = "device_reset", false;
    /// The upstream side reset the connection, or ended the association.
    UpstreamReset = "upstream_reset", false;
    /// The device answers no more (keepalive or retransmission gave up).
    DeviceLost = "device_lost", true;
    /// The upstream side answers no more.
    UpstreamLost = "upstream_lost", true;
    /// Nothing passed for longer than the idle limit.
    Idle = "idle", false;
    /// The proxy ended.
    Drained = "drained", false;
    /// Another association needed the place.
    Evicted = "evicted", true;
    /// Addressed to the proxy's own port.
    OwnPort = "own_port", true;
    /// As many connections as allowed were there already.
    LimitReached = "limit_reached", true;
    /// Nobody listens upstream.
    ConnectRefused = "connect_refused", true;
    /// No answer from upstream within the limit.
    ConnectTimeout = "connect_timeout", true;
    /// There is no route to the upstream side.
    Unreachable = "unreachable", true;
    /// The outbound's host name has no address.
    UnknownHost = "unknown_host", true;
    /// The SOCKS5 server refused the user or asks for one.
    ProxyAuth = "proxy_auth", true;
    /// The SOCKS5 server refused the request.
    ProxyRefused = "proxy_refused", true;
    /// The SOCKS5 server broke the protocol or closed the connection.
    ProxyProtocol = "proxy_protocol", true;
    /// This machine had no socket, port or memory left.
    NoResources = "no_resources", true;
    /// Another error of the kernel.
    Failed = "failed", true;
}

/// TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A connection.
    Tcp,
    /// An association.
    Udp,
}

/// One connection or association. When it is dropped, it counts its outcome and emits the one access
/// event (target `access`).
#[derive(Debug)]
pub struct Record {
    shared: Arc<Shared>,
    started: Instant,
    client: SocketAddr,
    /// Where the device wanted to go (UDP: with its first datagram).
    destination: SocketAddr,
    /// Bytes from the device to the upstream side.
    pub up: u64,
    /// Bytes from the upstream side to the device.
    pub down: u64,
    protocol: Protocol,
    /// How it ended. Who drops the record without setting it is being stopped.
    pub outcome: Outcome,
}

/// What all records of a proxy share.
#[derive(Debug)]
pub struct Shared {
    /// Where connections go.
    pub outbound: Outbound,
    /// The proxy's counters.
    pub counters: Counters,
}

impl Record {
    /// The record of something that begins now.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Self {
        shared.counters.total(protocol).fetch_add(1, Relaxed);
        shared.counters.now(protocol).fetch_add(1, Relaxed);
        Self {
            shared,
            started: Instant::now(),
            client,
            destination,
            up: 0,
            down: 0,
            protocol,
            outcome: Outcome::Drained,
        }
    }

    /// The device.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// What it shares with the others.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let counters = &self.shared.counters;
        counters.now(self.protocol).fetch_sub(1, Relaxed);
        counters.ended(self.outcome).fetch_add(1, Relaxed);
        tracing::info!(
            target: "access",
            protocol = match self.protocol { Protocol::Tcp => "tcp", Protocol::Udp => "udp" },
            client = %self.client,
            destination = %self.destination,
            outbound = %self.shared.outbound,
            up = self.up,
            down = self.down,
            milliseconds = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            outcome = self.outcome.word(),
        );
    }
}
