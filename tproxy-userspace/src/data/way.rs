//! An outbound in use: with its server's addresses, which are known before anything is relayed and kept fresh.

mod condition;
mod road;
mod spare;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use url::Host;

use self::condition::Down;
pub use self::condition::{HealthStatus, OutboundStatus};
use self::spare::Spares;
pub use self::spare::keep;
use super::Error;
use super::guard::Guard;
use super::outbound::{DialError, Outbound};
use super::record::{Outcome, Shared};
use super::resolve::{Answer, LookupError, Resolver};
use super::router::{Named, Router, Routing};
use super::sockets::Sockets;
use super::tls::{Connector, Roots, TlsError};
use crate::net::{Binding, SocketFactory};
use crate::policy::health::Health;

/// A name is not looked up more often than this because its time is over, whatever its TTL.
const SHORTEST_TTL: Duration = Duration::from_secs(10);
/// It is looked up at least this often: a server that moves is found although the old address held for days.
const LONGEST_TTL: Duration = Duration::from_secs(600);
/// The time between two look-ups because the server could not be reached.
const PAUSE: Duration = Duration::from_secs(1);
/// More addresses than this are left out: each attempt to connect gets a share of the time.
const MOST_ADDRESSES: usize = 16;

/// What a proxy needs of its upstream side before it starts.
#[derive(Debug)]
pub struct Upstream {
    pub(super) router: Router,
    pub(super) resolver: Resolver,
    pub(super) guard: Arc<Guard>,
}

impl Upstream {
    /// Looks the outbounds' servers up. `sockets` are the proxy's own and `own` the gateway's addresses.
    ///
    /// # Errors
    /// When a server has no address, or one of them is the proxy's own listener.
    pub async fn open(
        routing: Routing,
        sockets: &Sockets,
        own: BTreeSet<IpAddr>,
        factory: SocketFactory,
    ) -> Result<Self, Error> {
        let guard = Arc::new(Guard::new(sockets, own));
        let resolver = Resolver::system(factory);
        let router = Router::open(routing, None, &resolver, &guard).await?;
        Ok(Self {
            router,
            resolver,
            guard,
        })
    }

    /// The addresses of the outbounds' servers. `direct://` has none.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.router.servers()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Way {
    /// The outbound's name.
    pub name: Arc<str>,
    /// The outbound.
    pub outbound: Arc<Outbound>,
    /// The outbound that its server is reached through, if it has one.
    pub(super) via: Option<Arc<Way>>,
    binding: Binding,
    tls: Option<Connector>,
    /// Connections to the server that are ready, if it is spoken to by TLS.
    spares: Option<Spares>,
    known: Mutex<Known>,
    failed: Notify,
    /// What a person has to mend was told.
    told: AtomicBool,
    /// What is known of it, of each protocol.
    health: Mutex<[Health; 2]>,
    /// What was told of that, of each protocol.
    downs: Mutex<[Down; 2]>,
    /// Its server has answered, so it takes the password.
    proven: AtomicBool,
    /// Connections since then that it ended without an answer.
    silent: AtomicU32,
    /// A check may be due sooner than it was.
    doubted: Notify,
}

/// What is known of a server.
#[derive(Debug)]
struct Known {
    /// In the order in which they are tried first. Empty without a server.
    addresses: Vec<SocketAddr>,
    /// The one that was connected to last.
    worked: Option<SocketAddr>,
    /// When the name was looked up last.
    looked_up: Instant,
    /// When it is to be looked up again.
    due: Instant,
    /// The last look-up failed.
    stale: bool,
}

impl Way {
    /// Looks the outbound's server up and makes sure that it is not the proxy itself. `via` is what it names, if it
    /// names one.
    ///
    /// # Errors
    /// [`Error::Lookup`], [`Error::Loop`], [`Error::Tls`].
    pub async fn open(
        named: Named,
        via: Option<Arc<Self>>,
        resolver: &Resolver,
        guard: &Guard,
    ) -> Result<Self, Error> {
        let Named {
            name,
            outbound,
            via: _,
            binding,
        } = named;
        let mut way = Self::literal(&name, outbound);
        way.via = via;
        way.binding = binding;
        way.set_protocols();
        if way.outbound.speaks_tls() {
            way.tls = connector(&way.outbound, &Roots::system()?)?;
        }
        if let Some(host) = way.name_to_look_up() {
            let answer = resolver.lookup(host).await?;
            way.set(arrange(&answer.addresses, port(&way.outbound)), answer.ttl);
        }
        if way.through().is_some() {
            // Where that is, is the other's business.
            return Ok(way);
        }
        for address in way.candidates() {
            if guard.is_listener(address) {
                return Err(Error::Loop {
                    outbound: way.outbound.to_string(),
                    address,
                });
            }
            if guard.is_here(address.ip()) {
                tracing::warn!(
                    "the server of the outbound {} runs on this gateway ({address}): where the gateway's own \
                     traffic is proxied, exempt that program (by gid, uid, cgroup or mark), or its connections \
                     come back to it",
                    way.outbound
                );
            }
        }
        Ok(way)
    }

