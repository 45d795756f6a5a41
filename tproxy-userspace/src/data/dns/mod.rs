//! The splitting resolver: answers the devices' questions, those for some names by upstreams that are asked
//! directly, all others by upstreams that are asked through the outbound.
//!
//! - No question for a name of one group goes to an upstream of the other, whatever fails: an answer of the wrong
//!   side may be forged, and the question itself tells what somebody looks at.
//! - Messages are walked, not understood, so that every record type passes as it came.
//! - An upstream's answer counts only if its number, its question and its sender are those that were asked. What
//!   does not fit is ignored, and the waiting goes on.
//! - The names of upstreams themselves are looked up at the upstreams of their group that are given by address, then
//!   at the direct ones, then as the system does. So write addresses where nobody may learn of the upstream.
//!
//! ```text
//! client -> server -> lookup -> cache
//!                        |  one question however many wait
//!                        v
//!                      group -> transport: udp | framed (TCP, TLS) | http
//! ```

mod ask;
mod cache;
mod connection;
mod group;
mod learned;
mod lookup;
mod server;
mod split;
mod stats;
mod transport;
mod upstream;
pub mod wire;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;

use self::cache::Cache;
use self::learned::Announcer;
use self::lookup::Lookup;
use self::server::Server;
use self::stats::Counters;
use self::transport::{Addresses, Bootstrap, Exchange, Stream, Timing, Udp};
use super::resolve::Resolver;
use crate::net::SocketFactory;

pub use self::learned::{Announcement, Learned};
pub use self::server::{Later, Now, Over};
#[cfg(test)]
use self::split::Suffixes;
pub use self::split::{Choose, Group};
pub use self::stats::DnsStats;
pub use self::transport::Path;
pub use self::upstream::{Transport, Upstream, UpstreamError};
pub use super::tls::{Roots, TlsError};

/// The port of DNS servers (RFC 1035 section 4.2), a plain number.
pub const PORT: u16 = 53;

/// Which addresses a client gets of a name that has both kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Prefer {
    /// Both kinds.
    #[default]
    Both,
    /// IPv4 alone.
    V4,
    /// IPv6 alone.
    V6,
}

/// How the resolver is to work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Who is asked directly, in the order of preference.
    pub direct: Vec<Upstream>,
    /// Who is asked through the outbound, in the order of preference.
    pub proxy: Vec<Upstream>,
    /// How many answers are kept; 0 for none.
    pub cache: usize,
    /// For how long an answer is of use after its time is over, when there is no fresh one (RFC 8767).
    pub stale: Duration,
    /// Questions for IPv6 addresses are answered; or there are none.
    pub ipv6: bool,
    /// Which addresses are given out if there are both.
    pub prefer: Prefer,
}

/// The resolver.
#[derive(Clone)]
pub struct Dns(Arc<Server>);

/// The resolver that is in use, if there is one.
#[derive(Debug, Default)]
pub struct Slot(RwLock<Option<Dns>>);

impl Slot {
    /// The one that is in use now.
    #[must_use]
    pub fn get(&self) -> Option<Dns> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// From now on this one is. What the one before was asked it answers still.
    pub fn set(&self, dns: Option<Dns>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = dns;
    }
}

impl fmt::Debug for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Dns").field(&self.stats()).finish()
    }
}

impl Dns {
    /// A resolver, and the announcements of addresses that names stand for; they may be dropped unread. Nothing
    /// is sent before the first question.
    ///
    /// `choose` says which names go direct. `outbound` is how the proxy group is reached. `system` looks up the
    /// names of upstreams that no upstream knows. `roots` are the certificates to trust: None reads those of the
    /// machine, if an upstream needs them.
    ///
    /// # Errors
    /// When an upstream needs TLS and it cannot be had.
    pub fn new(
        settings: &Settings,
        choose: Box<dyn Choose>,
        factory: SocketFactory,
        outbound: Path,
        system: Resolver,
        roots: Option<Roots>,
    ) -> Result<(Self, mpsc::Receiver<Announcement>), TlsError> {
        let mut all = settings.direct.iter().chain(&settings.proxy);
        let encrypted = all.any(|upstream| upstream.transport.is_encrypted());
        let roots = match roots {
            None if encrypted => Some(Roots::system()?),
            roots => roots,
        };
        let builder = Builder {
            timing: Timing::default(),
            counters: Arc::default(),
            roots,
            system,
        };
        let direct = Path::Direct(factory);
        let (direct, known) = builder.group(&settings.direct, &direct, &[])?;
        let (proxy, _) = builder.group(&settings.proxy, &outbound, &[known])?;
        Ok(Self::assemble(settings, choose, direct, proxy, builder))
    }

