//! Telling whether an address leads back into this proxy.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{PoisonError, RwLock};

use super::sockets::{Family, Sockets};

/// Knows the proxy's own sockets and the gateway's own addresses.
#[derive(Debug, Default)]
pub struct Guard {
    listeners: Ports,
    receivers: Ports,
    own: RwLock<BTreeSet<IpAddr>>,
}

/// The ports of the sockets of one kind. None for a family that is not there.
#[derive(Clone, Debug, Default)]
struct Ports {
    v4: Vec<u16>,
    v6: Vec<u16>,
}

impl Ports {
    fn has(&self, address: SocketAddr) -> bool {
        let ports = match address.ip().to_canonical() {
            IpAddr::V4(_) => &self.v4,
            IpAddr::V6(_) => &self.v6,
        };
        ports.contains(&address.port())
    }
}

impl Guard {
    /// `own` are the gateway's addresses.
    #[must_use]
    pub fn new(sockets: &Sockets, own: BTreeSet<IpAddr>) -> Self {
        let ports = |ports: fn(&Family) -> Vec<u16>| Ports {
            v4: ports(&sockets.v4),
            v6: sockets.v6.as_ref().map(ports).unwrap_or_default(),
        };
        Self {
            listeners: ports(|family| family.listeners.iter().map(|one| one.1.port()).collect()),
            receivers: ports(|family| vec![family.receiver_address.port()]),
            own: RwLock::new(own),
        }
    }

    /// From now on these are the gateway's addresses.
    pub fn set_own(&self, own: BTreeSet<IpAddr>) {
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = own;
    }

    /// Is it an address of this machine? Linux takes the unspecified ones for loopback.
    #[must_use]
    pub fn is_here(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let own = self.own.read().unwrap_or_else(PoisonError::into_inner);
        address.is_loopback() || address.is_unspecified() || own.contains(&address)
    }

    /// Would a TCP connection to it come to the proxy's own listener?
    #[must_use]
    pub fn is_listener(&self, address: SocketAddr) -> bool {
        self.listeners.has(address) && self.is_here(address.ip())
    }

    /// Would a datagram to it come to the proxy's own receiver?
    #[must_use]
    pub fn is_receiver(&self, address: SocketAddr) -> bool {
        self.receivers.has(address) && self.is_here(address.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_own_address_with_the_listeners_port_is_the_listener() {
        let guard = Guard {
            listeners: Ports {
                v4: vec![6000, 7000],
                v6: vec![7001],
            },
            receivers: Ports {
                v4: vec![7002],
                v6: Vec::new(),
            },
            own: RwLock::default(),
        };
        let own = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().expect("a literal"));
        guard.set_own(own.into());
        let is_listener = |text: &str| guard.is_listener(text.parse().expect("a literal"));
        for own in ["127.0.0.1", "127.1.2.3", "0.0.0.0", "192.0.2.1"] {
            assert!(is_listener(&format!("{own}:7000")), "{own}");
            assert!(is_listener(&format!("[::ffff:{own}]:7000")), "{own}");
            assert!(!is_listener(&format!("{own}:7001")), "the other family's");
            assert!(!is_listener(&format!("{own}:7002")), "the receiver's");
            assert!(guard.is_receiver((own.parse::<IpAddr>().expect("literal"), 7002).into()));
        }
        for own in ["::1", "::", "2001:db8::1"] {
            assert!(is_listener(&format!("[{own}]:7001")), "{own}");
            assert!(!is_listener(&format!("[{own}]:7000")), "{own}");
            assert!(!guard.is_receiver((own.parse::<IpAddr>().expect("literal"), 0).into()));
        }
        assert!(!is_listener("192.0.2.2:7000"));
        assert!(!is_listener("[2001:db8::2]:7001"));
        guard.set_own(BTreeSet::new());
        assert!(!is_listener("192.0.2.1:7000"));
    }
}
