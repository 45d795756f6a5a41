//! What flows and associations are known by.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, SocketAddr};
use std::ptr;
use std::sync::Arc;

use super::table::OfDevice;
use crate::data::record::Protocol;
use crate::data::way::Way;
use crate::policy::rule::Query;

/// What one client sends to one destination, and what comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// The device.
    pub client: SocketAddr,
    /// Where it wants to go.
    pub destination: SocketAddr,
}

impl Flow {
    /// What the rules are asked about.
    #[must_use]
    pub fn query<'n>(&self, name: Option<&'n str>) -> Query<'n> {
        Query {
            protocol: Protocol::Udp,
            source: self.client,
            destination: self.destination,
            name,
        }
    }
}

impl OfDevice for Flow {
    fn device(&self) -> IpAddr {
        self.client.ip()
    }
}

/// What an association is known by: all flows of one client that take one way share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The device.
    pub client: SocketAddr,
    /// Which of its ways.
    pub way: WayKey,
}

impl OfDevice for Key {
    fn device(&self) -> IpAddr {
        self.client.ip()
    }
}

/// Which way, for as long as an association of it lives.
///
/// The default way has no identity: after a reload with another default outbound, the association that a client has
/// is found again and goes on by the outbound that it was made with. Every other way is one [`Way`]. A key
/// keeps it, so that no other way can come to have its place in memory while the key is in use.
#[derive(Clone, Debug)]
pub enum WayKey {
    /// The way that was the default when the association was made.
    Default,
    /// This way.
    Other(Arc<Way>),
}

impl WayKey {
    fn identity(&self) -> *const Way {
        match self {
            Self::Default => ptr::null(),
            Self::Other(way) => Arc::as_ptr(way),
        }
    }
}

impl PartialEq for WayKey {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for WayKey {}

impl Hash for WayKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_told_apart_by_identity_and_the_default_is_one() {
        let way = Arc::new(Way::fixed("direct://"));
        let twin = Arc::new(Way::fixed("direct://"));
        assert_eq!(WayKey::Other(Arc::clone(&way)), WayKey::Other(way.clone()));
        assert_ne!(WayKey::Other(Arc::clone(&way)), WayKey::Other(twin));
        assert_ne!(WayKey::Other(way), WayKey::Default);
        assert_eq!(WayKey::Default, WayKey::Default);
    }
}
