//! The express lane: UDP flows that the proxy has decided about go on without it.
//!
//! Two entries of a flow say what becomes of its datagrams: those to the peer get the proxy's address and port as their source,
//! and the answers the device as their destination. What has no entry, or is more than a plain datagram, goes to the proxy.

use core::ptr;

use aya_ebpf::bindings::TC_ACT_REDIRECT;
use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_redirect_neigh};
use tproxy_common::abi::{
    EXPRESS_ASTRAY, EXPRESS_LIFE, EXPRESS_PATIENCE, Express, Listener, MARK_EXPRESS,
    MARK_EXPRESS_ANSWER, Reason, Settings,
};
use tproxy_common::packet::{Addresses, Packet, Ports, Transport};

use crate::act::Done;
use crate::facts::{Flow, atomic_add, count as count_packet, flow, settings};
use crate::icmp;
use crate::maps::{EXPRESS_REACHED, EXPRESS_V4, EXPRESS_V6};
use crate::skb::{End, Framing, Headers, Skb};
use crate::socket::listener_is_up;

/// What becomes of a datagram. It is for the proxy, or for whoever is there.
const PROXY: u32 = 0;
/// The kernel forwards it.
const FORWARD: u32 = 1;
/// It goes to its link.
const REDIRECT: u32 = 2;
/// It goes on to a socket or a link of the gateway itself.
const OWN: u32 = 3;
/// It was spoilt half-way.
const SPOILT: u32 = 4;

/// A datagram of a device that is for the proxy. None: it still is, with its number in its mark if it has one.
#[inline(always)]
pub fn send(skb: Skb, framing: Framing, packet: &Packet) -> Option<Done> {
    done(up(skb, packet, Headers::begin(framing)), Reason::Express)
}

/// The same for a datagram of the gateway itself.
#[inline(always)]
pub fn send_own(skb: Skb, framing: Framing, packet: &Packet) -> Option<Done> {
    done(
        up_own(skb, packet, Headers::begin(framing)),
        Reason::Express,
    )
}

/// A datagram that came from elsewhere. None: it is for whoever is there, perhaps with its number in its mark.
#[inline(always)]
pub fn receive(skb: Skb, framing: Framing) -> Option<Done> {
    done(down(skb, framing), Reason::ExpressAnswer)
}

/// An ICMP error about a datagram on the lane, made one for its device. None: it is about something else.
#[inline(always)]
pub fn receive_error(skb: Skb, framing: Framing) -> Option<Done> {
    done(error(skb, Headers::begin(framing)), Reason::ExpressError)
}

/// A datagram that the kernel forwards on the lane and that leaves by a link. Returns whether it may.
#[inline(always)]
pub fn leave(skb: Skb, framing: Framing) -> bool {
    let Some((addresses, ports, headers)) = skb.plain_datagram(framing) else {
        return false;
    };
    let Some(entry) = find(&addresses, &ports) else {
        return false;
    };
    // SAFETY: map memory, valid for the run of the program.
    unsafe {
        if (*entry).link != skb.interface() {
            // Routes have changed: no more of them by the lane. That was long ago, then.
            (*entry).used = 1;
            return false;
        }
        atomic_add(&raw mut (*entry).left, u64::from(skb.segments()));
        rewrite(entry, skb, headers, End::Source, &addresses, &ports, OWN) == OWN
    }
}

#[inline(always)]
fn done(way: u32, reason: Reason) -> Option<Done> {
    match way {
        FORWARD | OWN => Some(Done::goes_on(reason)),
        REDIRECT => Some(Done {
            action: TC_ACT_REDIRECT,
            reason,
        }),
        SPOILT => Some(Done::ends(Reason::ExpressAstray)),
        _ => None,
    }
}

/// What becomes of a datagram of a device.
#[inline(never)]
fn up(skb: Skb, packet: &Packet, begin: usize) -> u32 {
    let Some((ports, headers, entry)) = known(packet, begin) else {
        return PROXY;
    };
    let redirect = settings().has(Settings::EXPRESS_REDIRECT);
    // SAFETY: map memory, valid for the run of the program.
    unsafe {
        if !redirect && (*entry).packets > (*entry).left + EXPRESS_ASTRAY {
            // A firewall ends them, or they leave elsewhere.
            (*entry).used = 0;
        }
        if !takes(entry, skb, headers, 0) {
            return PROXY;
        }
        count(entry, skb, headers);
        if !redirect || !skb.age(headers) {
            // It is translated where it leaves: until then it is the device's, for whoever looks at it.
            skb.set_own_mark(MARK_EXPRESS);
            return FORWARD;
        }
        let way = rewrite(
            entry,
            skb,
            headers,
            End::Source,
            &packet.addresses,
            ports,
            REDIRECT,
        );
        go_out(way, entry)
    }
}

/// What becomes of a datagram of the gateway itself, at the link that it leaves by.
#[inline(never)]
fn up_own(skb: Skb, packet: &Packet, begin: usize) -> u32 {
    let Some((ports, headers, entry)) = known(packet, begin) else {
        return PROXY;
    };
    // SAFETY: as in `up`.
    unsafe {
        if (*entry).link != skb.interface() {
            return PROXY;
        }
        if !takes(entry, skb, headers, 0) {
            return PROXY;
        }
        count(entry, skb, headers);
        rewrite(
            entry,
            skb,
            headers,
            End::Source,
            &packet.addresses,
            ports,
            OWN,
        )
    }
}

