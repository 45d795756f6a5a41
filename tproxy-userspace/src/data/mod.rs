//! The proxy: relays what the kernel half steers.
//!
//! It knows nothing of the kernel half. Steered connections arrive on its [`Sockets`] with the original
//! destination as their local address, steered datagrams with it in a control message.

mod check;
pub mod dns;
mod exit;
mod guard;
mod hands;
mod limits;
mod live;
#[cfg(test)]
mod logged;
pub mod outbound;
mod proxy;
mod reached;
mod read_size;
mod record;
mod resolve;
mod router;
mod shares;
pub mod sniff;
mod sockets;
mod stats;
mod stream;
mod tcp;
mod tls;
mod udp;
mod view;
mod way;
mod workers;

pub use self::check::{CheckSettings, CheckUrl};
pub use self::exit::{GroupStatus, NamedGroup};
pub use self::limits::{Budget, ENOUGH_CONNECTIONS, Limits};
pub use self::live::{Account, Bytes, Flow, FlowStatus};
pub use self::outbound::{Outbound, OutboundError};
pub use self::proxy::{DrainReport, Handed, Inheritance, Proxy};
pub use self::reached::{Alarm, Reached};
pub use self::record::Outcome;
pub use self::resolve::LookupError;
pub use self::router::{Explained, Named, NamedRule, Resolving, Routing, Sniff, Taken};
pub use self::sockets::Sockets;
pub use self::stats::Stats;
pub use self::udp::{Candidate, Carried, Draining, Express, Inherited};
pub use self::view::View;
pub use self::way::{HealthStatus, OutboundStatus, Upstream};

use std::io;
use std::net::SocketAddr;

use self::dns::TlsError;
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
    /// A thread that relays could not be started.
    #[error(
        "starting a thread that relays failed: {0}; this machine has no files or no memory left"
    )]
    Worker(#[source] io::Error),
    /// There must be one for all that nothing else is said of.
    #[error("there is no outbound; name one, such as direct://")]
    NoOutbound,
    /// A rule sends what it is about nowhere.
    #[error("there is no outbound \"{outbound}\", which the rule \"{rule}\" names")]
    UnknownOutbound {
        /// The rule.
        rule: String,
        /// What it names.
        outbound: String,
    },
    /// An outbound is to be reached through one that is not there, or through itself.
    #[error(
        "the outbound \"{outbound}\" cannot be reached through \"{via}\": there is none of that name, or it is reached \
         through \"{outbound}\" itself"
    )]
    Via {
        /// The outbound.
        outbound: String,
        /// What it is to be reached through.
        via: String,
    },
    /// A group has none, one that is not there, or itself.
    #[error(
        "the group \"{0}\" has no members, one that is neither an outbound nor a group, or itself"
    )]
    Member(String),
    /// The servers that speak TLS cannot be asked.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The outbound's server has no address.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The outbound's server is this proxy.
    #[error(
        "the outbound {outbound} leads back into this proxy: {address} is its own listener; name another server, \
         or give the proxy another port (`[proxy] port`)"
    )]
    Loop {
        /// The outbound.
        outbound: String,
        /// The address of the listener.
        address: SocketAddr,
    },
}
