//! One device socket and its upstream socket for one way: every peer that the device socket reaches by this way is
//! reached from the same port, and any peer may answer (endpoint-independent mapping and filtering, RFC 4787).

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until};

use super::express::Vote;
use super::key::Key;
use super::upstream::{self, Answers, Datagram, Sender, Taker, Upstream};
use super::{Receiver, UdpRelay};
use crate::data::live::Flow;
use crate::data::outbound::DialError;
use crate::data::record::{Outcome, Record, Shared};
use crate::data::way::Way;
use crate::net::mmsg::{Outgoing, Prefix, RecvBatch, SendBatch, SendReport};

/// How long an association that failed stays, so that a busy device does not make us knock at a dead server
/// with every datagram.
const HOLD_DOWN: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Association {
    /// What it is known by: the device, and which of its ways.
    pub key: Key,
    /// The way that it takes.
    pub way: Arc<Way>,
    receiver: Arc<Receiver>,
    pub(super) upstream: Upstream,
    flow: Arc<Flow>,
    vote: Mutex<Vote>,
    task: OnceLock<AbortHandle>,
    record: Mutex<Record>,
}

impl Association {
    /// An association that takes this way.
    pub fn new(
        key: Key,
        way: Arc<Way>,
        receiver: &Arc<Receiver>,
        record: Record,
        upstream: Upstream,
    ) -> Self {
        Self {
            key,
            way,
            receiver: Arc::clone(receiver),
            upstream,
            flow: Arc::clone(record.flow()),
            vote: Mutex::default(),
            task: OnceLock::new(),
            record: Mutex::new(record),
        }
    }

    /// Starts the task that carries answers back. If it goes by a server, that is reached first. `first` is whom the
    /// device wrote to.
    pub fn start(self: &Arc<Self>, relay: &Arc<UdpRelay>, first: SocketAddr) {
        let association = Arc::clone(self);
        let relay = Arc::clone(relay);
        let task = match &self.upstream {
            Upstream::Direct(_) => tokio::spawn(association.answer_directly(relay)),
            Upstream::Relay(_) => tokio::spawn(association.answer_by(relay, first)),
            Upstream::Nowhere => tokio::spawn(association.hold_down(relay)),
        };
        // Set once, here.
        let _ = self.task.set(task.abort_handle());
    }

    /// Ends it. The last who holds it drops the record.
    pub fn close(&self, outcome: Outcome) {
        self.end(outcome);
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Is its outbound down, and another one of the group is not?
    pub fn is_stranded(&self) -> bool {
        let record = self.record();
        let choice = record.choice();
        choice.is_some_and(|choice| choice.is_stranded(&record.query()))
    }

    /// Sends a device's datagrams to their destinations.
    pub fn send<'a>(
        self: &Arc<Self>,
        batch: &mut SendBatch,
        datagrams: impl Iterator<Item = Datagram<'a>>,
        relay: &UdpRelay,
    ) {
        let shared = &relay.hands.shared;
        let report = match &self.upstream {
            Upstream::Direct(socket) => {
                let mut last = None;
                let datagrams = datagrams.inspect(|(peer, _)| last = Some(*peer));
                let report = upstream::send_directly(socket, batch, datagrams);
                // Mostly a batch is a burst of one flow.
                if let Some(peer) = last {
                    relay.vote(self, peer, report.sent);
                }
                report
            }
            Upstream::Relay(relay) => relay.send(batch, datagrams),
            Upstream::Nowhere => return,
        };
        self.count_up(&report, shared);
    }

    fn count_up(&self, report: &SendReport, shared: &Shared) {
        shared.counters.count_sent(report);
        let bytes = report.bytes as u64;
        self.flow.count_up(bytes);
        shared.counters.up.fetch_add(bytes, Relaxed);
    }

    /// Takes what the device sends for a while, so that a busy one does not make a new association of every datagram.
    async fn hold_down(self: Arc<Self>, relay: Arc<UdpRelay>) {
        sleep(HOLD_DOWN).await;
        relay.forget(&self);
    }

