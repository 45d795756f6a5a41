//! Answers to what a decision asks, from the maps.
//!
//! What needs a key of its own is not inlined: a BPF program has 512 bytes of stack in all, and
//! the frames of calls that have returned are used again.

use core::arch::asm;
use core::cell::Cell;
use core::mem::size_of;

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use aya_ebpf::maps::LpmTrie;
use aya_ebpf::maps::lpm_trie::Key;
use tproxy_common::abi::{
    Bypass, CALLER_LIFE, Caller, Counter, FlowV4, FlowV6, FragmentFate, FragmentKey, Local, Reason,
    SOURCE_OWN, Settings, SourceV4, SourceV6,
};
use tproxy_common::packet::{Addresses, Packet, Ports, Transport};
use tproxy_common::trace::Message;
use tproxy_common::verdict::{Connection, Facts, Locality, OwnFacts};

use crate::maps::{
    BYPASS_V4, BYPASS_V6, CALLERS, COUNTERS, FRAGMENTS, LOCALS_V4, LOCALS_V6, SETTINGS, SOURCES_V4,
    SOURCES_V6, STEERED_V4, STEERED_V6,
};
use crate::skb::Skb;
use crate::{socket, trace};

/// How many expired prefixes, one inside the other, a look-up passes over.
const MAX_EXPIRED: usize = 4;

/// What is known about a packet at a tc hook: `OWN` for what the gateway itself sends by a link,
/// else for what comes in there.
pub struct SkbFacts<const OWN: bool> {
    pub skb: Skb,
    pub settings: Settings,
    /// Has it a mark of others that is exempt?
    pub exempt: bool,
    /// Where its destination is, once that was asked.
    pub locality: Cell<Option<Locality>>,
}

impl<const OWN: bool> Facts for SkbFacts<OWN> {
    #[inline(always)]
    fn settings(&self) -> Settings {
        self.settings
    }

    #[inline(always)]
    fn locality(&self, addresses: &Addresses) -> Locality {
        if let Some(known) = self.locality.get() {
            return known;
        }
        let found = locality(addresses);
        self.locality.set(Some(found));
        found
    }

    #[inline(always)]
    fn exempt(&self) -> bool {
        OWN && self.exempt
    }

    #[inline(always)]
    fn bypassed(&self, addresses: &Addresses) -> bool {
        bypassed(addresses, self.skb.len())
    }

    #[inline(always)]
    fn admitted(&self, addresses: &Addresses) -> bool {
        let link = self.skb.interface();
        admitted(addresses, if OWN { link | SOURCE_OWN } else { link })
    }

    #[inline(always)]
    fn connection(&self, packet: &Packet) -> Connection {
        let Some(ports) = tcp_ports(packet) else {
            return Connection::Unknown;
        };
        let held = if OWN {
            socket::holds_connection(self.skb, &packet.addresses, ports)
        } else {
            socket::assign_connection(self.skb, &packet.addresses, ports)
        };
        if held {
            Connection::Held
        } else if is_steered(&packet.addresses, ports) {
            Connection::Gone
        } else {
            Connection::Unknown
        }
    }

    #[inline(always)]
    fn fragment(&self, packet: &Packet) -> Option<FragmentFate> {
        recall_fragment(packet)
    }
}

impl OwnFacts for SkbFacts<true> {
    #[inline(always)]
    fn answers_caller(&self, packet: &Packet, ports: &Ports) -> bool {
        answers_caller(&packet.addresses, ports)
    }
}

/// Did the destination write to the source not long ago?
#[inline(never)]
fn answers_caller(addresses: &Addresses, ports: &Ports) -> bool {
    let (own, peer) = addresses.mapped();
    let caller = Caller {
        peer,
        own,
        peer_port: ports.destination,
        own_port: ports.source,
    };
    // SAFETY: the value is copied at once; it is written as one word.
    let last = unsafe { CALLERS.get(caller) }.copied();
    // SAFETY: the helper takes no arguments.
    last.is_some_and(|last| unsafe { bpf_ktime_get_boot_ns() } < last + CALLER_LIFE)
}

