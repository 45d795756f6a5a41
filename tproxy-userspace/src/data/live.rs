//! The connections and associations that live, and an account of all bytes that passed.
//!
//! An association is one flow here, whatever it carries: its first destination and name stand for the others.

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tproxy_common::abi::{NETWORK_V4, NETWORK_V6};

use super::exit::Choice;
use crate::policy::rule::Protocol;

/// Devices, and destination networks, that have an entry of their own in the account. What ends when there are as many
/// is put together under no name.
const ACCOUNTED: usize = 16 * 1024;

/// One connection or association while it lives.
#[derive(Debug)]
pub struct Flow {
    /// A number that no other flow of this proxy gets.
    pub id: u64,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The device.
    pub client: SocketAddr,
    /// Where the device wanted to go (UDP: with its first datagram).
    pub destination: SocketAddr,
    started: Instant,
    /// Bytes from the device to the upstream side.
    up: AtomicU64,
    /// Bytes from the upstream side to the device.
    down: AtomicU64,
    name: OnceLock<Box<str>>,
    choice: OnceLock<Choice>,
    killed: AtomicBool,
}

impl Flow {
    /// The name that the device asks for, if it was read.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.get().map(|name| &**name)
    }

    /// The name is this. Only the first one counts.
    pub fn set_name(&self, name: Option<Box<str>>) {
        if let Some(name) = name {
            let _ = self.name.set(name);
        }
    }

    /// The outbound that it took, the group that has it, and the rule that says so. None before the choice, and for what
    /// takes none. Of an association the rule is that of its first flow.
    #[must_use]
    pub fn choice(&self) -> Option<&Choice> {
        self.choice.get()
    }

    /// It goes this way. Only the first call counts.
    pub fn set_choice(&self, choice: Choice) {
        let _ = self.choice.set(choice);
    }

    /// Bytes from the device to the upstream side.
    #[must_use]
    pub fn up(&self) -> u64 {
        self.up.load(Relaxed)
    }

    /// Bytes from the upstream side to the device.
    #[must_use]
    pub fn down(&self) -> u64 {
        self.down.load(Relaxed)
    }

    /// Bytes have arrived upstream.
    pub fn count_up(&self, bytes: u64) {
        self.up.fetch_add(bytes, Relaxed);
    }

    /// Bytes have arrived at the device.
    pub fn count_down(&self, bytes: u64) {
        self.down.fetch_add(bytes, Relaxed);
    }

    /// Since when.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// A person ends it. Its task is to be aborted after this.
    pub fn kill(&self) {
        self.killed.store(true, Relaxed);
    }

    /// Did a person end it?
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.killed.load(Relaxed)
    }

    fn bytes(&self) -> Bytes {
        Bytes {
            up: self.up(),
            down: self.down(),
        }
    }

    /// What a person is told of it.
    #[must_use]
    pub fn status(&self) -> FlowStatus {
        let choice = self.choice();
        FlowStatus {
            id: self.id,
            protocol: self.protocol,
            client: self.client,
            destination: self.destination,
            name: self.name().map(str::to_owned),
            outbound: choice.map(|choice| choice.way.name.to_string()),
            group: choice.and_then(Choice::group).map(str::to_owned),
            rule: choice.and_then(|choice| choice.rule.as_deref().map(str::to_owned)),
            bytes: self.bytes(),
            age_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }
}

/// What a person is told of a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowStatus {
    /// Its number.
    pub id: u64,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The device.
    pub client: SocketAddr,
    /// Where the device wanted to go (UDP: with its first datagram).
    pub destination: SocketAddr,
    /// The name that the device asks for, if it was read.
    pub name: Option<String>,
    /// The outbound. None: not connected yet, or a DNS question.
    pub outbound: Option<String>,
    /// The group that has the outbound.
    pub group: Option<String>,
    /// The rule that says so. None: the default.
    pub rule: Option<String>,
    /// What passed so far.
    #[serde(flatten)]
    pub bytes: Bytes,
    /// How old it is, in milliseconds.
    pub age_ms: u64,
}

/// Bytes in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// From devices to the upstream side.
    pub up: u64,
    /// From the upstream side to devices.
    pub down: u64,
}

impl Bytes {
    fn add(&mut self, other: Self) {
        self.up += other.up;
        self.down += other.down;
    }
}

/// Bytes that passed the proxy since its start, those of living flows included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// By device.
    pub devices: Vec<(IpAddr, Bytes)>,
    /// By destination network: /24 for IPv4, /48 for IPv6.
    pub networks: Vec<(IpNet, Bytes)>,
    /// By outbound.
    pub outbounds: Vec<(String, Bytes)>,
    /// Of devices that found no room in the list.
    pub other_devices: Bytes,
    /// To networks that found no room in the list.
    pub other_networks: Bytes,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Live {
    next: AtomicU64,
    flows: Mutex<HashMap<u64, Arc<Flow>>>,
    ended: Mutex<Sums>,
}