    async fn answer_directly(self: Arc<Self>, relay: Arc<UdpRelay>) {
        if let Upstream::Direct(socket) = &self.upstream {
            let told = |batch: &RecvBatch| relay.tell_answered(&self, batch);
            upstream::carry_directly(socket, &mut self.device(&relay), told).await;
        }
    }

    async fn answer_by(self: Arc<Self>, relay: Arc<UdpRelay>, first: SocketAddr) {
        // In a box, so that its size is not part of every idle association.
        let (outcome, until) = match Box::pin(self.reach(&relay, first)).await {
            Ok(answers) => {
                let soonest = Instant::now() + HOLD_DOWN;
                let mut device = self.device(&relay);
                match answers.carry(&self.way, &mut device).await {
                    // A server that ends it at once is not asked again at once.
                    Ok(()) => (Outcome::UpstreamReset, soonest),
                    Err(error) => (self.failed(&error), Instant::now() + HOLD_DOWN),
                }
            }
            Err(error) => (self.failed(&error), Instant::now() + HOLD_DOWN),
        };
        self.end(outcome);
        sleep_until(until).await;
        relay.forget(&self);
    }

    fn failed(&self, error: &DialError) -> Outcome {
        tracing::debug!(client = %self.key.client, %error, "an association got no relay");
        error.outcome()
    }

    /// Reaches the relay and sends what waited.
    async fn reach(&self, relay: &UdpRelay, first: SocketAddr) -> Result<Answers, DialError> {
        let (sender, answers) = upstream::reach(&relay.hands.dialer, &self.way, first).await?;
        self.go_on_by(sender, &relay.hands.shared);
        Ok(answers)
    }

    fn go_on_by(&self, sender: Sender, shared: &Shared) {
        if let Upstream::Relay(waits) = &self.upstream {
            self.count_up(&waits.reached(sender), shared);
        }
    }

    pub(super) fn vote(&self) -> MutexGuard<'_, Vote> {
        self.vote.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn device<'a>(self: &'a Arc<Self>, relay: &'a UdpRelay) -> Device<'a> {
        Device {
            association: self,
            relay,
        }
    }

    fn end(&self, outcome: Outcome) {
        let mut record = self.record();
        // The first reason is the reason.
        if record.outcome == Outcome::Drained {
            record.outcome = outcome;
        }
    }

    /// What others see of it.
    pub fn flow(&self) -> &Arc<Flow> {
        &self.flow
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who sent the datagrams, and gets the answers.
struct Device<'a> {
    association: &'a Arc<Association>,
    relay: &'a UdpRelay,
}

impl Device<'_> {
    /// Could it receive an answer of this peer?
    fn hears(&self, peer: SocketAddr) -> bool {
        peer.is_ipv4() == self.association.key.client.is_ipv4() && peer.port() != 0
    }
}

impl Taker for Device<'_> {
    fn take(&mut self, answers: &[Option<Datagram<'_>>], batch: &mut SendBatch) -> ControlFlow<()> {
        let Association {
            key,
            receiver,
            flow,
            ..
        } = &**self.association;
        let heard = || {
            let all = answers.iter().flatten();
            all.filter(|(peer, _)| self.hears(*peer))
        };
        let counters = &self.relay.hands.shared.counters;
        let dropped = answers.len() - heard().count();
        if dropped > 0 {
            let dropped = dropped as u64;
            counters.datagrams_dropped.fetch_add(dropped, Relaxed);
        }
        if dropped < answers.len() {
            let outgoing = heard().map(|(peer, payload)| Outgoing {
                to: Some(key.client),
                from: Some(*peer),
                prefix: Prefix::default(),
                payload,
                overhead: 0,
            });
            let report = batch.send(&receiver.socket, outgoing);
            counters.count_sent(&report);
            counters.down.fetch_add(report.bytes as u64, Relaxed);
            flow.count_down(report.bytes as u64);
            self.relay.used(key, heard().map(|(peer, _)| *peer));
            if let Some((peer, _)) = heard().next_back() {
                self.relay.vote(self.association, *peer, report.sent);
            }
        }
        ControlFlow::Continue(())
    }
}