/// Remembers that the source wrote to a UDP service of the gateway, the destination.
#[inline(never)]
pub fn remember_caller(addresses: &Addresses, ports: &Ports) {
    let (peer, own) = addresses.mapped();
    let caller = Caller {
        peer,
        own,
        peer_port: ports.source,
        own_port: ports.destination,
    };
    // SAFETY: the helper takes no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // A full map gives up its least recently used entry, so this hardly ever fails.
    if let Err(error) = CALLERS.insert(caller, now, 0) {
        trace::message(Message::CallerNotRemembered, error);
    }
}

/// Was this connection steered once?
#[inline(never)]
pub fn is_steered(addresses: &Addresses, ports: &Ports) -> bool {
    let entry = match flow(addresses, ports) {
        // SAFETY: only the presence of the value is looked at.
        Flow::V4(key) => unsafe { STEERED_V4.get(key) },
        // SAFETY: as above.
        Flow::V6(key) => unsafe { STEERED_V6.get(key) },
    };
    entry.is_some()
}

/// Remembers that a connection is steered.
#[inline(never)]
pub fn remember_steered(addresses: &Addresses, ports: &Ports) {
    // A full map gives up its least recently used entry, so this hardly ever fails.
    let remembered = match flow(addresses, ports) {
        Flow::V4(key) => STEERED_V4.insert(key, 0, 0),
        Flow::V6(key) => STEERED_V6.insert(key, 0, 0),
    };
    if let Err(error) = remembered {
        trace::message(Message::SteeredNotRemembered, error);
    }
}

/// Forgets it. Most connections were never steered, and looking takes no lock, unlike removing.
#[inline(always)]
pub fn forget_steered(addresses: &Addresses, ports: &Ports) {
    if is_steered(addresses, ports) {
        remove_steered(addresses, ports);
    }
}

#[inline(never)]
fn remove_steered(addresses: &Addresses, ports: &Ports) {
    // What is not there any more needs no removing.
    let _ = match flow(addresses, ports) {
        Flow::V4(key) => STEERED_V4.remove(key),
        Flow::V6(key) => STEERED_V6.remove(key),
    };
}

/// The key of a flow.
pub enum Flow {
    V4(FlowV4),
    V6(FlowV6),
}

#[inline(always)]
pub fn flow(addresses: &Addresses, ports: &Ports) -> Flow {
    let (source_port, destination_port) = (ports.source, ports.destination);
    match *addresses {
        Addresses::V4 {
            source,
            destination,
            ..
        } => Flow::V4(FlowV4 {
            source,
            destination,
            source_port,
            destination_port,
        }),
        Addresses::V6 {
            source,
            destination,
        } => Flow::V6(FlowV6 {
            source,
            destination,
            source_port,
            destination_port,
        }),
    }
}

/// Remembers what became of the first fragment of a TCP segment.
#[inline(never)]
pub fn remember_fragment(packet: &Packet, fate: FragmentFate) {
    if let Some(key) = fragment_key(packet)
        && let Err(error) = FRAGMENTS.insert(key, fate as u32, 0)
    {
        trace::message(Message::FragmentNotRemembered, error);
    }
}

#[inline(never)]
fn recall_fragment(packet: &Packet) -> Option<FragmentFate> {
    // SAFETY: the value is copied at once; a torn read of a word cannot be.
    match unsafe { FRAGMENTS.get(fragment_key(packet)?) }.copied()? {
        fate if fate == FragmentFate::Steered as u32 => Some(FragmentFate::Steered),
        _ => Some(FragmentFate::Passed),
    }
}

#[inline(always)]
pub fn settings() -> Settings {
    SETTINGS.get(0).copied().unwrap_or_default()
}

#[inline(always)]
pub fn count(reason: Reason, bytes: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        add(counter, bytes);
    }
}

#[inline(always)]
fn add(counter: *mut Counter, bytes: u32) {
    // SAFETY: an element of a per-CPU array, which only this run of the program writes.
    unsafe {
        (*counter).packets += 1;
        (*counter).bytes += u64::from(bytes);
    }
}

