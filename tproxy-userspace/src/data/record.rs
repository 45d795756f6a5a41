//! How a relay ended, and the record that says so.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, PoisonError, RwLock};

use serde::Serialize;
use tokio::sync::watch;

use super::exit::Choice;
use super::live::{Flow, Live};
use super::router::Router;
use super::stats::Counters;
pub use crate::policy::rule::Protocol;
use crate::policy::rule::Query;

macro_rules! outcomes {
    ($($(#[$doc:meta])* $name:ident = $word:literal, $failure:literal;)*) => {
        /// How a connection or association ended. One list for access events and statistics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "snake_case")]
        #[repr(u8)]
        pub enum Outcome {
            $($(#[$doc])* $name,)*
        }

        impl Outcome {
            /// All outcomes in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word for it: lower case, with underscores.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// Did the device not get what it asked for?
            #[must_use]
            pub const fn is_failure(self) -> bool {
                match self { $(Self::$name => $failure,)* }
            }
        }
    };
}

outcomes! {
    /// Both sides sent FIN.
    Finished = "finished", false;
    /// The device reset the connection.
    DeviceReset = "device_reset", false;
    /// The upstream side reset the connection, or ended the association.
    UpstreamReset = "upstream_reset", false;
    /// The device answers no more (keepalive or retransmission gave up).
    DeviceLost = "device_lost", true;
    /// The upstream side answers no more.
    UpstreamLost = "upstream_lost", true;
    /// Nothing passed for longer than the idle limit.
    Idle = "idle", false;
    /// The proxy ended.
    Drained = "drained", false;
    /// Another association needed the place.
    Evicted = "evicted", true;
    /// A person ended it.
    Killed = "killed", false;
    /// Addressed to the proxy's own port.
    OwnPort = "own_port", true;
    /// As many connections as allowed were there already.
    LimitReached = "limit_reached", true;
    /// The device had its share of those that are allowed.
    DeviceLimit = "device_limit", true;
    /// Nobody listens upstream.
    ConnectRefused = "connect_refused", true;
    /// No answer from upstream within the limit.
    ConnectTimeout = "connect_timeout", true;
    /// There is no route to the upstream side.
    Unreachable = "unreachable", true;
    /// The upstream side is this proxy itself.
    Loop = "loop", true;
    /// The outbound is there to end it.
    Blocked = "blocked", false;
    /// The outbound does not carry such traffic.
    Unsupported = "unsupported", true;
    /// The outbound's server has no TLS, or none that can be trusted.
    ProxyTls = "proxy_tls", true;
    /// The outbound's server refused the user or asks for one.
    ProxyAuth = "proxy_auth", true;
    /// The outbound's server refused the request.
    ProxyRefused = "proxy_refused", true;
    /// The outbound's server broke the protocol or closed the connection.
    ProxyProtocol = "proxy_protocol", true;
    /// This machine had no socket, port or memory left.
    NoResources = "no_resources", true;
    /// Another error of the kernel.
    Failed = "failed", true;
}

/// One connection or association. When it is dropped, it counts its outcome and emits the one access
/// event (target `access`).
#[derive(Debug)]
pub struct Record {
    shared: Arc<Shared>,
    flow: Arc<Flow>,
    /// How it ended. Who drops the record without setting it is being stopped.
    pub outcome: Outcome,
}

/// What all records of a proxy share.
#[derive(Debug)]
pub struct Shared {
    router: RwLock<Arc<Router>>,
    replacements: watch::Sender<()>,
    servers: watch::Sender<BTreeSet<IpAddr>>,
    /// The proxy's counters.
    pub counters: Counters,
    /// What lives.
    pub live: Live,
}

impl Shared {
    /// A proxy with these outbounds, and counters at 0.
    #[must_use]
    pub fn new(router: Router) -> Self {
        Self {
            servers: watch::Sender::new(router.servers()),
            router: RwLock::new(Arc::new(router)),
            replacements: watch::Sender::new(()),
            counters: Counters::default(),
            live: Live::default(),
        }
    }

    /// Where new connections go.
    #[must_use]
    pub fn router(&self) -> Arc<Router> {
        Arc::clone(&self.router.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on new connections go by these outbounds.
    pub fn replace(&self, router: Router) {
        *self.router.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(router);
        self.publish();
        self.replacements.send_replace(());
    }

    /// Changes with each [`replace`](Self::replace).
    #[must_use]
    pub fn replacements(&self) -> watch::Receiver<()> {
        self.replacements.subscribe()
    }

    /// Tells of the present addresses of the servers, if they are others than before.
    pub fn publish(&self) {
        // Under the lock, lest the addresses of a router that was replaced come last.
        let router = self.router.read().unwrap_or_else(PoisonError::into_inner);
        let addresses = router.servers();
        self.servers.send_if_modified(|present| {
            let changed = *present != addresses;
            *present = addresses;
            changed
        });
    }

    /// The addresses of the servers, as they change.
    #[must_use]
    pub fn servers(&self) -> watch::Receiver<BTreeSet<IpAddr>> {
        self.servers.subscribe()
    }
}

impl Record {
    /// The record of something that begins now.
    #[must_use]
    pub fn new(
        shared: Arc<Shared>,
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Self {
        shared.counters.total(protocol).fetch_add(1, Relaxed);
        shared.counters.now(protocol).fetch_add(1, Relaxed);
        let flow = shared.live.enter(protocol, client, destination);
        Self {
            shared,
            flow,
            outcome: Outcome::Drained,
        }
    }

    /// What others see of it.
    #[must_use]
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    /// The device.
    #[must_use]
    pub fn client(&self) -> SocketAddr {
        self.flow.client
    }

    /// Where the device wanted to go (UDP: with its first datagram).
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        self.flow.destination
    }

    /// The way that it takes, once it is chosen.
    #[must_use]
    pub fn choice(&self) -> Option<&Choice> {
        self.flow.choice()
    }

    /// What the rules are asked about.
    #[must_use]
    pub fn query(&self) -> Query<'_> {
        Query {
            protocol: self.flow.protocol,
            source: self.flow.client,
            destination: self.flow.destination,
            name: self.flow.name(),
        }
    }

    /// What it shares with the others.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let Self {
            shared,
            flow,
            outcome,
        } = self;
        if flow.is_killed() {
            *outcome = Outcome::Killed;
        }
        shared.live.leave(flow);
        shared.counters.now(flow.protocol).fetch_sub(1, Relaxed);
        shared.counters.ended(*outcome).fetch_add(1, Relaxed);
        let choice = flow.choice();
        tracing::info!(
            target: "access",
            id = flow.id,
            protocol = match flow.protocol { Protocol::Tcp => "tcp", Protocol::Udp => "udp" },
            client = %flow.client,
            destination = %flow.destination,
            name = flow.name(),
            outbound = choice.map(|choice| &*choice.way.name),
            group = choice.and_then(Choice::group),
            rule = choice.and_then(|choice| choice.rule.as_deref()),
            up = flow.up(),
            down = flow.down(),
            milliseconds = u64::try_from(flow.started().elapsed().as_millis()).unwrap_or(u64::MAX),
            outcome = outcome.word(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::logged::Lines;

    #[test]
    fn a_record_ends_in_one_access_event_that_names_the_rule_and_no_password() {
        let lines = Lines::default();
        let outbound = "socks5://me:secret@192.0.2.1:1080";
        let shared = Arc::new(Shared::new(Router::fixed(outbound)));
        {
            let _guard = lines.collect();
            let address: SocketAddr = "192.0.2.7:1234".parse().expect("a literal");
            let mut record = Record::new(Arc::clone(&shared), Protocol::Tcp, address, address);
            assert_eq!(shared.counters.now(Protocol::Tcp).load(Relaxed), 1);
            record.flow().count_up(17);
            record.flow().count_down(18);
            record.flow().set_name(Some("www.example".into()));
            record.flow().set_choice(Choice {
                rule: Some("video".into()),
                ..shared.router().default_choice(&record.query())
            });
            assert_eq!(shared.live.all().len(), 1);
            record.outcome = Outcome::Idle;
        }
        assert_eq!(shared.counters.now(Protocol::Tcp).load(Relaxed), 0);
        assert!(shared.live.all().is_empty());
        let lines = lines.text();
        assert_eq!(lines.lines().count(), 1, "{lines}");
        let parts = [
            "access",
            "up=17 down=18",
            "outcome=\"idle\"",
            "name=\"www.example\" outbound=\"fixed\" rule=\"video\"",
        ];
        assert!(parts.iter().all(|part| lines.contains(part)), "{lines}");
        assert!(!lines.contains("secret"));
    }

    #[test]
    fn words_differ_and_stand_in_order() {
        for (index, outcome) in Outcome::ALL.iter().enumerate() {
            assert_eq!(*outcome as usize, index);
            let earlier = &Outcome::ALL[..index];
            assert!(earlier.iter().all(|other| other.word() != outcome.word()));
        }
    }
}
