//! UDP: steered datagrams in, each to the association of its device socket and way, and the answers back.
//!
//! Without rules all datagrams of a device socket take the default way, and nothing is kept but its association. With
//! rules each flow is decided by itself (`flows`). Locks are taken in this order: flows, associations, those on the express
//! lane, what waits in an association. None is held across an await.

mod association;
mod express;
mod flows;
mod handover;
mod held;
mod key;
pub mod probe;
mod questions;
pub mod table;
#[cfg(test)]
mod tests;
mod upstream;
mod waiting;

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;

use self::association::Association;
use self::express::Lane;
pub use self::express::{Candidate, Carried, Express};
use self::flows::Flows;
use self::handover::Predecessors;
pub use self::handover::{Draining, Inherited};
use self::key::{Flow, Key, WayKey};
use self::questions::Questions;
use self::table::{Class, Table};
use self::upstream::{Relay, Upstream};
use super::exit::Choice;
use super::hands::Hands;
use super::limits::{Budget, Limits};
use super::live;
use super::outbound::Outbound;
use super::record::{Outcome, Protocol, Record};
use super::router::Router;
use crate::net::mmsg::{BATCH, Received, RecvBatch, SendBatch, in_batches};

/// How often associations are looked at for idling.
const SWEEP: Duration = Duration::from_secs(1);

/// Buffers of one worker thread. No datagram waits in them: each batch is sent or dropped at once.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) recv: RecvBatch,
    pub(super) send: SendBatch,
}

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> = RefCell::default();
}

/// Works with this thread's buffers. Not to be nested.
fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| work(scratch))
}

/// The socket of one family that devices' datagrams arrive on and that all replies leave from.
#[derive(Debug)]
pub struct Receiver {
    socket: UdpSocket,
    own: SocketAddr,
}

/// Client, destination and payload.
type Datagram<'a> = (SocketAddr, SocketAddr, &'a [u8]);

/// What is the same for all datagrams of a batch.
#[derive(Clone, Copy)]
struct Arrival<'b> {
    receiver: &'b Arc<Receiver>,
    router: &'b Router,
    now: Instant,
}

/// What an association begins with: its first flow, and what was decided about that.
struct Beginning {
    destination: SocketAddr,
    choice: Choice,
    name: Option<Box<str>>,
}

/// What all associations share. Any number of tasks may receive for it at once.
#[derive(Debug)]
pub struct UdpRelay {
    hands: Hands,
    flows: Mutex<Flows>,
    table: Mutex<Table<Key, Arc<Association>>>,
    questions: Questions,
    lane: Lane,
    /// The processes that this one has taken over from.
    pub(super) predecessors: Predecessors,
    closed: AtomicBool,
}

impl UdpRelay {
    /// A relay without associations.
    #[must_use]
    pub fn new(hands: Hands, budget: Budget, limits: &Limits) -> Arc<Self> {
        let table = Table::new(budget.associations, limits.udp_dns_idle, limits.udp_idle);
        Arc::new(Self {
            hands,
            flows: Mutex::new(Flows::new(budget, limits)),
            table: Mutex::new(table),
            questions: Questions::default(),
            lane: Lane::default(),
            predecessors: Predecessors::default(),
            closed: AtomicBool::new(false),
        })
    }

    /// Hands a bound receiver to the runtime.
    ///
    /// # Errors
    /// When the runtime's poller refuses it.
    pub fn register(socket: std::net::UdpSocket, own: SocketAddr) -> io::Result<Arc<Receiver>> {
        let socket = UdpSocket::from_std(socket)?;
        Ok(Arc::new(Receiver { socket, own }))
    }

    /// Receives steered datagrams until it is aborted.
    pub async fn receive(self: Arc<Self>, receiver: Arc<Receiver>) {
        let lost = &self.hands.shared.counters.datagrams_lost;
        let mut known = 0;
        while receiver.socket.readable().await.is_ok() {
            let _ = upstream::receive(&receiver.socket, |recv, send| {
                if let Some(now) = recv.lost() {
                    let more = now.wrapping_sub(std::mem::replace(&mut known, now));
                    lost.fetch_add(u64::from(more), Relaxed);
                }
                self.forward(&receiver, recv.datagrams(), send);
                self.tell_sent(recv);
                ControlFlow::Continue(())
            });
        }
    }