    /// An outbound whose server, if it has one, is given by its address.
    fn literal(name: &str, outbound: Outbound) -> Self {
        let address = outbound.server().and_then(|server| match server.host {
            Host::Ipv4(ip) => Some(IpAddr::from(*ip)),
            // An IPv4 address in IPv6's clothes is reached by an IPv4 socket.
            Host::Ipv6(ip) => Some(ip.to_canonical()),
            Host::Domain(_) => None,
        });
        let addresses = arrange(address.as_slice(), port(&outbound));
        let mut way = Self::new(name, outbound, addresses, LONGEST_TTL);
        way.set_protocols();
        way
    }

    /// An outbound as a test writes it.
    #[cfg(test)]
    pub fn fixed(outbound: &str) -> Self {
        Self::named("fixed", outbound)
    }

    /// The same with a name.
    #[cfg(test)]
    pub fn named(name: &str, outbound: &str) -> Self {
        Self::literal(name, outbound.parse().expect("a literal"))
    }

    /// The same through another one.
    #[cfg(test)]
    pub fn via(mut self, other: Self) -> Self {
        self.via = Some(Arc::new(other));
        self.set_protocols();
        self
    }

    /// The same with such sockets.
    #[cfg(test)]
    pub fn bound(mut self, binding: Binding) -> Self {
        self.binding = binding;
        self
    }

    /// An HTTPS proxy as a test writes it, and whom to trust.
    #[cfg(test)]
    pub fn trusting(outbound: &str, roots: &Roots) -> Self {
        let mut way = Self::fixed(outbound);
        way.tls = connector(&way.outbound, roots).expect("sound");
        way
    }

    fn new(name: &str, outbound: Outbound, addresses: Vec<SocketAddr>, ttl: Duration) -> Self {
        let now = Instant::now();
        Self {
            name: name.into(),
            via: None,
            binding: Binding::default(),
            tls: None,
            spares: outbound.speaks_tls().then(Spares::default),
            outbound: Arc::new(outbound),
            known: Mutex::new(Known {
                addresses,
                worked: None,
                looked_up: now,
                due: now + bounded(ttl),
                stale: false,
            }),
            failed: Notify::new(),
            told: AtomicBool::new(false),
            health: Mutex::new([Health::new(now.into()), Health::new(now.into())]),
            downs: Mutex::default(),
            proven: AtomicBool::new(false),
            silent: AtomicU32::new(0),
            doubted: Notify::new(),
        }
    }

    /// Tells how dialling ended, if a person has to mend something: once, until it succeeds.
    fn tell(&self, failure: Option<&DialError>) {
        let Some(error) = failure else {
            self.told.store(false, Relaxed);
            return;
        };
        let mendable = matches!(
            error.outcome(),
            Outcome::ProxyAuth | Outcome::ProxyTls | Outcome::ProxyProtocol
        );
        if mendable && !self.told.swap(true, Relaxed) {
            tracing::warn!("the outbound \"{}\" does not work: {error}", self.name);
        }
    }

    fn set(&mut self, addresses: Vec<SocketAddr>, ttl: Duration) {
        let known = self.known.get_mut().unwrap_or_else(PoisonError::into_inner);
        known.addresses = addresses;
        known.due = known.looked_up + bounded(ttl);
    }

