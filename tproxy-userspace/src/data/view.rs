//! A running proxy as others see it: what it does, and the few things that a person may change. It may be held by any
//! task, and outlives the proxy without keeping it alive.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;

use super::dns::{self, DnsStats};
use super::exit::GroupStatus;
use super::limits::Budget;
use super::live::{Account, Bytes, Flow};
use super::outbound::{Dialer, Outbound};
use super::proxy::resolving;
use super::record::{Outcome, Shared};
use super::resolve::Resolver;
use super::router::Explained;
use super::stats::Stats;
use super::tcp::TcpRelay;
use super::udp::UdpRelay;
use super::way::{OutboundStatus, Way};
use super::workers::Runtimes;
use crate::policy::rule::{Protocol, Query};

/// See the module.
#[derive(Clone, Debug)]
pub struct View {
    pub(super) shared: Arc<Shared>,
    pub(super) resolver: Resolver,
    pub(super) dialer: Dialer,
    pub(super) dns: Arc<dns::Slot>,
    pub(super) tcp: Arc<TcpRelay>,
    pub(super) udp: Arc<UdpRelay>,
    pub(super) budget: Budget,
    pub(super) runtimes: Runtimes,
}

impl View {
    /// How many tasks live, those of the runtime that this is called from included.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    #[must_use]
    pub fn tasks(&self) -> usize {
        Handle::current().metrics().num_alive_tasks() + self.runtimes.tasks()
    }

    /// What lives, the oldest first.
    #[must_use]
    pub fn flows(&self) -> Vec<Arc<Flow>> {
        self.udp.collect();
        self.shared.live.all()
    }

    /// Ends a connection (with RST, to both sides) or an association. Returns whether it lived.
    pub fn kill(&self, id: u64) -> bool {
        let Some(flow) = self.shared.live.get(id) else {
            return false;
        };
        match flow.protocol {
            Protocol::Tcp => self.tcp.reset(&flow),
            Protocol::Udp => self.udp.end(&flow),
        }
    }

    /// Who sent and got how much.
    #[must_use]
    pub fn account(&self) -> Account {
        self.udp.collect();
        self.shared.live.account()
    }

    /// Bytes by outbound, as in the account.
    #[must_use]
    pub fn outbound_bytes(&self) -> Vec<(Arc<str>, Bytes)> {
        self.shared.live.outbound_bytes()
    }

    /// What it did so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.udp.collect();
        self.shared.counters.snapshot(self.budget)
    }

    /// How many connections and associations ended in each way.
    #[must_use]
    pub fn ended(&self) -> Vec<(Outcome, u64)> {
        self.shared.counters.ended_by_outcome()
    }

    /// What the resolver did so far, if there is one.
    #[must_use]
    pub fn dns_stats(&self) -> Option<DnsStats> {
        self.dns.get().map(|dns| dns.stats())
    }

    /// What is known of the outbounds.
    #[must_use]
    pub fn outbounds(&self) -> Vec<OutboundStatus> {
        self.shared.router().outbounds()
    }

    /// What the groups do.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupStatus> {
        self.shared.router().groups()
    }

    /// The name of the outbound or group that takes all that no rule is about.
    #[must_use]
    pub fn default_exit(&self) -> Arc<str> {
        Arc::clone(self.shared.router().default_exit().name())
    }

    /// From now on new connections that take the group take this member of it.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn select(&self, group: &str, member: &str) -> Result<(), String> {
        self.shared.router().select(group, member)
    }

    /// What the rules say of a connection or datagram that is steered.
    #[must_use]
    pub fn explain(&self, query: &Query<'_>) -> Explained {
        let router = self.shared.router();
        let mut explained = router.explain(query);
        if query.destination.port() == dns::PORT && self.dns.get().is_some() {
            explained.resolver = Some(resolving(&self.shared, query.name));
        }
        explained
    }

    /// The addresses that devices get for a name. None: this proxy has no resolver.
    pub async fn look_up(&self, name: &str) -> Option<Result<Vec<IpAddr>, &'static str>> {
        let dns = self.dns.get()?;
        Some(dns.addresses(name).await)
    }

    /// Checks how an outbound carries TCP now, of a group the member that is taken, and notes what came of it: how long
    /// the answer took, or why there was none. None: nothing has this name.
    pub async fn check(&self, name: &str) -> Option<Result<Duration, String>> {
        let router = self.shared.router();
        let way = way(&router.groups(), router.ways(), name)?;
        if *way.outbound == Outbound::Block {
            return Some(Err(format!("{} lets nothing pass", way.outbound)));
        }
        let checker = Arc::clone(router.checker());
        let checking = checker.check(&way, Protocol::Tcp, &self.dialer, &self.resolver);
        Some(checking.await)
    }
}

/// The outbound of this name, or that a group of this name takes now by TCP.
fn way(groups: &[GroupStatus], ways: &[Arc<Way>], name: &str) -> Option<Arc<Way>> {
    let mut name = name;
    // Groups are members of groups, but never in a circle.
    for _ in 0..=groups.len() {
        if let Some(way) = ways.iter().find(|way| *way.name == *name) {
            return Some(Arc::clone(way));
        }
        let group = groups.iter().find(|group| group.name == name)?;
        name = group.tcp.as_ref().or_else(|| group.members.first())?;
    }
    None
}
