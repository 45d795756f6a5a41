//! Flows that need no proxy any more: asking the kernel half for them, and counting what it carries.
//!
//! An association watches which peer most of its datagrams go to or come from. When it is settled that they only change their
//! source address here, the kernel half is asked to do that itself. The association's socket stays: whatever the kernel half
//! leaves to the proxy comes as before.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::association::Association;
use super::key::Flow;
use super::table::Class;
use super::upstream::Upstream;
use super::{Receiver, UdpRelay};
use crate::net::ask_for_numbers;
use crate::net::mmsg::RecvBatch;

/// How many datagrams more than all others together a peer must have, so that its flow is asked for. Short flows never are.
const ENOUGH: u32 = 16;
/// For how long a peer is not asked for again.
const AGAIN: Duration = Duration::from_millis(500);

/// A flow that the kernel half is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The number of the association.
    pub association: u64,
    /// The device.
    pub device: SocketAddr,
    /// Who the device speaks with.
    pub peer: SocketAddr,
    /// The port that the association sends from.
    pub port: u16,
}

/// Payload that the kernel half has carried, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// From the device.
    pub up: u64,
    /// To the device.
    pub down: u64,
}

/// Who carries flows past the proxy.
pub trait Express: fmt::Debug + Send + Sync {
    /// Asks for a flow. That may be refused without a word, and asked for again. It must not take long.
    fn ask(&self, candidate: Candidate);
    /// May there be datagrams with numbers?
    fn is_switching(&self) -> bool;
    /// A device's datagram with this number was sent on, and all before it.
    fn sent(&self, device: SocketAddr, peer: SocketAddr, number: u16);
    /// An answer with this number was sent on, and all before it.
    fn answered(&self, association: u64, peer: SocketAddr, number: u16);
    /// What went since this was asked last, by peer.
    fn carried(&self, association: u64) -> Vec<(SocketAddr, Carried)>;
    /// The association ends, and with it its flows. Returns what went since it was asked last.
    fn leave(&self, association: u64) -> Vec<(SocketAddr, Carried)>;
}

/// The lane, if there is one, and the associations that have flows there.
#[derive(Debug, Default)]
pub(super) struct Lane {
    express: OnceLock<Arc<dyn Express>>,
    associations: Mutex<HashMap<u64, Arc<Association>>>,
}

/// Which peer has most of an association's datagrams (Boyer and Moore, MJRTY, 1981), and whom was asked for last.
#[derive(Debug, Default)]
pub(super) struct Vote {
    peer: Option<SocketAddr>,
    lead: u32,
    asked: Option<(SocketAddr, Instant)>,
}

impl Vote {
    /// So many datagrams of a peer. Returns whether its flow is to be asked for.
    fn cast(&mut self, peer: SocketAddr, datagrams: u32, now: impl FnOnce() -> Instant) -> bool {
        if self.peer != Some(peer) {
            if self.lead > datagrams {
                self.lead -= datagrams;
                return false;
            }
            self.lead = datagrams - self.lead;
            self.peer = Some(peer);
        } else {
            self.lead = self.lead.saturating_add(datagrams);
        }
        if self.lead < ENOUGH {
            return false;
        }
        self.lead = 0;
        let now = now();
        if self
            .asked
            .is_some_and(|(before, at)| before == peer && now < at + AGAIN)
        {
            return false;
        }
        self.asked = Some((peer, now));
        true
    }
}

