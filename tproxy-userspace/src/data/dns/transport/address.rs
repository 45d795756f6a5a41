//! Where an upstream is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{Ask, Failure};
use crate::data::dns::group::Group;
use crate::data::dns::upstream::Upstream;
use crate::data::dns::wire::{Question, code, kind};
use crate::data::resolve::Resolver;

/// A name is not looked up more often than this, whatever its TTL.
const SHORTEST_TTL: u32 = 30;
/// More addresses than this are left out: each gets a share of the time.
const MOST: usize = 4;

/// The addresses of an upstream; those of a name are looked up when they are needed.
#[derive(Debug)]
pub struct Addresses {
    port: u16,
    source: Source,
}

#[derive(Debug)]
enum Source {
    Literal(IpAddr),
    Name {
        name: String,
        bootstrap: Arc<Bootstrap>,
        known: Mutex<Option<(Vec<IpAddr>, Instant)>>,
    },
}

/// Who knows the addresses of upstreams: the upstreams that are given by address, and the system.
#[derive(Debug)]
pub struct Bootstrap {
    /// In this order.
    pub groups: Vec<Arc<Group>>,
    /// If none of them knows.
    pub system: Resolver,
}

impl Addresses {
    /// Those of an upstream.
    #[must_use]
    pub fn new(upstream: &Upstream, bootstrap: &Arc<Bootstrap>) -> Self {
        let source = match (upstream.address(), &upstream.host) {
            (Some(address), _) => Source::Literal(address),
            (None, host) => Source::Name {
                name: host.to_string(),
                bootstrap: Arc::clone(bootstrap),
                known: Mutex::default(),
            },
        };
        Self {
            port: upstream.port,
            source,
        }
    }

    /// At least one.
    pub async fn get(&self) -> Result<Vec<SocketAddr>, Failure> {
        let ips = match &self.source {
            Source::Literal(ip) => vec![*ip],
            Source::Name {
                name,
                bootstrap,
                known,
            } => {
                let mut known = known.lock().await;
                match &*known {
                    Some((ips, until)) if Instant::now() < *until => ips.clone(),
                    before => match bootstrap.lookup(name).await {
                        Ok((ips, ttl)) => {
                            let ttl = Duration::from_secs(ttl.max(SHORTEST_TTL).into());
                            *known = Some((ips.clone(), Instant::now() + ttl));
                            ips
                        }
                        // What it was before is better than nothing.
                        Err(error) => before.as_ref().map(|(ips, _)| ips.clone()).ok_or(error)?,
                    },
                }
            }
        };
        let addresses = ips.iter().take(MOST);
        Ok(addresses
            .map(|ip| SocketAddr::new(*ip, self.port))
            .collect())
    }

    /// The next use looks the name up again.
    pub async fn doubt(&self) {
        if let Source::Name { known, .. } = &self.source
            && let Some((_, until)) = &mut *known.lock().await
        {
            *until = Instant::now();
        }
    }
}

impl Bootstrap {
    async fn lookup(&self, name: &str) -> Result<(Vec<IpAddr>, u32), Failure> {
        for group in &self.groups {
            let found = resolve(group, name).await;
            if !found.0.is_empty() {
                return Ok(found);
            }
        }
        let answer = self.system.lookup(name).await?;
        let ttl = u32::try_from(answer.ttl.as_secs()).unwrap_or(u32::MAX);
        Ok((answer.addresses, ttl))
    }
}

/// Both families, IPv4 first: an upstream that has both is reached by it for certain.
async fn resolve(group: &Group, name: &str) -> (Vec<IpAddr>, u32) {
    let (mut found, mut least) = (Vec::new(), u32::MAX);
    let Some(wire) = wire_name(name) else {
        return (found, least);
    };
    let ask = |kind| Ask {
        question: Question {
            name: wire.clone(),
            kind,
            class: 1,
        },
        dnssec_ok: false,
        checking_disabled: false,
    };
    let (v4, v6) = (ask(kind::A), ask(kind::AAAA));
    let (v4, v6) = tokio::join!(group.ask(&v4), group.ask(&v6));
    for response in [v4, v6].into_iter().flatten() {
        if response.code == code::NO_ERROR {
            for (ip, ttl) in response.addresses {
                found.push(ip);
                least = least.min(ttl);
            }
        }
    }
    (found, least)
}

/// A name without escapes, as host names are.
fn wire_name(name: &str) -> Option<Box<[u8]>> {
    let mut wire = Vec::with_capacity(name.len() + 2);
    for label in name.trim_end_matches('.').split('.') {
        let length = u8::try_from(label.len()).ok()?;
        if !(1..=63).contains(&length) {
            return None;
        }
        wire.push(length);
        wire.extend_from_slice(label.as_bytes());
    }
    wire.push(0);
    (wire.len() <= 255).then(|| wire.into())
}
