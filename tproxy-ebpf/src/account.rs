//! Counting what devices send and get past the proxy.

use aya_ebpf::maps::LruHashMap;
use tproxy_common::abi::{Counter, Traffic};
use tproxy_common::packet::{Addresses, network};
use tproxy_common::trace::Message;
use tproxy_common::verdict::Locality;

use crate::facts::{admitted, atomic_add, locality};
use crate::maps::{DEVICES, NETWORKS};
use crate::trace;

/// Counts a packet that came from a device by a link and goes on. Only who may use the proxy is a device: whoever else
/// sends by the gateway takes no room.
#[inline(never)]
pub fn up(addresses: &Addresses, link: u32, bytes: u32) {
    let (device, remote) = addresses.mapped();
    let is_known = DEVICES.get_ptr_mut(device).is_some();
    if !is_known && !admitted(addresses, link) {
        return;
    }
    if let Some(traffic) = entry(&DEVICES, device) {
        // SAFETY: map memory, valid for the run of the program.
        add(unsafe { &raw mut (*traffic).up }, bytes);
    }
    if let Some(traffic) = entry(&NETWORKS, network(remote)) {
        // SAFETY: as above.
        add(unsafe { &raw mut (*traffic).up }, bytes);
    }
}

/// Counts a forwarded packet to a device. It has sent something before, so an address that has not is none. What
/// comes from a subnet of the gateway did not go past the proxy.
#[inline(never)]
pub fn down(addresses: &Addresses, bytes: u32) {
    let answer = addresses.turned();
    let (device, remote) = answer.mapped();
    if let Some(traffic) = DEVICES.get_ptr_mut(device)
        && locality(&answer) == Locality::Foreign
    {
        // SAFETY: as above.
        add(unsafe { &raw mut (*traffic).down }, bytes);
        if let Some(traffic) = entry(&NETWORKS, network(remote)) {
            // SAFETY: as above.
            add(unsafe { &raw mut (*traffic).down }, bytes);
        }
    }
}

/// The entry of a key, made where there is none.
#[inline(always)]
fn entry(map: &LruHashMap<[u32; 4], Traffic>, key: [u32; 4]) -> Option<*mut Traffic> {
    map.get_ptr_mut(key).or_else(|| {
        if let Err(error) = map.insert(key, NOTHING, 0) {
            trace::message(Message::NotCounted, error);
        }
        map.get_ptr_mut(key)
    })
}

#[inline(always)]
fn add(counter: *mut Counter, bytes: u32) {
    // SAFETY: `counter` is in map memory.
    unsafe {
        atomic_add(&raw mut (*counter).packets, 1);
        atomic_add(&raw mut (*counter).bytes, u64::from(bytes));
    }
}

const NOTHING: Traffic = Traffic {
    up: Counter {
        packets: 0,
        bytes: 0,
    },
    down: Counter {
        packets: 0,
        bytes: 0,
    },
};
