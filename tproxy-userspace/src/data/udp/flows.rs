//! Which way each flow takes, while there are rules: decided at its first datagram, by the name in it where that
//! matters, and remembered until the flow idles.
//!
//! A reload changes nothing for a flow that is remembered. If its association is gone, the flow is decided anew by
//! the present rules and the name that it is remembered by, which no later datagram says again.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::association::Association;
use super::held::{Done, Held, Reading};
use super::key::{Flow, Key, WayKey};
use super::table::{Class, Table};
use super::{Arrival, Beginning, Datagram, Receiver, Scratch, UdpRelay, with_scratch};
use crate::data::exit::Choice;
use crate::data::limits::{Budget, Limits};
use crate::data::router::Router;
use crate::data::way::Way;
use crate::net::mmsg::{BATCH, SendBatch};

/// How many flows are remembered for each association that there may be.
const FLOWS_PER_ASSOCIATION: usize = 4;

/// Flows that are remembered, and those that are not decided yet. No flow is both.
#[derive(Debug)]
pub struct Flows {
    known: Table<Flow, Known>,
    held: Held,
}

/// What is remembered of a flow. Its rule is not: whoever needs it asks the rules again.
#[derive(Debug)]
struct Known {
    /// Which of the client's associations it has.
    key: WayKey,
    /// The way that this one takes. By the same key another may come to go elsewhere, after a reload.
    way: Arc<Way>,
    /// The name that the device asked for.
    name: Option<Box<str>>,
}

impl Flows {
    /// None yet.
    #[must_use]
    pub fn new(budget: Budget, limits: &Limits) -> Self {
        let capacity = budget.associations.saturating_mul(FLOWS_PER_ASSOCIATION);
        Self {
            known: Table::new(capacity, limits.udp_dns_idle, limits.udp_idle),
            held: Held::default(),
        }
    }

    /// Is this flow remembered?
    #[cfg(test)]
    pub fn knows(&self, flow: &Flow) -> bool {
        self.known.get(flow).is_some()
    }

    /// How many flows are held.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.held.len()
    }
}

impl UdpRelay {
    /// Is there a flow that may take another way than the default? If not, and if there are no rules, nothing needs to
    /// be looked up.
    pub(super) fn has_flows(&self) -> bool {
        self.hands.shared.counters.flows.load(Relaxed) > 0
    }

