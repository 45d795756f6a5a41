//! Where traffic goes: the outbounds in use.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use futures_util::future::select_all;

use super::Error;
use super::guard::Guard;
use super::outbound::Outbound;
use super::resolve::Resolver;
use super::way::Way;

/// An outbound as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name, for people.
    pub name: String,
    /// What it is.
    pub outbound: Outbound,
}

#[cfg(test)]
impl Named {
    /// An outbound as a test writes it.
    pub fn fixed(url: &str) -> Self {
        Self {
            name: "fixed".to_owned(),
            outbound: url.parse().expect("a URL"),
        }
    }
}

/// The outbounds in use.
#[derive(Debug)]
pub struct Router {
    /// Never empty. The first is for all that nothing else is said of.
    ways: Vec<Arc<Way>>,
}

impl Router {
    /// Looks the servers of all outbounds up, and makes sure that none is the proxy itself.
    ///
    /// # Errors
    /// [`Error::NoOutbound`], [`Error::Lookup`], [`Error::Loop`].
    pub async fn open(
        outbounds: Vec<Named>,
        resolver: &Resolver,
        guard: &Guard,
    ) -> Result<Self, Error> {
        let mut ways = Vec::new();
        for outbound in outbounds {
            ways.push(Arc::new(Way::open(outbound, resolver, guard).await?));
        }
        if ways.is_empty() {
            return Err(Error::NoOutbound);
        }
        Ok(Self { ways })
    }

    /// One outbound as a test writes it.
    #[cfg(test)]
    pub fn fixed(outbound: &str) -> Self {
        Self::from(Way::fixed(outbound))
    }

    /// The way of all that nothing else is said of.
    #[must_use]
    pub fn default_way(&self) -> &Arc<Way> {
        self.ways.first().expect("a router has an outbound")
    }

    /// The addresses of all servers.
    #[must_use]
    pub fn servers(&self) -> BTreeSet<IpAddr> {
        self.ways.iter().flat_map(|way| way.addresses()).collect()
    }

    /// Waits until it is time to look one of the servers up, and does. Never ends without a name.
    pub(super) async fn refresh(&self, resolver: &Resolver, guard: &Guard) {
        let all = self
            .ways
            .iter()
            .map(|way| Box::pin(way.refresh(resolver, guard)));
        select_all(all).await;
    }
}

#[cfg(test)]
impl From<Way> for Router {
    fn from(way: Way) -> Self {
        Self {
            ways: vec![Arc::new(way)],
        }
    }
}