impl Live {
    /// A flow begins.
    pub fn enter(
        &self,
        protocol: Protocol,
        client: SocketAddr,
        destination: SocketAddr,
    ) -> Arc<Flow> {
        let flow = Arc::new(Flow {
            id: self.next.fetch_add(1, Relaxed) + 1,
            protocol,
            client,
            destination,
            started: Instant::now(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            name: OnceLock::new(),
            choice: OnceLock::new(),
            killed: AtomicBool::new(false),
        });
        lock(&self.flows).insert(flow.id, Arc::clone(&flow));
        flow
    }

    /// The number of the flow that came last.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.next.load(Relaxed)
    }

    /// Numbers up to this one are those of another process.
    pub fn go_on_from(&self, last: u64) {
        self.next.fetch_max(last, Relaxed);
    }

    /// A flow has ended.
    pub fn leave(&self, flow: &Flow) {
        // In one step for who makes up an account, lest its bytes be seen twice or not at all.
        let mut ended = lock(&self.ended);
        ended.add(flow);
        lock(&self.flows).remove(&flow.id);
    }

    /// The flow of this number, if it lives.
    #[must_use]
    pub fn get(&self, id: u64) -> Option<Arc<Flow>> {
        lock(&self.flows).get(&id).cloned()
    }

    /// All that live, the oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Flow>> {
        let mut all: Vec<_> = lock(&self.flows).values().cloned().collect();
        all.sort_unstable_by_key(|flow| flow.id);
        all
    }

    /// Who sent and got how much.
    #[must_use]
    pub fn account(&self) -> Account {
        let (mut sums, living) = {
            let ended = lock(&self.ended);
            (ended.clone(), self.all())
        };
        for flow in living {
            sums.add(&flow);
        }
        sums.into()
    }

    /// Bytes by outbound, without the rest of the account, which is larger.
    #[must_use]
    pub fn outbound_bytes(&self) -> Vec<(Arc<str>, Bytes)> {
        let ended = lock(&self.ended);
        let mut sums = ended.outbounds.clone();
        for flow in lock(&self.flows).values() {
            let bytes = flow.bytes();
            if let Some(choice) = flow.choice().filter(|_| bytes != Bytes::default()) {
                let name = Arc::clone(&choice.way.name);
                sums.entry(name).or_default().add(bytes);
            }
        }
        drop(ended);
        let mut sums = Vec::from_iter(sums);
        sums.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        sums
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone, Debug, Default)]
struct Sums {
    devices: HashMap<IpAddr, Bytes>,
    networks: HashMap<IpNet, Bytes>,
    outbounds: HashMap<Arc<str>, Bytes>,
    other_devices: Bytes,
    other_networks: Bytes,
}

impl Sums {
    fn add(&mut self, flow: &Flow) {
        let bytes = flow.bytes();
        if bytes == Bytes::default() {
            return;
        }
        let device = flow.client.ip().to_canonical();
        add_to(&mut self.devices, device, bytes, &mut self.other_devices);
        let network = network_of(flow.destination.ip());
        add_to(&mut self.networks, network, bytes, &mut self.other_networks);
        if let Some(choice) = flow.choice() {
            let name = Arc::clone(&choice.way.name);
            self.outbounds.entry(name).or_default().add(bytes);
        }
    }
}

fn add_to<K: Eq + Hash>(sums: &mut HashMap<K, Bytes>, key: K, bytes: Bytes, others: &mut Bytes) {
    if let Some(sum) = sums.get_mut(&key) {
        sum.add(bytes);
    } else if sums.len() < ACCOUNTED {
        sums.insert(key, bytes);
    } else {
        others.add(bytes);
    }
}

/// The network that a destination is accounted by.
fn network_of(destination: IpAddr) -> IpNet {
    let address = destination.to_canonical();
    let length = match address {
        IpAddr::V4(_) => NETWORK_V4,
        IpAddr::V6(_) => NETWORK_V6,
    };
    IpNet::new_assert(address, length).trunc()
}

impl From<Sums> for Account {
    fn from(sums: Sums) -> Self {
        let mut outbounds: Vec<_> = sums
            .outbounds
            .into_iter()
            .map(|(name, bytes)| (name.to_string(), bytes))
            .collect();
        let (mut devices, mut networks) =
            (Vec::from_iter(sums.devices), Vec::from_iter(sums.networks));
        devices.sort_unstable_by_key(|(device, _)| *device);
        networks.sort_unstable_by_key(|(network, _)| *network);
        outbounds.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        Self {
            devices,
            networks,
            outbounds,
            other_devices: sums.other_devices,
            other_networks: sums.other_networks,
        }
    }
}