/// The entry of a datagram, with its ports and where its headers are. None: the proxy has to look at it.
#[inline(always)]
fn known(packet: &Packet, begin: usize) -> Option<(&Ports, Headers, *mut Express)> {
    let Transport::Udp { ports } = &packet.transport else {
        return None;
    };
    let headers = Headers::of(packet, begin)?;
    Some((ports, headers, find_live(&packet.addresses, ports)?))
}

#[inline(always)]
fn down(skb: Skb, framing: Framing) -> u32 {
    let Some((addresses, ports, headers)) = skb.plain_datagram(framing) else {
        return PROXY;
    };
    let Some(entry) = find_live(&addresses, &ports) else {
        return PROXY;
    };
    // SAFETY: as in `up`.
    unsafe {
        let own = (*entry).flags & Express::OWN != 0;
        if !takes(entry, skb, headers, MARK_EXPRESS_ANSWER) {
            return PROXY;
        }
        let way = way_back(skb, headers, own);
        count(entry, skb, headers);
        go_out(
            rewrite(
                entry,
                skb,
                headers,
                End::Destination,
                &addresses,
                &ports,
                way,
            ),
            entry,
        )
    }
}

#[inline(never)]
fn error(skb: Skb, begin: usize) -> u32 {
    let Some(v4) = skb.is_v4() else {
        return PROXY;
    };
    let headers = Headers::at(v4, begin);
    let Some(quote) = icmp::quote(skb, v4, headers.ip) else {
        return PROXY;
    };
    let Some(entry) = find_live(&quote.answer, &quote.ports) else {
        return PROXY;
    };
    // SAFETY: as in `up`.
    unsafe {
        let way = way_back(skb, headers, (*entry).flags & Express::OWN != 0);
        if !icmp::translate(skb, headers, &quote, entry) {
            return SPOILT;
        }
        go_out(way, entry)
    }
}

/// How an answer gets to the device, or to the gateway's own socket.
#[inline(always)]
fn way_back(skb: Skb, headers: Headers, own: bool) -> u32 {
    if own {
        count_packet(Reason::ExpressDelivered, skb.len());
        return OWN;
    }
    skb.set_own_mark(MARK_EXPRESS_ANSWER);
    if settings().has(Settings::EXPRESS_REDIRECT) && skb.age(headers) {
        REDIRECT
    } else {
        FORWARD
    }
}

/// Does the entry take a datagram by the lane? If it does not yet, the datagram gets its number, and `mark`.
///
/// # Safety
/// `entry` is map memory.
#[inline(always)]
unsafe fn takes(entry: *mut Express, skb: Skb, headers: Headers, mark: u32) -> bool {
    // SAFETY: the caller's promise; the helper takes no arguments.
    unsafe {
        let now = bpf_ktime_get_boot_ns();
        let idle = now.wrapping_sub((*entry).used);
        if (*entry).open == 0 {
            let numbered = (*entry).numbered;
            let reached = EXPRESS_REACHED.get((*entry).id).copied().unwrap_or(0);
            // Whatever the proxy had before the entry was made is in its queue before the first number.
            if (numbered == 0 || reached != Express::number(numbered)) && idle < EXPRESS_PATIENCE {
                let numbered = numbered.wrapping_add(1);
                (*entry).numbered = numbered;
                skb.set_numbered_mark(mark, Express::number(numbered));
                return false;
            }
            (*entry).open = 1;
        }
        if idle > EXPRESS_LIFE || skb.longest(headers) > (*entry).mtu {
            return false;
        }
        (*entry).used = now;
        true
    }
}

/// # Safety
/// `entry` is map memory.
#[inline(always)]
unsafe fn count(entry: *mut Express, skb: Skb, headers: Headers) {
    // SAFETY: the caller's promise.
    unsafe {
        atomic_add(&raw mut (*entry).packets, u64::from(skb.segments()));
        atomic_add(&raw mut (*entry).bytes, u64::from(skb.payload(headers)));
    }
}

/// # Safety
/// `entry` is map memory.
#[inline(always)]
unsafe fn rewrite(
    entry: *mut Express,
    skb: Skb,
    headers: Headers,
    end: End,
    addresses: &Addresses,
    ports: &Ports,
    way: u32,
) -> u32 {
    // SAFETY: the caller's promise.
    let (address, port) = unsafe { ((*entry).address, (*entry).port) };
    if skb.set_end(headers, end, addresses, ports, &address, port) {
        way
    } else {
        SPOILT
    }
}

/// # Safety
/// `entry` is map memory.
#[inline(always)]
unsafe fn go_out(way: u32, entry: *mut Express) -> u32 {
    if way == REDIRECT {
        // SAFETY: the caller's promise; without parameters the helper asks the routing table itself, as of the link alone.
        unsafe { bpf_redirect_neigh((*entry).link, ptr::null_mut(), 0, 0) };
    }
    way
}

/// The entry of a datagram, as long as a proxy looks after it.
#[inline(always)]
fn find_live(addresses: &Addresses, ports: &Ports) -> Option<*mut Express> {
    let entry = find(addresses, ports)?;
    let listener = match addresses {
        Addresses::V4 { .. } => Listener::Udp4,
        Addresses::V6 { .. } => Listener::Udp6,
    };
    listener_is_up(listener, addresses).then_some(entry)
}

#[inline(always)]
fn find(addresses: &Addresses, ports: &Ports) -> Option<*mut Express> {
    match flow(addresses, ports) {
        Flow::V4(key) => EXPRESS_V4.get_ptr_mut(key),
        Flow::V6(key) => EXPRESS_V6.get_ptr_mut(key),
    }
}