    /// Sends datagrams on.
    fn forward<'a>(
        self: &Arc<Self>,
        receiver: &Arc<Receiver>,
        all: impl Iterator<Item = Option<Received<'a>>>,
        send: &mut SendBatch,
    ) {
        let all = all.map(|one| self.accept(receiver.own, one));
        let _ = in_batches(all, |batch, _| {
            self.forward_batch(receiver, batch, send);
            ControlFlow::Continue(())
        });
    }

    fn forward_batch(
        self: &Arc<Self>,
        receiver: &Arc<Receiver>,
        datagrams: &mut [Option<Datagram<'_>>; BATCH],
        send: &mut SendBatch,
    ) {
        if let Some(dns) = self.hands.dns.get() {
            let shared = &self.hands.shared;
            self.questions.take(&dns, datagrams, receiver, send, shared);
        }
        if !self.predecessors.is_empty() {
            let dropped = self.predecessors.take(datagrams);
            let blocked = &self.hands.shared.counters.datagrams_blocked;
            blocked.fetch_add(dropped as u64, Relaxed);
        }
        let router = self.hands.shared.router();
        let arrival = Arrival {
            receiver,
            router: &router,
            now: Instant::now(),
        };
        if router.has_rules() || self.has_flows() {
            self.forward_by_rules(&arrival, datagrams, send);
        } else {
            self.forward_by_default(&arrival, datagrams, send);
        }
    }

    /// Sends a batch on by the default way: those of one device together, in their order.
    fn forward_by_default(
        self: &Arc<Self>,
        arrival: &Arrival<'_>,
        datagrams: &mut [Option<Datagram<'_>>; BATCH],
        send: &mut SendBatch,
    ) {
        for first in 0..BATCH {
            let Some((client, destination, _)) = datagrams[first] else {
                continue;
            };
            // Marks the group, so that its members are not found again.
            let mut group: [Option<(SocketAddr, &[u8])>; BATCH] = [None; BATCH];
            let mut class = Class::Dns;
            for (place, datagram) in group.iter_mut().zip(&mut *datagrams).skip(first) {
                if let Some((_, destination, payload)) =
                    datagram.take_if(|(other, ..)| *other == client)
                {
                    *place = Some((destination, payload));
                    class = class.max(Class::of_port(destination.port()));
                }
            }
            let group = group[first..].iter().copied().flatten();
            let key = Key {
                client,
                way: WayKey::Default,
            };
            let association = self.association(arrival, key, class, || Beginning {
                destination,
                choice: arrival.router.default_choice(
                    &Flow {
                        client,
                        destination,
                    }
                    .query(None),
                ),
                name: None,
            });
            match association {
                Some(association) => association.send(send, group, self),
                None => self.count_dropped(group.count()),
            }
        }
    }

    /// A datagram that can be relayed.
    fn accept<'a>(&self, own: SocketAddr, received: Option<Received<'a>>) -> Option<Datagram<'a>> {
        let counters = &self.hands.shared.counters;
        let count = |counter: &AtomicU64| counter.fetch_add(1, Relaxed);
        let Some(Received {
            peer,
            original: Some(destination),
            payload,
        }) = received
        else {
            count(&counters.datagrams_dropped);
            return None;
        };
        if destination == own {
            count(&counters.own_port_datagrams);
            return None;
        }
        if destination.port() == 0 {
            count(&counters.port_zero);
            return None;
        }
        if peer.port() == 0 {
            // Nobody could answer it.
            count(&counters.datagrams_dropped);
            return None;
        }
        Some((peer, destination, payload))
    }

    /// The association of this key, a new one if need be. None when there can be none.
    fn association(
        self: &Arc<Self>,
        arrival: &Arrival<'_>,
        key: Key,
        class: Class,
        begin: impl FnOnce() -> Beginning,
    ) -> Option<Arc<Association>> {
        let mut table = self.table();
        if let Some(association) = table.touch(&key, class, arrival.now) {
            return Some(Arc::clone(association));
        }
        if self.closed.load(Relaxed) {
            return None;
        }
        // The lock is kept, lest two receiving tasks make two associations for one key.
        let association = self.make(arrival.receiver, key.clone(), begin())?;
        let evicted = table.insert(key, Arc::clone(&association), class, arrival.now);
        drop(table);
        if let Some(evicted) = evicted {
            self.close(&evicted, Outcome::Evicted);
        }
        Some(association)
    }

    fn make(
        self: &Arc<Self>,
        receiver: &Arc<Receiver>,
        key: Key,
        beginning: Beginning,
    ) -> Option<Arc<Association>> {
        let Beginning {
            destination,
            choice,
            name,
        } = beginning;
        let client = key.client;
        let shared = Arc::clone(&self.hands.shared);
        let mut record = Record::new(shared, Protocol::Udp, client, destination);
        let way = Arc::clone(&choice.way);
        record.flow().set_choice(choice);
        record.flow().set_name(name);
        let upstream = match &*way.outbound {
            Outbound::Direct => match upstream::open_directly(&self.hands.dialer, &way, client) {
                Ok(socket) => Upstream::Direct(socket),
                Err(error) => {
                    tracing::debug!(%client, %error, "an association got no socket");
                    record.outcome = Outcome::NoResources;
                    return None;
                }
            },
            Outbound::Block => {
                record.outcome = Outcome::Blocked;
                Upstream::Nowhere
            }
            _ if upstream::has_relay(&way) => Upstream::Relay(Relay::default()),
            _ => {
                tracing::debug!(%client, outbound = %way.outbound, "the outbound carries no datagrams");
                record.outcome = Outcome::Unsupported;
                Upstream::Nowhere
            }
        };
        let association = Arc::new(Association::new(key, way, receiver, record, upstream));
        association.start(self, destination);
        Some(association)
    }

    /// Answers of these peers came for an association.
    fn used(&self, key: &Key, peers: impl Iterator<Item = SocketAddr>) {
        self.table().touch(key, Class::Dns, Instant::now());
        if self.has_flows() {
            let client = key.client;
            self.used_flows(peers.map(|destination| Flow {
                client,
                destination,
            }));
        }
    }

    /// Takes an association that ended by itself out of the table.
    fn forget(&self, association: &Arc<Association>) {
        let mut table = self.table();
        let known = table.get(&association.key);
        if known.is_some_and(|known| Arc::ptr_eq(known, association)) {
            table.remove(&association.key);
        }
        drop(table);
        self.leave(association);
    }

    /// Ends an association that is in the table no more.
    fn close(&self, association: &Arc<Association>, outcome: Outcome) {
        self.leave(association);
        association.close(outcome);
    }

    /// Ends idle associations and forgets idle flows, for ever.
    pub async fn sweep(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(SWEEP);
        loop {
            ticks.tick().await;
            self.sweep_at(Instant::now());
        }
    }

    fn sweep_at(&self, now: Instant) {
        self.collect();
        self.sweep_flows(now);
        if self.hands.shared.router().has_groups() {
            self.end_stranded();
        }
        // The lock is let go between two, for the sake of datagrams that wait for it.
        loop {
            let Some(association) = self.table().pop_idle(now) else {
                return;
            };
            self.close(&association, Outcome::Idle);
        }
    }

    /// Ends associations of groups whose outbound is down, where another one is not. A datagram tells nobody that it is
    /// lost, and a device that goes on sending would keep its association for ever.
    fn end_stranded(&self) {
        let stranded: Vec<_> = {
            let table = self.table();
            let stranded = table.iter().filter(|association| association.is_stranded());
            stranded.cloned().collect()
        };
        for association in stranded {
            self.forget(&association);
            self.close(&association, Outcome::UpstreamLost);
        }
    }

    /// Ends the association of this flow, if it is one of these.
    pub fn end(&self, flow: &live::Flow) -> bool {
        let found = {
            let table = self.table();
            let mut all = table.iter();
            all.find(|one| one.flow().id == flow.id).cloned()
        };
        let Some(association) = found else {
            return false;
        };
        flow.kill();
        self.forget(&association);
        self.close(&association, Outcome::Killed);
        true
    }

    /// From now on no association is made; those that live go on.
    pub fn refuse_new(&self) {
        self.closed.store(true, Relaxed);
    }

    /// Ends all associations and returns how many there were.
    pub fn close_all(&self) -> usize {
        self.clear_flows();
        let mut count = 0;
        loop {
            let Some(association) = self.table().pop() else {
                return count;
            };
            self.close(&association, Outcome::Drained);
            count += 1;
        }
    }

    fn count_dropped(&self, datagrams: usize) {
        let dropped = &self.hands.shared.counters.datagrams_dropped;
        dropped.fetch_add(datagrams as u64, Relaxed);
    }

    fn table(&self) -> MutexGuard<'_, Table<Key, Arc<Association>>> {
        // What runs under the lock leaves the table whole if it panics.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
