//! The proxy as a whole: started, looked at, drained.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinHandle};
use tokio::time::timeout;

use super::Error;
use super::check;
use super::dns::{self, Announcement, Choose, Dns, Group};
use super::guard::Guard;
use super::hands::Hands;
use super::limits::{Budget, Limits};
use super::outbound::Dialer;
use super::record::Shared;
use super::resolve::Resolver;
use super::router::{Resolving, Router, Routing};
use super::sockets::Sockets;
use super::stats::Stats;
use super::tcp::{self, TcpRelay};
use super::udp::{Express, Receiver, UdpRelay};
use super::view::View;
use super::way::{Upstream, follow, keep};
use super::workers::Workers;
use crate::net::{SocketFactory, raise_open_files};

/// A running proxy. Dropping it stops it at once; [`drain`](Self::drain) lets connections end.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    resolver: Resolver,
    guard: Arc<Guard>,
    dialer: Dialer,
    dns: Arc<dns::Slot>,
    tcp: Arc<TcpRelay>,
    udp: Arc<UdpRelay>,
    budget: Budget,
    /// Where devices' traffic arrives. None once that is over.
    sockets: Option<Sockets>,
    receivers: Vec<Arc<Receiver>>,
    accepting: Vec<JoinHandle<()>>,
    receiving: Vec<JoinHandle<()>>,
    /// What goes on beside.
    tending: Vec<AbortHandle>,
    /// Threads for datagrams. Last: an association is dropped after it was told to end.
    workers: Workers,
}

/// Which DNS servers are asked for a name, as the rules that are in use say.
#[derive(Debug)]
struct ByRules(Arc<Shared>);

impl Choose for ByRules {
    fn group(&self, name: &str) -> Group {
        if self.0.router().is_direct_name(name) {
            Group::Direct
        } else {
            Group::Proxy
        }
    }
}

/// How the resolver answers a question for this name.
pub(super) fn resolving(shared: &Arc<Shared>, name: Option<&str>) -> Resolving {
    let group = |name| ByRules(Arc::clone(shared)).group(name).to_string();
    Resolving {
        group: name.map(group),
    }
}

/// What [`Proxy::drain`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DrainReport {
    /// Connections that ended by themselves.
    pub ended: usize,
    /// Connections that were reset when the time was over.
    pub reset: usize,
    /// UDP associations that were closed.
    pub associations: usize,
}

impl fmt::Display for DrainReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            ended,
            reset,
            associations,
        } = self;
        write!(
            f,
            "{ended} connections ended, {reset} were reset, {associations} associations were closed"
        )
    }
}

impl Proxy {
    /// Starts serving on `sockets`: connections in the Tokio runtime that this is called from, datagrams on threads of its
    /// own. Raises the limit of open files to the hard limit. `inheritance` is what another process had there before.
    ///
    /// # Errors
    /// When the limit cannot be raised or the runtime refuses a socket.
    pub fn start(
        sockets: Sockets,
        upstream: Upstream,
        limits: &Limits,
        factory: SocketFactory,
        inheritance: Inheritance,
    ) -> Result<Self, Error> {
        let budget = Budget::new(raise_open_files()?, limits);
        if let Some(wanted) = limits
            .max_associations
            .filter(|most| *most > budget.associations)
        {
            tracing::warn!(
                "{} UDP associations at a time, not {wanted} (udp.max_associations): the limit of open files is {}; raise it \
                 (LimitNOFILE=)",
                budget.associations,
                budget.open_files
            );
        }
        let Upstream {
            router,
            resolver,
            guard,
        } = upstream;
        let shared = Arc::new(Shared::new(router));
        let dialer = Dialer {
            factory,
            limit: limits.connect_timeout,
            keepalive: limits.keepalive,
            guard: Arc::clone(&guard),
        };
        let dns = Arc::<dns::Slot>::default();
        let hands = Hands {
            shared: Arc::clone(&shared),
            dialer: dialer.clone(),
            dns: Arc::clone(&dns),
        };
        let tcp = TcpRelay::new(hands.clone(), budget, limits);
        let udp = UdpRelay::new(hands, budget, limits);
        let following = follow(Arc::clone(&shared), resolver.clone(), Arc::clone(&guard));
        let mut proxy = Self {
            shared,
            resolver,
            guard,
            dialer,
            dns,
            budget,
            sockets: Some(sockets),
            receivers: Vec::new(),
            accepting: Vec::new(),
            receiving: Vec::new(),
            tending: Vec::new(),
            workers: Workers::start().map_err(Error::Worker)?,
            tcp,
            udp,
        };
        // First: what the other process holds is not for this one.
        proxy.inherit(inheritance)?;
        proxy.take()?;
        let sweeping = tokio::spawn(Arc::clone(&proxy.udp).sweep());
        proxy.tending.push(sweeping.abort_handle());
        proxy.tending.push(tokio::spawn(following).abort_handle());
        let watching = check::watch(
            Arc::clone(&proxy.shared),
            proxy.dialer.clone(),
            proxy.resolver.clone(),
        );
        proxy.tending.push(tokio::spawn(watching).abort_handle());
        let keeping = keep(Arc::clone(&proxy.shared), proxy.dialer.clone());
        proxy.tending.push(tokio::spawn(keeping).abort_handle());
        Ok(proxy)
    }

