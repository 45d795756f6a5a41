//! Socket lookup in the gateway's network namespace: the second chance of packets that were steered
//! without a socket, because they had to be reassembled first, or because their connection was in
//! TIME_WAIT when a new SYN came.

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use tproxy_common::abi::{DNS_PORT, Listener, Reason, Settings};
use tproxy_common::packet::{Addresses, Fragment, PROTOCOL_UDP, Packet, Ports, Transport};
use tproxy_common::verdict::{Locality, built_in};

use crate::facts::{admitted, count, is_steered, locality, remember_caller, settings};
use crate::skb::LOOPBACK;
use crate::socket::{Assigned, assign_listener};
use crate::trace;

/// `SK_PASS`: go on, with the socket that was assigned if one was.
const PASS: u32 = 1;
const AF_INET: u32 = 2;

#[inline(always)]
pub fn run(ctx: &SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: the kernel gives a valid context for the run of the program.
    let (v4, protocol, interface) = unsafe {
        (
            (*lookup).family == AF_INET,
            (*lookup).protocol,
            (*lookup).ingress_ifindex,
        )
    };
    let addresses = addresses(lookup, v4);
    if protocol == u32::from(PROTOCOL_UDP) {
        if built_in(&addresses).is_none() {
            datagram(ctx, &addresses, v4, interface);
        }
    // Also run whenever `lan_ingress` looks for the socket of a direct connection: one question is
    // enough then. Not counted, since the two uses look the same from here.
    } else if is_steered(&addresses, &ports(lookup)) {
        let listener = if v4 { Listener::Tcp4 } else { Listener::Tcp6 };
        assign(ctx, listener, &addresses);
    }
    PASS
}

#[inline(always)]
fn datagram(ctx: &SkLookupContext, addresses: &Addresses, v4: bool, interface: u32) {
    let receiver = if v4 { Listener::Udp4 } else { Listener::Udp6 };
    match locality(addresses) {
        // A destination that is not the gateway's got here by the mark only, so it was steered.
        // The link may be the bridge that the LAN link is a port of, whose sources are its own.
        Locality::Foreign => {
            if admitted(addresses, interface) && assign(ctx, receiver, addresses) {
                steered(ctx, addresses, interface);
            }
        }
        // A datagram for a service of the gateway. What comes by `lo` is of the gateway itself, and
        // what its neighbours are answered is not steered anyway.
        Locality::Address => {
            let ports = ports(ctx.lookup);
            let settings = settings();
            // Reassembled, or in by a port of a bridge. Not by `lo`: the proxy itself may ask there.
            if settings.has(Settings::HIJACK_DNS)
                && interface != LOOPBACK
                && ports.destination == DNS_PORT.to_be()
                && admitted(addresses, interface)
            {
                if assign(ctx, receiver, addresses) {
                    steered(ctx, addresses, interface);
                }
            } else if interface != LOOPBACK
                && settings.is_asked_for(ports.destination)
                && locality(&addresses.turned()) == Locality::Foreign
            {
                remember_caller(addresses, &ports);
            }
        }
        Locality::Subnet => {}
    }
}

/// Counts a datagram that the proxy gets, and tells of it.
#[inline(always)]
fn steered(ctx: &SkLookupContext, addresses: &Addresses, interface: u32) {
    count(Reason::LookupSteered, 0);
    if trace::is_on() {
        let packet = Packet {
            addresses: *addresses,
            transport: Transport::Udp {
                ports: ports(ctx.lookup),
            },
            fragment: Fragment::NONE,
            transport_offset: 0,
        };
        trace::lookup(&packet, interface, Reason::LookupSteered);
    }
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, listener: Listener, addresses: &Addresses) -> bool {
    assign_listener(ctx.lookup.cast(), listener, addresses) == Assigned::Done
}

#[inline(always)]
fn ports(lookup: *mut bpf_sk_lookup) -> Ports {
    // SAFETY: as in `run`. The remote port is in network order in the context, the local one is not.
    unsafe {
        Ports {
            source: (*lookup).remote_port,
            destination: ((*lookup).local_port as u16).to_be(),
        }
    }
}

#[inline(always)]
fn addresses(lookup: *mut bpf_sk_lookup, v4: bool) -> Addresses {
    // SAFETY: as in `run`. Addresses are in network order in the context.
    unsafe {
        if v4 {
            Addresses::v4((*lookup).remote_ip4, (*lookup).local_ip4)
        } else {
            Addresses::V6 {
                source: words(&raw const (*lookup).remote_ip6),
                destination: words(&raw const (*lookup).local_ip6),
            }
        }
    }
}

/// Reads an address word by word: the verifier allows only accesses at constant offsets from the
/// context, and a compiler left to itself makes a loop or a wide copy of it.
///
/// # Safety
/// `words` points into a valid context.
#[inline(always)]
unsafe fn words(words: *const [u32; 4]) -> [u32; 4] {
    let first = words.cast::<u32>();
    // SAFETY: the caller's promise covers all four.
    unsafe {
        [
            first.read_volatile(),
            first.add(1).read_volatile(),
            first.add(2).read_volatile(),
            first.add(3).read_volatile(),
        ]
    }
}
