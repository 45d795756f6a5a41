//! ICMP errors about datagrams on the express lane: made such as the device would have got them.
//!
//! Such an error is for the gateway, since the datagram left with its address, and quotes the beginning of that datagram. Its own
//! destination and the source that it quotes become the device's (RFC 5508, 4.2).

use aya_ebpf::bindings::BPF_F_PSEUDO_HDR;
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_skb_store_bytes,
};
use tproxy_common::abi::Express;
use tproxy_common::packet::{Addresses, PROTOCOL_UDP, PacketBytes as _, Ports, Words};

use crate::skb::{
    Headers, IPV4_CHECKSUM, IPV4_DESTINATION, IPV4_PLAIN, IPV4_SOURCE, IPV6_DESTINATION,
    IPV6_SOURCE, Skb,
};

/// Bytes of an ICMP header (RFC 792, RFC 4443), and where in it the checksum stands.
const ICMP_HEADER: usize = 8;
const ICMP_CHECKSUM: usize = 2;
/// IP protocol number of ICMP.
pub const ICMP: u8 = 1;
/// IP protocol number of ICMPv6.
pub const ICMPV6: u8 = 58;

/// An error, and the datagram that it is about.
pub struct Quote {
    /// The ends of an answer to the quoted datagram.
    pub answer: Addresses,
    /// Its ports.
    pub ports: Ports,
}

/// What an ICMP error quotes. None: it is none, or not about a plain datagram that its receiver sent.
#[inline(always)]
pub fn quote(skb: Skb, v4: bool, ip: usize) -> Option<Quote> {
    if v4 {
        quote_v4(skb, ip)
    } else {
        quote_v6(skb, ip)
    }
}

#[inline(always)]
fn quote_v4(skb: Skb, ip: usize) -> Option<Quote> {
    let outer = skb.read::<20>(ip)?.0;
    let kind = skb.read::<1>(ip + 20)?.0[0];
    // Destination unreachable, time exceeded, parameter problem.
    if outer[0] != IPV4_PLAIN || outer[9] != ICMP || !matches!(kind, 3 | 11 | 12) {
        return None;
    }
    let inner = skb.read::<20>(ip + 20 + ICMP_HEADER)?.0;
    let Words([ports]) = skb.read_words::<1>(ip + 40 + ICMP_HEADER)?;
    if inner[0] != IPV4_PLAIN || inner[9] != PROTOCOL_UDP {
        return None;
    }
    let word = |bytes: &[u8; 20], at: usize| {
        u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let own = word(&inner, IPV4_SOURCE);
    if own != word(&outer, IPV4_DESTINATION) {
        return None;
    }
    Some(Quote {
        answer: Addresses::v4(word(&inner, IPV4_DESTINATION), own),
        ports: turned(ports),
    })
}

#[inline(always)]
fn quote_v6(skb: Skb, ip: usize) -> Option<Quote> {
    let next = skb.read::<1>(ip + 6)?.0[0];
    let kind = skb.read::<1>(ip + 40)?.0[0];
    // Destination unreachable, packet too big, time exceeded, parameter problem.
    if next != ICMPV6 || !matches!(kind, 1..=4) {
        return None;
    }
    let inner = ip + 40 + ICMP_HEADER;
    let carried = skb.read::<1>(inner + 6)?.0[0];
    let Words(receiver) = skb.read_words::<4>(ip + IPV6_DESTINATION)?;
    let Words(own) = skb.read_words::<4>(inner + IPV6_SOURCE)?;
    let Words(peer) = skb.read_words::<4>(inner + IPV6_DESTINATION)?;
    let Words([ports]) = skb.read_words::<1>(inner + 40)?;
    if carried != PROTOCOL_UDP || own != receiver {
        return None;
    }
    Some(Quote {
        answer: Addresses::V6 {
            source: peer,
            destination: own,
        },
        ports: turned(ports),
    })
}

/// The ports of an answer to a datagram with these.
#[inline(always)]
fn turned(ports: u32) -> Ports {
    let [a, b, c, d] = ports.to_ne_bytes();
    Ports {
        source: u16::from_ne_bytes([c, d]),
        destination: u16::from_ne_bytes([a, b]),
    }
}

/// Makes the error one for the device of this entry. Returns whether it was done. The quoted checksum of UDP stays: nobody
/// has the whole datagram to check it by.
///
/// # Safety
/// `entry` is map memory.
#[inline(always)]
pub unsafe fn translate(skb: Skb, headers: Headers, quote: &Quote, entry: *const Express) -> bool {
    // SAFETY: the caller's promise.
    let (address, port) = unsafe { ((*entry).address, (*entry).port) };
    let ip = headers.ip;
    let icmp = headers.udp;
    let inner = icmp + ICMP_HEADER;
    let checksum = (icmp + ICMP_CHECKSUM) as u32;
    let context = skb.as_ptr().cast();
    // SAFETY: the helpers check the offsets against the packet themselves, and read what they are given.
    unsafe {
        let (changed, ports) = match &quote.answer {
            Addresses::V4 { destination, .. } => {
                let (before, after) = (u64::from(*destination), u64::from(address[0]));
                let new = (&raw const address[0]).cast();
                // A checksum of an IP header takes up what its addresses change, so that of ICMP sees no difference.
                let changed =
                    bpf_l3_csum_replace(context, (ip + IPV4_CHECKSUM) as u32, before, after, 4)
                        == 0
                        && bpf_skb_store_bytes(context, (ip + IPV4_DESTINATION) as u32, new, 4, 0)
                            == 0
                        && bpf_l3_csum_replace(
                            context,
                            (inner + IPV4_CHECKSUM) as u32,
                            before,
                            after,
                            4,
                        ) == 0
                        && bpf_skb_store_bytes(context, (inner + IPV4_SOURCE) as u32, new, 4, 0)
                            == 0;
                (changed, inner + 20)
            }
            Addresses::V6 { destination, .. } => {
                let difference = bpf_csum_diff(
                    destination.as_ptr().cast_mut(),
                    16,
                    address.as_ptr().cast_mut(),
                    16,
                    0,
                );
                let new = address.as_ptr().cast();
                let pseudo = u64::from(BPF_F_PSEUDO_HDR);
                let changed = difference >= 0
                    && bpf_l4_csum_replace(context, checksum, 0, difference as u64, pseudo) == 0
                    && bpf_skb_store_bytes(context, (ip + IPV6_DESTINATION) as u32, new, 16, 0)
                        == 0
                    && bpf_l4_csum_replace(context, checksum, 0, difference as u64, 0) == 0
                    && bpf_skb_store_bytes(context, (inner + IPV6_SOURCE) as u32, new, 16, 0) == 0;
                (changed, inner + 40)
            }
        };
        let before = u64::from(quote.ports.destination);
        changed
            && bpf_l4_csum_replace(context, checksum, before, u64::from(port), 2) == 0
            && bpf_skb_store_bytes(context, ports as u32, (&raw const port).cast(), 2, 0) == 0
    }
}
