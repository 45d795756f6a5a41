//! How the server of an outbound is reached: by this machine itself, and with which sockets, or through another outbound.

use std::net::SocketAddr;
use std::sync::Arc;

use url::Host;

use super::Way;
use crate::data::outbound::{Outbound, Target};
use crate::data::router::Named;
use crate::data::tls::Connector;
use crate::net::Binding;

impl Way {
    /// The other way that the server is reached through, and what that is asked for. None: this machine connects to the
    /// server itself.
    #[must_use]
    pub fn through(&self) -> Option<(&Self, Target<'_>)> {
        let via = self.via.as_deref()?;
        let server = self.outbound.server()?;
        if *via.outbound == Outbound::Direct {
            return None;
        }
        Some(match &server.host {
            Host::Domain(name) => (via, Target::Name(name, server.port)),
            Host::Ipv4(ip) => (via, SocketAddr::from((*ip, server.port)).into()),
            Host::Ipv6(ip) => (
                via,
                SocketAddr::from((ip.to_canonical(), server.port)).into(),
            ),
        })
    }

    /// What the sockets have that this machine connects with.
    #[must_use]
    pub fn binding(&self) -> &Binding {
        // Another one is `direct://`, or has sockets of its own.
        self.via.as_ref().map_or(&self.binding, |via| &via.binding)
    }

    /// Is it the same as if there were no proxy?
    #[must_use]
    pub fn is_plainly_direct(&self) -> bool {
        *self.outbound == Outbound::Direct && self.binding == Binding::default()
    }

    /// Is it as this one is configured? `via` is what that one names.
    pub(in crate::data) fn is(&self, named: &Named, via: Option<&Arc<Self>>) -> bool {
        let same_via = match (&self.via, via) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (own, other) => own.is_none() && other.is_none(),
        };
        *self.name == *named.name
            && *self.outbound == named.outbound
            && self.binding == named.binding
            && same_via
    }

    /// The server's name, if this machine has to know what it means.
    pub(super) fn name_to_look_up(&self) -> Option<&str> {
        if self.through().is_some() {
            return None;
        }
        match &self.outbound.server()?.host {
            Host::Domain(name) => Some(name),
            Host::Ipv4(_) | Host::Ipv6(_) => None,
        }
    }

    /// How to speak TLS to the server.
    ///
    /// # Panics
    /// Of an outbound without TLS.
    pub(in crate::data) fn tls(&self) -> &Connector {
        self.tls.as_ref().expect("made with the way")
    }
}
