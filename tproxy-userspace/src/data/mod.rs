//! The proxy: relays what the kernel half steers.
//!
//! It knows nothing of the kernel half. Steered connections arrive on its [`Sockets`] with the original
//! destination as their local address, steered datagrams with it in a control message.

mod limits;
pub mod outbound;
mod proxy;
mod record;
pub mod sniff;
mod sockets;
mod stats;
mod tcp;
mod udp;

pub use self::limits::{Budget, Limits};
pub use self::outbound::{Outbound, OutboundError};
pub use self::proxy::{DrainReport, Proxy};
pub use self::record::Outcome;
pub use self::sockets::Sockets;
pub use self::stats::Stats;

use std::io;

use crate::net::NetError;

/// Why the proxy could not be started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket or the limit of open files.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The runtime did not take a socket.
    #[error("handing a socket to the runtime failed: {0}")]
    Register(#[source] io::Error),
}
