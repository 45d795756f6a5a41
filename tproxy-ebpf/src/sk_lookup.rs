//! Socket lookup in the gateway's network namespace: the second chance of packets that were steered
//! without a socket, because they had to be reassembled first, or because their connection was in
//! TIME_WAIT when a new SYN came.

use aya_ebpf::bindings::bpf_sk_lookup;
use aya_ebpf::programs::SkLookupContext;
use tproxy_common::abi::{Link, Listener, Reason};
use tproxy_common::packet::{Addresses, PROTOCOL_UDP};
use tproxy_common::verdict::{Locality, built_in};

use crate::facts::{admitted, count, locality};
use crate::maps::LINKS;
use crate::socket::{Assigned, assign_listener};

/// `SK_PASS`: go on, with the socket that was assigned if one was.
const PASS: u32 = 1;
const AF_INET: u32 = 2;

#[inline(always)]
pub fn run(ctx: &SkLookupContext) -> u32 {
    let lookup = ctx.lookup;
    // SAFETY: the kernel gives a valid context for the run of the program.
    let (family, protocol, interface) = unsafe {
        (
            (*lookup).family,
            (*lookup).protocol,
            (*lookup).ingress_ifindex,
        )
    };
    // SAFETY: the value is copied at once.
    match unsafe { LINKS.get(interface) } {
        Some(link) if link.flags & Link::LAN != 0 => {}
        _ => return PASS,
    }
    let addresses = addresses(lookup, family == AF_INET);
    // A destination that is not the gateway's got here by the mark only, so it was steered.
    if built_in(&addresses).is_some()
        || locality(&addresses) != Locality::Foreign
        || !admitted(&addresses, interface)
    {
        return PASS;
    }
    let listener = match (family == AF_INET, protocol == u32::from(PROTOCOL_UDP)) {
        (true, true) => Listener::Udp4,
        (false, true) => Listener::Udp6,
        (true, false) => Listener::Tcp4,
        (false, false) => Listener::Tcp6,
    };
    if assign_listener(lookup.cast(), listener) == Assigned::Done {
        count(Reason::LookupSteered, 0);
    }
    PASS
}

#[inline(always)]
fn addresses(lookup: *mut bpf_sk_lookup, v4: bool) -> Addresses {
    // SAFETY: as in `run`. Addresses are in network order in the context.
    unsafe {
        if v4 {
            Addresses::V4 {
                source: (*lookup).remote_ip4,
                destination: (*lookup).local_ip4,
            }
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