    /// The addresses of the server that this machine itself connects to.
    #[must_use]
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        if self.through().is_some() {
            return BTreeSet::new();
        }
        self.known()
            .addresses
            .iter()
            .map(|address| address.ip().to_canonical())
            .collect()
    }

    /// The server's addresses in the order in which to try them: first the one that worked last.
    #[must_use]
    pub fn candidates(&self) -> Vec<SocketAddr> {
        let known = self.known();
        let mut all = known.addresses.clone();
        if let Some(at) = all.iter().position(|one| Some(*one) == known.worked) {
            all[..=at].rotate_right(1);
        }
        all
    }

    /// This address was connected to.
    pub fn worked(&self, address: SocketAddr) {
        self.known().worked = Some(address);
    }

    /// None of the addresses could be connected to. They are looked up anew.
    pub fn failed(&self) {
        self.failed.notify_one();
    }

    /// Waits until it is time to look the server's name up, and does. Never ends for a server without a name.
    pub(super) async fn refresh(&self, resolver: &Resolver, guard: &Guard) {
        let Some(name) = self.name_to_look_up() else {
            return std::future::pending().await;
        };
        let (due, soonest) = {
            let known = self.known();
            (known.due, known.looked_up + PAUSE)
        };
        tokio::select! {
            () = sleep_until(due) => {}
            () = self.failed.notified() => sleep_until(soonest.min(due)).await,
        }
        self.known().looked_up = Instant::now();
        match resolver.lookup(name).await {
            Ok(answer) => self.take(&answer, guard),
            Err(error) => self.keep(&error),
        }
    }

    fn take(&self, answer: &Answer, guard: &Guard) {
        let addresses = arrange(&answer.addresses, port(&self.outbound));
        let mut known = self.known();
        known.due = Instant::now() + bounded(answer.ttl);
        known.stale = false;
        // What failed while the question was under way failed with the old addresses.
        let _ = self.failed.notified().now_or_never();
        if known.addresses == addresses {
            return;
        }
        known.addresses.clone_from(&addresses);
        drop(known);
        tracing::info!(
            "the server of the outbound {} is now at {}",
            self.outbound,
            list(&addresses)
        );
        for address in addresses.into_iter().filter(|one| guard.is_listener(*one)) {
            let outbound = self.outbound.to_string();
            tracing::error!("{}", Error::Loop { outbound, address });
        }
    }

    fn keep(&self, error: &LookupError) {
        let mut known = self.known();
        known.due = Instant::now() + SHORTEST_TTL;
        let addresses = known.addresses.clone();
        // Once, lest a name server that is down fills the log.
        if !std::mem::replace(&mut known.stale, true) {
            drop(known);
            tracing::warn!("{error}. Still in use: {}", list(&addresses));
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        // No code that can panic runs under the lock.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps the addresses of the servers fresh, and those that are published, for ever.
pub async fn follow(shared: Arc<Shared>, resolver: Resolver, guard: Arc<Guard>) {
    let mut replaced = shared.replacements();
    loop {
        let router = shared.router();
        tokio::select! {
            () = router.refresh(&resolver, &guard) => shared.publish(),
            _ = replaced.changed() => {}
        }
    }
}

/// The server's port; 0 without a server.
fn port(outbound: &Outbound) -> u16 {
    outbound.server().map_or(0, |server| server.port)
}

/// How to speak TLS to the server. None: it is not spoken to by TLS.
fn connector(outbound: &Outbound, roots: &Roots) -> Result<Option<Connector>, TlsError> {
    Ok(match outbound {
        Outbound::Https(server) => {
            let help = "write a name or an address that its certificate is for";
            Some(roots.connector(&server.host, &[b"http/1.1"], help)?)
        }
        Outbound::Trojan(server) => Some(roots.connector_to(server.name.clone(), &[])?),
        _ => None,
    })
}

fn bounded(ttl: Duration) -> Duration {
    ttl.clamp(SHORTEST_TTL, LONGEST_TTL)
}

/// The families in turn, IPv6 first (RFC 8305 section 4), so that one family that leads nowhere costs one attempt.
/// Within a family in the order of numbers: answers come in an order that changes, which is no change.
fn arrange(addresses: &[IpAddr], port: u16) -> Vec<SocketAddr> {
    let sorted: BTreeSet<IpAddr> = addresses.iter().copied().collect();
    let (mut v6, mut v4) = (
        sorted.iter().filter(|address| address.is_ipv6()),
        sorted.iter().filter(|address| address.is_ipv4()),
    );
    let mut arranged = Vec::with_capacity(sorted.len());
    while arranged.len() < sorted.len() {
        arranged.extend(v6.next());
        arranged.extend(v4.next());
    }
    arranged.truncate(MOST_ADDRESSES);
    let address = |ip: &IpAddr| SocketAddr::new(*ip, port);
    arranged.into_iter().map(address).collect()
}

fn list(addresses: &[SocketAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests;
