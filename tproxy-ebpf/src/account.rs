//! Counting what devices send and get past the proxy.

use tproxy_common::abi::{Counter, Traffic};
use tproxy_common::packet::Addresses;
use tproxy_common::trace::Message;
use tproxy_common::verdict::Locality;

use crate::facts::{admitted, atomic_add, locality};
use crate::maps::DEVICES;
use crate::trace;

/// Counts a packet that came from a device by a link and goes on. Only who may use the proxy is a device: whoever else
/// sends by the gateway takes no room.
#[inline(never)]
pub fn up(addresses: &Addresses, link: u32, bytes: u32) {
    let (device, _) = addresses.mapped();
    let mut traffic = DEVICES.get_ptr_mut(device);
    if traffic.is_none() && admitted(addresses, link) {
        if let Err(error) = DEVICES.insert(device, NOTHING, 0) {
            trace::message(Message::DeviceNotCounted, error);
        }
        traffic = DEVICES.get_ptr_mut(device);
    }
    if let Some(traffic) = traffic {
        // SAFETY: map memory, valid for the run of the program.
        add(unsafe { &raw mut (*traffic).up }, bytes);
    }
}

/// Counts a forwarded packet to a device. It has sent something before, so an address that has not is none. What
/// comes from a subnet of the gateway did not go past the proxy.
#[inline(never)]
pub fn down(addresses: &Addresses, bytes: u32) {
    let answer = addresses.turned();
    let (device, _) = answer.mapped();
    if let Some(traffic) = DEVICES.get_ptr_mut(device)
        && locality(&answer) == Locality::Foreign
    {
        // SAFETY: as above.
        add(unsafe { &raw mut (*traffic).down }, bytes);
    }
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
