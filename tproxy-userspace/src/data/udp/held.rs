//! Flows whose first datagrams wait until the name in them is known. No I/O and no clock: the caller says when a flow
//! has waited long enough, and sends what waited.
//!
//! What waits is limited for each flow, for each device, and for all together. Where there is no room, a flow goes on
//! without a name rather than later.

use std::collections::HashMap;
use std::net::IpAddr;

use tokio::task::AbortHandle;

use super::key::Flow;
use super::waiting::Waiting;
use crate::data::sniff::{Progress, Quic};

/// What all held flows may cost together, in bytes.
pub const MOST: usize = 4 << 20;
/// What those of one device (by its address) may cost. A handshake takes some 4 KiB for a moment.
pub const MOST_OF_DEVICE: usize = MOST / 8;
/// What a flow costs apart from its datagrams and the handshake in them: its places here, and a timer.
const FLOW: usize = 1024;
/// What a datagram costs apart from its payload.
const DATAGRAM: usize = 64;

/// The flows that are held.
#[derive(Debug, Default)]
pub struct Held {
    flows: HashMap<Flow, Waiter>,
    /// What the flows of each device cost.
    devices: HashMap<IpAddr, usize>,
    cost: usize,
    begun: u64,
}

/// One of them.
#[derive(Debug)]
struct Waiter {
    /// Tells it from others that the flow had before.
    number: u64,
    sniffer: Quic,
    datagrams: Waiting,
    cost: usize,
    timer: Option<Timer>,
}

/// Ends the task that waits for the end of a flow's time.
#[derive(Debug)]
struct Timer(AbortHandle);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What a datagram says about the name of its flow.
#[derive(Debug)]
pub enum Reading {
    /// The flow was held for this datagram. The caller sets its timer.
    Begun(u64),
    /// It was held already.
    Continued,
    /// There is nothing to wait for any more.
    Done(Done),
}

/// A flow that can go on.
#[derive(Debug, Default)]
pub struct Done {
    /// The name that its device asks for.
    pub name: Option<Box<str>>,
    /// It has a handshake, but went on before the name in it was known.
    pub missed: bool,
    /// The datagrams that go before all others, without the one that was just read.
    pub datagrams: Waiting,
}

impl Held {
    /// Looks at the next datagram of a flow, and keeps it if more is needed.
    pub fn read(&mut self, flow: Flow, payload: &[u8]) -> Reading {
        let known = self.remove(&flow);
        let is_new = known.is_none();
        let mut waiter = known.unwrap_or_else(|| Waiter {
            number: self.begun,
            sniffer: Quic::new(),
            datagrams: Waiting::default(),
            cost: 0,
            timer: None,
        });
        let (name, missed) = match waiter.sniffer.feed(payload) {
            Progress::Name(found) => (Some(found.name.as_str().into()), false),
            Progress::NotThis => (None, false),
            Progress::NeedMore => {
                if waiter.datagrams.has_room(payload.len()) {
                    waiter.cost = FLOW
                        + waiter.sniffer.memory()
                        + waiter.datagrams.bytes()
                        + payload.len()
                        + DATAGRAM * (waiter.datagrams.len() + 1);
                    if self.has_room(flow.client.ip(), waiter.cost) {
                        let datagram = std::iter::once((flow.destination, payload));
                        waiter.datagrams.put(datagram);
                        return self.keep(flow, waiter, is_new);
                    }
                }
                (None, true)
            }
        };
        Reading::Done(Done {
            name,
            missed,
            datagrams: waiter.datagrams,
        })
    }

    fn keep(&mut self, flow: Flow, waiter: Waiter, is_new: bool) -> Reading {
        let number = waiter.number;
        self.cost += waiter.cost;
        *self.devices.entry(flow.client.ip()).or_default() += waiter.cost;
        self.flows.insert(flow, waiter);
        if is_new {
            self.begun += 1;
            Reading::Begun(number)
        } else {
            Reading::Continued
        }
    }

    /// The task that calls [`late`](Self::late) for the flow. It is ended when the flow goes on before.
    pub fn set_timer(&mut self, flow: &Flow, task: AbortHandle) {
        if let Some(waiter) = self.flows.get_mut(flow) {
            waiter.timer = Some(Timer(task));
        }
    }

    /// The time of a flow is over. None if it went on before.
    pub fn late(&mut self, flow: &Flow, number: u64) -> Option<Done> {
        if self.flows.get(flow)?.number != number {
            return None;
        }
        let waiter = self.remove(flow)?;
        Some(Done {
            name: None,
            missed: true,
            datagrams: waiter.datagrams,
        })
    }