    /// Sends a batch on, each datagram by the way of its flow: those of one association together, in their order.
    pub(super) fn forward_by_rules(
        self: &Arc<Self>,
        arrival: &Arrival<'_>,
        datagrams: &[Option<Datagram<'_>>; BATCH],
        send: &mut SendBatch,
    ) {
        let mut routes = [const { None::<Arc<Association>> }; BATCH];
        let mut before: Option<(Flow, usize)> = None;
        for (at, datagram) in datagrams.iter().enumerate() {
            let Some((client, destination, payload)) = *datagram else {
                continue;
            };
            let flow = Flow {
                client,
                destination,
            };
            // Mostly a batch is a burst of one flow.
            let same = before.filter(|(before, _)| *before == flow);
            let known = same.and_then(|(_, before)| routes[before].clone());
            routes[at] = known.or_else(|| self.route(arrival, flow, payload, send));
            before = Some((flow, at));
        }
        for first in 0..BATCH {
            let Some(association) = routes[first].take() else {
                continue;
            };
            // Taking them marks the group, so that its members are not found again.
            let mut group = [None; BATCH];
            group[first] = datagrams[first];
            for at in first + 1..BATCH {
                let is_same = |other: &mut Arc<Association>| Arc::ptr_eq(other, &association);
                if routes[at].take_if(is_same).is_some() {
                    group[at] = datagrams[at];
                }
            }
            let group = group[first..].iter().flatten();
            let group = group.map(|(_, destination, payload)| (*destination, *payload));
            association.send(send, group, self);
        }
    }

    /// The association of a datagram. None if the datagram is held, or dropped and counted.
    fn route(
        self: &Arc<Self>,
        arrival: &Arrival<'_>,
        flow: Flow,
        payload: &[u8],
        send: &mut SendBatch,
    ) -> Option<Arc<Association>> {
        // Kept to the end: what is decided here is sent before anybody else sees that it is.
        let mut flows = self.flows();
        let class = Class::of_port(flow.destination.port());
        let mut name = None;
        if let Some(known) = flows.known.touch(&flow, class, arrival.now) {
            let key = Key {
                client: flow.client,
                way: known.key.clone(),
            };
            if let Some(association) = self.table().touch(&key, class, arrival.now)
                && Arc::ptr_eq(&association.way, &known.way)
            {
                return Some(Arc::clone(association));
            }
            name.clone_from(&known.name);
        }
        let done = if name.is_some() {
            Done {
                name,
                ..Done::default()
            }
        } else {
            let sniff = arrival.router.sniff(&flow.query(None));
            if sniff.is_none() && !flows.held.contains(&flow) {
                Done::default()
            } else {
                match flows.held.read(flow, payload) {
                    Reading::Done(done) => done,
                    Reading::Continued => return None,
                    Reading::Begun(number) => {
                        flows.known.remove(&flow);
                        let limit = sniff.map_or(Duration::ZERO, |sniff| sniff.timeout);
                        self.limit(&mut flows, arrival.receiver, flow, number, limit);
                        self.count_flows(&flows);
                        return None;
                    }
                }
            }
        };
        let association = self.settle(&mut flows, arrival, flow, done, send);
        if association.is_none() {
            self.count_dropped(1);
        }
        association
    }

    /// Makes sure that a held flow goes on when its time is over.
    fn limit(
        self: &Arc<Self>,
        flows: &mut Flows,
        receiver: &Arc<Receiver>,
        flow: Flow,
        number: u64,
        limit: Duration,
    ) {
        let (relay, receiver) = (Arc::clone(self), Arc::clone(receiver));
        let task = tokio::spawn(async move {
            sleep(limit).await;
            relay.late(&receiver, flow, number);
        });
        flows.held.set_timer(&flow, task.abort_handle());
    }

    fn late(self: &Arc<Self>, receiver: &Arc<Receiver>, flow: Flow, number: u64) {
        let router = self.hands.shared.router();
        let arrival = Arrival {
            receiver,
            router: &router,
            now: Instant::now(),
        };
        with_scratch(|Scratch { send, .. }| {
            let mut flows = self.flows();
            if let Some(done) = flows.held.late(&flow, number) {
                self.settle(&mut flows, &arrival, flow, done, send);
            }
        });
    }

    /// Decides which way a flow takes, and sends what waited for that. None when there can be no association.
    fn settle(
        self: &Arc<Self>,
        flows: &mut Flows,
        arrival: &Arrival<'_>,
        flow: Flow,
        done: Done,
        send: &mut SendBatch,
    ) -> Option<Arc<Association>> {
        let counters = &self.hands.shared.counters;
        if done.missed {
            counters.names_missed.fetch_add(1, Relaxed);
        }
        let choice = arrival.router.choose(&flow.query(done.name.as_deref()));
        let key = Key {
            client: flow.client,
            way: self.way_key(flow, &choice, arrival.router),
        };
        let way_key = key.way.clone();
        let class = Class::of_port(flow.destination.port());
        let association = self.association(arrival, key, class, || Beginning {
            destination: flow.destination,
            choice,
            name: done.name.clone(),
        });
        match &association {
            Some(association) if done.datagrams.len() > 0 => {
                association.send(send, done.datagrams.iter(), self);
            }
            Some(_) => {}
            None => self.count_dropped(done.datagrams.len()),
        }
        flows.known.remove(&flow);
        // Without rules there is nothing to remember; without an association nothing was decided.
        if let Some(association) = association.as_ref().filter(|_| arrival.router.has_rules()) {
            let known = Known {
                key: way_key,
                way: Arc::clone(&association.way),
                name: done.name,
            };
            let evicted = flows.known.insert(flow, known, class, arrival.now);
            if evicted.is_some() {
                counters.flows_evicted.fetch_add(1, Relaxed);
            }
        }
        self.count_flows(flows);
        association
    }

    /// By which of its associations a client's flow goes. What no rule is about goes by the default one, whichever way
    /// that was made with. What a rule is about goes by it only if that is the way which the rule names.
    fn way_key(&self, flow: Flow, choice: &Choice, router: &Router) -> WayKey {
        if choice.rule.is_none() {
            return WayKey::Default;
        }
        let key = Key {
            client: flow.client,
            way: WayKey::Default,
        };
        let table = self.table();
        let default = table
            .get(&key)
            .map(|association| Arc::clone(&association.way))
            .unwrap_or_else(|| router.default_exit().first(&flow.query(None)));
        if Arc::ptr_eq(&default, &choice.way) {
            WayKey::Default
        } else {
            WayKey::Other(Arc::clone(&choice.way))
        }
    }

    /// Answers came by these flows.
    pub(super) fn used_flows(&self, flows: impl Iterator<Item = Flow>) {
        // Answers do not wait for whoever decides; there will be more of them.
        let Ok(mut known) = self.flows.try_lock() else {
            return;
        };
        let now = Instant::now();
        let mut before = None;
        for flow in flows {
            if before.replace(flow) != Some(flow) {
                known.known.touch(&flow, Class::Dns, now);
            }
        }
    }

    /// Forgets flows that idle.
    pub(super) fn sweep_flows(&self, now: Instant) {
        // The lock is let go between two, for the sake of datagrams that wait for it.
        loop {
            let mut flows = self.flows();
            if flows.known.pop_idle(now).is_none() {
                return;
            }
            self.count_flows(&flows);
        }
    }

    /// Forgets all flows. What is held is dropped and counted.
    pub(super) fn clear_flows(&self) {
        let mut flows = self.flows();
        let dropped = flows.held.clear();
        while flows.known.pop().is_some() {}
        self.count_flows(&flows);
        drop(flows);
        self.count_dropped(dropped);
    }

    fn count_flows(&self, flows: &Flows) {
        let count = flows.known.len() + flows.held.len();
        self.hands
            .shared
            .counters
            .flows
            .store(count as u64, Relaxed);
    }

    pub(super) fn flows(&self) -> MutexGuard<'_, Flows> {
        // What runs under the lock leaves the flows whole if it panics.
        self.flows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