    /// Accepts connections and receives datagrams from now on.
    fn take(&mut self) -> Result<(), Error> {
        let sockets = self.sockets.as_ref().map(Sockets::duplicate);
        let sockets = sockets.transpose().map_err(Error::Register)?;
        for family in sockets.into_iter().flat_map(Sockets::families) {
            for (listener, own) in family.listeners {
                let listener = tcp::register(listener).map_err(Error::Register)?;
                let accepting = Arc::clone(&self.tcp).accept(listener, own);
                self.accepting.push(tokio::spawn(accepting));
            }
            for (lane, receiver) in family.receivers.into_iter().enumerate() {
                let runtime = self.workers.runtimes.of_lane(lane);
                let _there = runtime.enter();
                let receiver = UdpRelay::register(receiver, family.receiver_address);
                let receiver = receiver.map_err(Error::Register)?;
                self.receivers.push(Arc::clone(&receiver));
                let receiving = Arc::clone(&self.udp).receive(receiver);
                self.receiving.push(runtime.spawn(receiving));
            }
        }
        Ok(())
    }

    /// Takes other outbounds and rules for new connections and UDP flows; those that live keep theirs. The
    /// servers of outbounds that are new are looked up first, and an error changes nothing.
    ///
    /// # Errors
    /// When a server has no address, or one of them is the proxy's own listener.
    pub async fn set_routing(&self, routing: Routing) -> Result<(), Error> {
        let present = self.shared.router();
        let router = Router::open(routing, Some(&present), &self.resolver, &self.guard).await?;
        self.shared.replace(router);
        Ok(())
    }

    /// Answers questions to port 53 itself from now on, as `settings` say, or relays them as all else. What comes
    /// back tells the addresses of the names that were asked for.
    ///
    /// # Errors
    /// When a DNS server wants TLS and it cannot be had. Then nothing changes.
    pub fn set_dns(
        &self,
        settings: Option<&dns::Settings>,
    ) -> Result<Option<mpsc::Receiver<Announcement>>, Error> {
        let Some(settings) = settings else {
            self.dns.set(None);
            return Ok(None);
        };
        let (dns, learned) = Dns::new(
            settings,
            Box::new(ByRules(Arc::clone(&self.shared))),
            self.dialer.factory,
            dns::Path::Outbound(self.dialer.clone(), Arc::clone(&self.shared)),
            self.resolver.clone(),
            None,
        )?;
        self.dns.set(Some(dns));
        Ok(Some(learned))
    }

    /// From now on flows that need no proxy any more are given to this one.
    ///
    /// # Errors
    /// When this kernel cannot tell which datagrams are on their way (before Linux 5.19).
    pub fn set_express(&self, express: Arc<dyn Express>) -> std::io::Result<()> {
        self.udp.set_express(express, &self.receivers)
    }

    /// Does everything that asks for this name at this address go to its destination itself, whoever it is?
    #[must_use]
    pub fn is_always_direct(&self, name: &str, address: IpAddr) -> bool {
        self.shared.router().is_always_direct(name, address)
    }

    /// The gateway's own addresses, whenever they change: a server at one of them may be this proxy.
    pub fn set_own_addresses(&self, own: BTreeSet<IpAddr>) {
        self.guard.set_own(own);
    }

    /// The addresses of the outbound's server, as they change. None for `direct://`.
    #[must_use]
    pub fn servers(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.shared.servers()
    }

    /// What others see of it.
    #[must_use]
    pub fn view(&self) -> View {
        View {
            shared: Arc::clone(&self.shared),
            resolver: self.resolver.clone(),
            dialer: self.dialer.clone(),
            dns: Arc::clone(&self.dns),
            tcp: Arc::clone(&self.tcp),
            udp: Arc::clone(&self.udp),
            budget: self.budget,
            runtimes: self.workers.runtimes.clone(),
        }
    }

    /// Where devices' traffic arrives. None once that is over.
    #[must_use]
    pub fn sockets(&self) -> Option<&Sockets> {
        self.sockets.as_ref()
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.shared.counters.snapshot(self.budget)
    }

    /// Accepts no more, waits up to `limit` until live connections have ended, and resets the rest.
    /// Associations have no end of their own, so they are relayed for as long as connections are, then closed.
    /// Processes that were taken over from end in the same way, and are waited for.
    pub async fn drain(mut self, limit: Duration) -> DrainReport {
        for task in self.accepting.drain(..) {
            task.abort();
            let _ = task.await;
        }
        // The device has its connection already: the kernel made it while the proxy was still to have it.
        for family in self.sockets.take().into_iter().flat_map(Sockets::families) {
            for (listener, own) in &family.listeners {
                self.tcp.admit_waiting(listener, *own);
            }
        }
        self.udp.refuse_new();
        let predecessors = self.udp.predecessors.end(limit);
        let own = self.drain_within(limit, self.tcp.ended());
        tokio::join!(own, predecessors).0
    }

    async fn drain_within(&self, limit: Duration, ended: impl Future<Output = ()>) -> DrainReport {
        let before = self.tcp.count();
        // Over the limit is no error: the rest is reset below.
        let _ = timeout(limit, ended).await;
        let reset = self.tcp.reset_all();
        self.tcp.ended().await;
        DrainReport {
            ended: before.saturating_sub(reset),
            reset,
            associations: self.udp.close_all(),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        for task in self.accepting.iter().chain(&self.receiving) {
            task.abort();
        }
        for task in &self.tending {
            task.abort();
        }
        self.tcp.reset_all();
        self.udp.refuse_new();
        self.udp.close_all();
    }
}

mod handover;
#[cfg(test)]
mod tests;

pub use self::handover::{Handed, Inheritance};
