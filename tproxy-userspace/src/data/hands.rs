//! What the relays work with.

use std::sync::Arc;

use super::dns;
use super::outbound::Dialer;
use super::record::Shared;

/// What TCP and UDP share.
#[derive(Clone, Debug)]
pub struct Hands {
    /// Where traffic goes, and the counters.
    pub shared: Arc<Shared>,
    /// Opens connections.
    pub dialer: Dialer,
    /// Answers what is sent to port 53, if it is there.
    pub dns: Arc<dns::Slot>,
}

#[cfg(test)]
impl Hands {
    /// These ways and rules, and no resolver.
    pub fn fixed(router: super::router::Router, limits: &super::Limits) -> Self {
        Self {
            shared: Arc::new(Shared::new(router)),
            dialer: Dialer {
                factory: crate::net::SocketFactory::default(),
                limit: limits.connect_timeout,
                keepalive: limits.keepalive,
                guard: Arc::default(),
            },
            dns: Arc::default(),
        }
    }
}