    /// Drops all and returns how many datagrams there were.
    pub fn clear(&mut self) -> usize {
        let begun = self.begun;
        let all = std::mem::take(self);
        self.begun = begun;
        all.flows
            .values()
            .map(|waiter| waiter.datagrams.len())
            .sum()
    }

    /// Is this flow held?
    #[must_use]
    pub fn contains(&self, flow: &Flow) -> bool {
        // Mostly there is none, which spares working out where it would be.
        !self.flows.is_empty() && self.flows.contains_key(flow)
    }

    /// How many are held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.flows.len()
    }

    fn has_room(&self, device: IpAddr, cost: usize) -> bool {
        let of_device = self.devices.get(&device).copied().unwrap_or_default();
        self.cost + cost <= MOST && of_device + cost <= MOST_OF_DEVICE
    }

    fn remove(&mut self, flow: &Flow) -> Option<Waiter> {
        if self.flows.is_empty() {
            return None;
        }
        let waiter = self.flows.remove(flow)?;
        self.cost -= waiter.cost;
        let device = flow.client.ip();
        if let Some(cost) = self.devices.get_mut(&device) {
            *cost -= waiter.cost;
            if *cost == 0 {
                self.devices.remove(&device);
            }
        }
        Some(waiter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::sniff::quic::samples::{incomplete, two_datagrams};

    fn flow(device: u8, port: u16) -> Flow {
        Flow {
            client: ([192, 0, 2, device], port).into(),
            destination: ([198, 51, 100, 1], 443).into(),
        }
    }

    fn done(reading: Reading) -> Done {
        match reading {
            Reading::Done(done) => done,
            other => panic!("{other:?}"),
        }
    }

    fn costs_nothing(held: &Held) -> bool {
        held.len() == 0 && held.cost == 0 && held.devices.is_empty()
    }

    #[test]
    fn a_name_over_two_datagrams_gives_back_the_first() {
        let [first, second] = two_datagrams("www.example");
        for (first, second) in [(&first, &second), (&second, &first)] {
            let mut held = Held::default();
            assert!(matches!(held.read(flow(1, 1), first), Reading::Begun(0)));
            assert!(held.cost > first.len());
            let done = done(held.read(flow(1, 1), second));
            assert_eq!(done.name.as_deref(), Some("www.example"));
            assert!(!done.missed);
            let waited: Vec<_> = done.datagrams.iter().collect();
            assert_eq!(waited, [(flow(1, 1).destination, &first[..])]);
            assert!(costs_nothing(&held));
        }
    }

    #[test]
    fn what_has_no_name_is_not_held() {
        let mut held = Held::default();
        let done = done(held.read(flow(1, 1), b"something else"));
        assert!(done.name.is_none() && !done.missed);
        assert!(costs_nothing(&held));
    }

    #[test]
    fn time_ends_the_flow_that_it_was_set_for() {
        let mut held = Held::default();
        held.read(flow(1, 1), &incomplete());
        assert!(held.late(&flow(1, 1), 1).is_none());
        let done = held.late(&flow(1, 1), 0).expect("it is held");
        assert!(done.missed);
        assert_eq!(done.datagrams.len(), 1);
        assert!(matches!(
            held.read(flow(1, 1), &incomplete()),
            Reading::Begun(1)
        ));
        assert!(held.late(&flow(1, 1), 0).is_none(), "another one by now");
        assert_eq!(held.clear(), 1);
        assert!(costs_nothing(&held));
    }

    #[test]
    fn a_flow_has_its_limit_and_loses_nothing() {
        let mut held = Held::default();
        held.read(flow(1, 1), &incomplete());
        let large = [0x40; 60_000];
        for _ in 0..2 {
            assert!(matches!(held.read(flow(1, 1), &large), Reading::Continued));
        }
        let done = done(held.read(flow(1, 1), &large));
        assert!(done.missed);
        assert_eq!(done.datagrams.len(), 3);
        assert!(costs_nothing(&held));
    }

    #[test]
    fn a_device_has_its_share_and_all_have_theirs() {
        let mut held = Held::default();
        let first = incomplete();
        for port in 1..=2_000 {
            held.read(flow(1, port), &first);
        }
        let of_one = held.len();
        assert!((100..2_000).contains(&of_one), "{of_one}");
        assert!(held.cost <= MOST_OF_DEVICE);
        for device in 2..=20 {
            for port in 1..=of_one as u16 {
                held.read(flow(device, port), &first);
            }
        }
        assert!((7 * of_one..=8 * of_one + 8).contains(&held.len()));
        assert!(held.cost <= MOST);
        assert_eq!(held.clear(), held.begun as usize);
        assert!(costs_nothing(&held));
    }
}