    fn assemble(
        settings: &Settings,
        choose: Box<dyn Choose>,
        direct: group::Group,
        proxy: group::Group,
        builder: Builder,
    ) -> (Self, mpsc::Receiver<Announcement>) {
        let (announcer, learned) = Announcer::new(learned::QUEUE);
        let lookup = Lookup {
            choose,
            direct: Arc::new(direct),
            proxy: Arc::new(proxy),
            cache: Mutex::new(Cache::new(settings.cache, settings.stale)),
            announcer,
            counters: builder.counters,
            timing: builder.timing,
            under_way: Mutex::default(),
        };
        let server = Server {
            lookup: Arc::new(lookup),
            ipv6: settings.ipv6,
            prefer: settings.prefer,
            clients: Arc::default(),
        };
        (Self(Arc::new(server)), learned)
    }

    /// The answer to a message of a client. None: it gets none. It takes at most a few seconds: a question that no
    /// upstream answers is answered with SERVFAIL.
    pub async fn answer(&self, query: &[u8], over: Over, client: SocketAddr) -> Option<Vec<u8>> {
        self.0.answer(query, over, client).await
    }

    /// Puts the answer to a message of a client at the end of `output`, if it is known. If not, its upstreams are asked.
    /// To be called in a Tokio runtime.
    #[must_use]
    pub fn answer_now(
        &self,
        query: &[u8],
        over: Over,
        client: SocketAddr,
        output: &mut Vec<u8>,
    ) -> Now {
        self.0.answer_now(query, over, client, output)
    }

    /// The answer for which upstreams are being asked, as soon as [`answer`](Self::answer) would have it.
    pub async fn answer_later(&self, later: Later) -> Vec<u8> {
        self.0.answer_later(later).await
    }

    /// Answers the questions on a connection until it ends.
    ///
    /// # Errors
    /// When the connection breaks.
    pub async fn serve<S>(&self, stream: S, client: SocketAddr) -> io::Result<()>
    where
        S: AsyncRead + AsyncWrite,
    {
        connection::serve(&self.0, stream, client).await
    }

    /// Forgets all answers, when the network has become another one.
    pub fn flush(&self) {
        self.0.lookup.cache().clear();
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> DnsStats {
        self.0.lookup.stats()
    }
}

/// Makes groups.
#[derive(Debug)]
struct Builder {
    timing: Timing,
    counters: Arc<Counters>,
    roots: Option<Roots>,
    system: Resolver,
}

impl Builder {
    /// The group of these upstreams, and the group of those among them that are given by address. Names are looked
    /// up at the latter, then at `others`, then by the system.
    fn group(
        &self,
        upstreams: &[Upstream],
        path: &Path,
        others: &[Arc<group::Group>],
    ) -> Result<(group::Group, Arc<group::Group>), TlsError> {
        let nobody = Arc::new(self.bootstrap(Vec::new()));
        let mut members = vec![None; upstreams.len()];
        for (upstream, member) in upstreams.iter().zip(&mut members) {
            if upstream.address().is_some() {
                *member = Some(self.member(upstream, path, &nobody)?);
            }
        }
        let literal = members.iter().flatten().cloned().collect();
        let literal = Arc::new(self.new_group(literal));
        let mut groups = vec![Arc::clone(&literal)];
        groups.extend_from_slice(others);
        let bootstrap = Arc::new(self.bootstrap(groups));
        for (upstream, member) in upstreams.iter().zip(&mut members) {
            if member.is_none() {
                *member = Some(self.member(upstream, path, &bootstrap)?);
            }
        }
        let members = members.into_iter().flatten().collect();
        Ok((self.new_group(members), literal))
    }

    fn new_group(&self, members: Vec<Arc<group::Member>>) -> group::Group {
        group::Group::new(members, self.timing, Arc::clone(&self.counters))
    }

    fn bootstrap(&self, groups: Vec<Arc<group::Group>>) -> Bootstrap {
        let system = self.system.clone();
        Bootstrap { groups, system }
    }

    fn member(
        &self,
        upstream: &Upstream,
        path: &Path,
        bootstrap: &Arc<Bootstrap>,
    ) -> Result<Arc<group::Member>, TlsError> {
        let addresses = Arc::new(Addresses::new(upstream, bootstrap));
        let stream = Stream::new(
            upstream,
            Arc::clone(&addresses),
            path.clone(),
            self.roots.as_ref(),
            self.timing,
            Arc::clone(&self.counters),
        )?;
        let exchange: Box<dyn Exchange> = match (upstream.transport, path) {
            (Transport::Udp, Path::Direct(factory)) => Box::new(Udp {
                addresses,
                factory: *factory,
                tcp: stream,
                timing: self.timing,
                counters: Arc::clone(&self.counters),
            }),
            _ => Box::new(stream),
        };
        Ok(group::Member::new(upstream.to_string(), exchange))
    }
}

#[cfg(test)]
mod tests;