#[inline(never)]
pub fn locality(addresses: &Addresses) -> Locality {
    let local = match addresses {
        Addresses::V4 { destination, .. } => LOCALS_V4.get(Key::new(32, *destination)),
        Addresses::V6 { destination, .. } => LOCALS_V6.get(Key::new(128, *destination)),
    };
    match local {
        None => Locality::Foreign,
        Some(local) if local.kind == Local::ADDRESS => Locality::Address,
        Some(_) => Locality::Subnet,
    }
}

/// Is the destination bypassed? Counts a packet of `bytes` for the prefix.
#[inline(never)]
pub fn bypassed(addresses: &Addresses, bytes: u32) -> bool {
    match addresses {
        Addresses::V4 { destination, .. } => bypassed_in(&BYPASS_V4, *destination, bytes),
        Addresses::V6 { destination, .. } => bypassed_in(&BYPASS_V6, *destination, bytes),
    }
}

#[inline(always)]
fn bypassed_in<K>(trie: &LpmTrie<K, Bypass>, destination: K, bytes: u32) -> bool {
    let mut key = Key::new(8 * size_of::<K>() as u32, destination);
    for _ in 0..MAX_EXPIRED {
        let Some(entry) = trie.get(&key) else {
            return false;
        };
        // SAFETY: the helper takes no arguments.
        if entry.expires == 0 || entry.expires > unsafe { bpf_ktime_get_boot_ns() } {
            hit(core::ptr::from_ref(entry).cast_mut(), bytes);
            return true;
        }
        // The entry has expired and nobody has removed it: a shorter prefix may still hold.
        let Some(shorter) = entry.prefix_len.checked_sub(1) else {
            return false;
        };
        key.prefix_len = shorter;
    }
    false
}

/// Counts a packet for a prefix. CPUs share the entry, so the additions are atomic.
#[inline(always)]
fn hit(entry: *mut Bypass, bytes: u32) {
    // SAFETY: the entry is map memory, valid for the run of the program.
    unsafe {
        atomic_add(&raw mut (*entry).packets, 1);
        atomic_add(&raw mut (*entry).bytes, u64::from(bytes));
    }
}

/// Adds without losing what another CPU adds at the same time. `core` has no atomic addition for
/// the BPF targets, though the machine has had the instruction since its first version.
///
/// # Safety
/// `to` points to an aligned number in map memory.
#[inline(always)]
pub unsafe fn atomic_add(to: *mut u64, number: u64) {
    // SAFETY: the instruction writes these eight bytes and nothing else.
    unsafe {
        asm!("lock *(u64 *)({to} + 0) += {number}", to = in(reg) to, number = in(reg) number);
    }
}

/// May this source use the proxy? `link` is the index of a link, with [`SOURCE_OWN`] for what the gateway
/// itself sends there.
#[inline(never)]
pub fn admitted(addresses: &Addresses, link: u32) -> bool {
    let link = link.to_be();
    match addresses {
        Addresses::V4 { source, .. } => SOURCES_V4
            .get(Key::new(
                8 * size_of::<SourceV4>() as u32,
                SourceV4 {
                    link,
                    address: *source,
                },
            ))
            .is_some(),
        Addresses::V6 { source, .. } => SOURCES_V6
            .get(Key::new(
                8 * size_of::<SourceV6>() as u32,
                SourceV6 {
                    link,
                    address: *source,
                },
            ))
            .is_some(),
    }
}

#[inline(always)]
pub fn tcp_ports(packet: &Packet) -> Option<&Ports> {
    match &packet.transport {
        Transport::Tcp { ports, .. } => Some(ports),
        _ => None,
    }
}

#[inline(always)]
fn fragment_key(packet: &Packet) -> Option<FragmentKey> {
    let id = packet.fragment.id()?;
    let (source, destination) = packet.addresses.mapped();
    Some(FragmentKey {
        source,
        destination,
        id,
    })
}