impl Lane {
    fn associations(&self) -> MutexGuard<'_, HashMap<u64, Arc<Association>>> {
        // No code that can panic runs under this lock.
        self.associations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl UdpRelay {
    /// From now on flows are asked for. Only the first call counts.
    ///
    /// # Errors
    /// When the kernel cannot number datagrams (before Linux 5.19). Then none is asked for.
    pub fn set_express(
        &self,
        express: Arc<dyn Express>,
        receivers: &[Arc<Receiver>],
    ) -> std::io::Result<()> {
        for receiver in receivers {
            ask_for_numbers(&receiver.socket)?;
        }
        let _ = self.lane.express.set(express);
        Ok(())
    }

    /// An association had so many datagrams of a peer.
    pub(super) fn vote(&self, association: &Arc<Association>, peer: SocketAddr, datagrams: usize) {
        let Some(express) = self.lane.express.get() else {
            return;
        };
        let Upstream::Direct(socket) = &association.upstream else {
            return;
        };
        let datagrams = u32::try_from(datagrams).unwrap_or(u32::MAX);
        if !association.vote().cast(peer, datagrams, Instant::now) {
            return;
        }
        // Who wants a link, an address or a mark of their own has a socket for it.
        if *association.way.binding() != Default::default() || peer.port() == 0 {
            return;
        }
        let Ok(local) = socket.local_addr() else {
            return;
        };
        if ask_for_numbers(socket).is_err() {
            return;
        }
        let id = association.flow().id;
        let candidate = Candidate {
            association: id,
            device: association.key.client,
            peer,
            port: local.port(),
        };
        // Under the lock: whoever ends it takes it out of the table first, and off the lane then.
        let table = self.table();
        let present = table.get(&association.key);
        if present.is_some_and(|present| Arc::ptr_eq(present, association)) {
            let mut associations = self.lane.associations();
            associations.insert(id, Arc::clone(association));
            express.ask(candidate);
        }
    }

    /// Devices' datagrams of this batch have been sent on.
    pub(super) fn tell_sent(&self, batch: &RecvBatch) {
        let Some(express) = self.switching() else {
            return;
        };
        for (device, peer, number) in batch.numbers() {
            if let Some(peer) = peer {
                express.sent(device, peer, number);
            }
        }
    }

    /// Answers of this batch have been sent on.
    pub(super) fn tell_answered(&self, association: &Association, batch: &RecvBatch) {
        let Some(express) = self.switching() else {
            return;
        };
        for (peer, _, number) in batch.numbers() {
            express.answered(association.flow().id, peer, number);
        }
    }

    fn switching(&self) -> Option<&Arc<dyn Express>> {
        self.lane
            .express
            .get()
            .filter(|express| express.is_switching())
    }

    /// Counts what went by the lane, as used now.
    pub fn collect(&self) {
        let Some(express) = self.lane.express.get() else {
            return;
        };
        let all: Vec<_> = self.lane.associations().values().cloned().collect();
        for association in all {
            let carried = express.carried(association.flow().id);
            if carried.is_empty() {
                continue;
            }
            self.count_carried(&association, &carried);
            let now = Instant::now();
            self.table().touch(&association.key, Class::Dns, now);
            if self.has_flows() {
                let client = association.key.client;
                self.used_flows(carried.iter().map(|(destination, _)| Flow {
                    client,
                    destination: *destination,
                }));
            }
        }
    }

    /// An association ends.
    pub(super) fn leave(&self, association: &Arc<Association>) {
        let id = association.flow().id;
        if let Some(express) = self.lane.express.get()
            && self.lane.associations().remove(&id).is_some()
        {
            self.count_carried(association, &express.leave(id));
        }
    }

    fn count_carried(&self, association: &Association, carried: &[(SocketAddr, Carried)]) {
        let counters = &self.hands.shared.counters;
        for (_, Carried { up, down }) in carried {
            counters.up.fetch_add(*up, Relaxed);
            counters.down.fetch_add(*down, Relaxed);
            association.flow().count_up(*up);
            association.flow().count_down(*down);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u16) -> SocketAddr {
        ([192, 0, 2, 1], number).into()
    }

    #[test]
    fn a_peer_that_has_most_is_asked_for_once_in_a_while() {
        let mut vote = Vote::default();
        let start = Instant::now();
        assert!(!vote.cast(peer(1), ENOUGH - 1, || start));
        assert!(vote.cast(peer(1), 1, || start));
        // Not again at once, and another one at any time.
        assert!(!vote.cast(peer(1), ENOUGH, || start));
        assert!(vote.cast(peer(2), ENOUGH, || start));
        assert!(vote.cast(peer(1), ENOUGH, || start + AGAIN));
    }

    #[test]
    fn many_peers_with_little_each_are_not_asked_for() {
        let mut vote = Vote::default();
        for number in 1..10_000 {
            assert!(!vote.cast(peer(number), 3, Instant::now));
        }
        // One among them that has more than all others is found.
        let mut asked = false;
        for number in 1..100 {
            asked |= vote.cast(peer(7), 4, Instant::now);
            assert!(!vote.cast(peer(1000 + number), 1, Instant::now));
        }
        assert!(asked);
    }
}
