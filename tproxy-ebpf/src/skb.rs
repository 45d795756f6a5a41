//! Packet memory: the file that touches it, and `icmp` beside it for what errors quote.

use core::arch::asm;
use core::ffi::c_void;
use core::mem::{MaybeUninit, offset_of, size_of};

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_l3_csum_replace, bpf_l4_csum_replace, bpf_sk_fullsock, bpf_skb_change_head,
    bpf_skb_change_type, bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use tproxy_common::abi::{MARK_MASK, NUMBER_SHIFT};
use tproxy_common::packet::{
    Addresses, Bytes, ETHERNET_HEADER, ETHERTYPE_IPV4, ETHERTYPE_IPV6, PROTOCOL_UDP, Packet,
    PacketBytes, Ports, Unparsed, Words, parse,
};

use crate::icmp::ICMPV6;

/// How long a UDP header is, and where in it length and checksum stand (RFC 768).
const UDP_HEADER: usize = 8;
const UDP_LENGTH: usize = 4;
const UDP_CHECKSUM: usize = 6;
/// How long an IPv4 header without options is, its first byte, and where in it the parts stand (RFC 791, 3.1).
const IPV4_HEADER: usize = 20;
pub const IPV4_PLAIN: u8 = 0x45;
const IPV4_TIME_TO_LIVE: usize = 8;
const IPV4_PROTOCOL: usize = 9;
pub const IPV4_CHECKSUM: usize = 10;
pub const IPV4_SOURCE: usize = 12;
pub const IPV4_DESTINATION: usize = 16;
/// Where in an IPv6 header source and destination stand.
pub const IPV6_SOURCE: usize = 8;
pub const IPV6_DESTINATION: usize = 24;
/// Where in an IPv6 header the next header is named, and how long it is (RFC 8200, 3).
const NEXT_HEADER: usize = 6;
const IPV6_HEADER: usize = 40;
/// Where in it the hop limit stands.
const HOP_LIMIT: usize = 7;
const ICMPV6_REDIRECT: u8 = 137;
/// Where in an Ethernet header the ethertype stands.
const ETHERTYPE: usize = 12;
/// `PACKET_HOST` of `linux/if_packet.h`: the packet is addressed to this machine.
const PACKET_HOST: u32 = 0;
const PACKET_BROADCAST: u32 = 1;
const PACKET_MULTICAST: u32 = 2;

/// The index of `lo` in every network namespace (`LOOPBACK_IFINDEX` of the kernel's net/flow.h).
pub const LOOPBACK: u32 = 1;

/// The socket that sends a packet.
pub struct Sender {
    /// Its `SO_MARK`.
    pub mark: u32,
    /// The index of the link that it is bound to, or 0.
    pub bound_to: u32,
}

/// What stands before the IP header on a link.
#[derive(Clone, Copy)]
pub enum Framing {
    /// An Ethernet header.
    Ethernet,
    /// Nothing.
    None,
}

/// Where the IP header begins.
const fn header(framing: Framing) -> usize {
    match framing {
        Framing::Ethernet => ETHERNET_HEADER,
        Framing::None => 0,
    }
}

/// A packet at a tc hook.
#[derive(Clone, Copy)]
pub struct Skb(*mut __sk_buff);

impl Skb {
    pub const fn new(ctx: &TcContext) -> Self {
        Self(ctx.skb.skb)
    }

    pub const fn as_ptr(&self) -> *mut __sk_buff {
        self.0
    }

    #[inline(always)]
    pub fn len(&self) -> u32 {
        // SAFETY: the kernel gives a valid context for the run of the program.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.0).mark }
    }

    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        // The compiler is free to share the address of the field among several places that write to it, and the verifier
        // wants it as an offset from the context.
        // SAFETY: as in `len`; the field may be written by tc programs.
        unsafe {
            asm!("*(u32 *)({skb} + {offset}) = {mark}", skb = in(reg) self.0, mark = in(reg) u64::from(mark),
                offset = const offset_of!(__sk_buff, mark));
        }
    }

    /// Sets our bits of the mark and leaves those of others.
    #[inline(always)]
    pub fn set_own_mark(&self, mark: u32) {
        self.set_mark(self.mark() & !MARK_MASK | mark);
    }

    /// Sets our bits of the mark, and puts a number above.
    #[inline(always)]
    pub fn set_numbered_mark(&self, mark: u32, number: u32) {
        let below = self.mark() & ((1 << NUMBER_SHIFT) - 1) & !MARK_MASK;
        self.set_mark(number << NUMBER_SHIFT | below | mark);
    }

    #[inline(always)]
    pub fn interface(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.0).ifindex }
    }

    /// The index of the link that it came in by, or 0 if this machine made it.
    #[inline(always)]
    pub fn came_in_by(&self) -> u32 {
        // SAFETY: as in `len`.
        unsafe { (*self.0).ingress_ifindex }
    }

    /// Is it addressed to this machine, on the link layer?
    #[inline(always)]
    pub fn is_for_host(&self) -> bool {
        // SAFETY: as in `len`.
        unsafe { (*self.0).pkt_type == PACKET_HOST }
    }

    /// Is the frame addressed to many machines?
    #[inline(always)]
    pub fn is_for_many(&self) -> bool {
        // SAFETY: as in `len`.
        let kind = unsafe { (*self.0).pkt_type };
        kind == PACKET_BROADCAST || kind == PACKET_MULTICAST
    }

    /// The gateway's own socket that sends it, if there is one: what is forwarded has none. One that only
    /// ends a connection (in TIME_WAIT, say) is told without mark or link.
    #[inline(always)]
    pub fn sender(&self) -> Option<Sender> {
        // SAFETY: as in `len`. The kernel tells null from a socket, and the socket lives as long as
        // the packet.
        unsafe {
            let any = (*self.0).__bindgen_anon_2.sk;
            if any.is_null() {
                return None;
            }
            let full = bpf_sk_fullsock(any);
            if full.is_null() {
                return Some(Sender {
                    mark: 0,
                    bound_to: 0,
                });
            }
            Some(Sender {
                mark: (*full).mark,
                bound_to: (*full).bound_dev_if,
            })
        }
    }

    /// Makes it a packet for this machine, whatever its link header says.
    #[inline(always)]
    pub fn set_for_host(&self) {
        // SAFETY: the helper checks its arguments itself; it fails for no packet at a tc hook.
        unsafe { bpf_skb_change_type(self.0, PACKET_HOST) };
    }

    /// Puts an Ethernet header before the IP header, with no addresses: that is those of `lo`. Returns
    /// whether it was done.
    #[inline(always)]
    pub fn add_link_header(&self) -> bool {
        // SAFETY: as in `len`.
        let ethertype = unsafe { (*self.0).protocol } as u16;
        // SAFETY: the helpers check length and offset themselves; the header's addresses come zeroed.
        unsafe {
            bpf_skb_change_head(self.0, ETHERNET_HEADER as u32, 0) == 0
                && bpf_skb_store_bytes(
                    self.0.cast(),
                    ETHERTYPE as u32,
                    (&raw const ethertype).cast::<c_void>(),
                    2,
                    0,
                ) == 0
        }
    }

    #[inline(always)]
    pub fn parse(&self, framing: Framing) -> Result<Packet, Unparsed> {
        parse(self, self.ethertype(), header(framing))
    }

    /// What it is, behind the link header and an offloaded VLAN tag: the kernel keeps that in the context.
    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: as in `len`.
        u16::from_be(unsafe { (*self.0).protocol } as u16)
    }

    /// Is it IPv4, or else IPv6? None: neither.
    #[inline(always)]
    pub fn is_v4(&self) -> Option<bool> {
        match self.ethertype() {
            ETHERTYPE_IPV4 => Some(true),
            ETHERTYPE_IPV6 => Some(false),
            _ => None,
        }
    }

    /// What its IP header says that it carries. Extension headers are not followed.
    #[inline(always)]
    pub fn carries(&self, framing: Framing) -> Option<u8> {
        let at = if self.is_v4()? {
            IPV4_PROTOCOL
        } else {
            NEXT_HEADER
        };
        let protocol = self.read::<1>(header(framing) + at)?;
        Some(protocol.0[0])
    }

    /// A datagram whose headers are plain: neither options nor extension headers, and no fragment. None: it is something else.
    /// Less than [`parse`](Self::parse), for where most packets are nothing else or are of no interest.
    #[inline(always)]
    pub fn plain_datagram(&self, framing: Framing) -> Option<(Addresses, Ports, Headers)> {
        let v4 = self.is_v4()?;
        let headers = Headers::at(v4, Headers::begin(framing));
        if v4 {
            let Words([first, fragment, protocol, source, destination, ports]) =
                self.read_words::<6>(headers.ip)?;
            let [version, ..] = first.to_ne_bytes();
            let [.., flags, offset] = fragment.to_ne_bytes();
            let [_, protocol, ..] = protocol.to_ne_bytes();
            let plain = version == IPV4_PLAIN && flags & 0x3f == 0 && offset == 0;
            (plain && protocol == PROTOCOL_UDP).then_some((
                Addresses::v4(source, destination),
                of(ports),
                headers,
            ))
        } else {
            let Words([_, second, a, b, c, d, e, f, g, h, ports]) =
                self.read_words::<11>(headers.ip)?;
            let [_, _, next, _] = second.to_ne_bytes();
            let addresses = Addresses::V6 {
                source: [a, b, c, d],
                destination: [e, f, g, h],
            };
            (next == PROTOCOL_UDP).then_some((addresses, of(ports), headers))
        }
    }

    /// Is it an ICMPv6 redirect (RFC 4861, 4.5)? Those of the kernel have no extension headers.
    #[inline(always)]
    pub fn is_redirect(&self, framing: Framing) -> bool {
        self.is_v4() == Some(false)
            && self.carries(framing) == Some(ICMPV6)
            && self
                .read::<1>(header(framing) + IPV6_HEADER)
                .is_some_and(|kind| kind.0[0] == ICMPV6_REDIRECT)
    }

    /// Writes the port at `at` of the UDP header at `offset` and mends its checksum. Returns whether it was done.
    #[inline(always)]
    pub fn set_port(&self, offset: usize, at: usize, from: u16, to: u16) -> bool {
        // SAFETY: the helpers check the offset against the packet themselves.
        unsafe {
            // A zero checksum means "none" over IPv4 and stays so (RFC 768).
            bpf_l4_csum_replace(
                self.0.cast(),
                (offset + UDP_CHECKSUM) as u32,
                u64::from(from),
                u64::from(to),
                u64::from(BPF_F_MARK_MANGLED_0) | 2,
            ) == 0
                && bpf_skb_store_bytes(
                    self.0.cast(),
                    at as u32,
                    (&raw const to).cast::<c_void>(),
                    2,
                    0,
                ) == 0
        }
    }
}

/// The ports of a datagram, as they stand in its header.
#[inline(always)]
const fn of(ports: u32) -> Ports {
    let [a, b, c, d] = ports.to_ne_bytes();
    Ports {
        source: u16::from_ne_bytes([a, b]),
        destination: u16::from_ne_bytes([c, d]),
    }
}

/// Which end of a datagram.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum End {
    Source,
    Destination,
}

/// Where the headers of a datagram begin: IP without options or extensions, and UDP behind it.
#[derive(Clone, Copy)]
pub struct Headers {
    pub v4: bool,
    pub ip: usize,
    pub udp: usize,
}

impl Headers {
    /// Where the IP header begins.
    #[inline(always)]
    pub const fn begin(framing: Framing) -> usize {
        header(framing)
    }

    /// Those of a datagram whose IP header begins there. None: it has more than that.
    #[inline(always)]
    pub fn of(packet: &Packet, begin: usize) -> Option<Self> {
        let headers = Self::at(matches!(packet.addresses, Addresses::V4 { .. }), begin);
        (packet.transport_offset == headers.udp && !packet.fragment.is_one()).then_some(headers)
    }

    /// Those of a packet whose IP header begins there and is plain.
    #[inline(always)]
    pub const fn at(v4: bool, ip: usize) -> Self {
        let udp = ip + if v4 { IPV4_HEADER } else { IPV6_HEADER };
        Self { v4, ip, udp }
    }
}

impl Skb {
    /// How many datagrams it is: the kernel has several of a flow in one.
    #[inline(always)]
    pub fn segments(&self) -> u32 {
        // SAFETY: as in `len`.
        match unsafe { (*self.0).gso_segs } {
            0 => 1,
            segments => segments,
        }
    }

    /// The bytes of the longest IP packet that it is.
    #[inline(always)]
    pub fn longest(&self, headers: Headers) -> u32 {
        // SAFETY: as in `len`.
        let part = unsafe { (*self.0).gso_size };
        if part == 0 {
            self.len() - headers.ip as u32
        } else {
            part + (headers.udp + UDP_HEADER - headers.ip) as u32
        }
    }

    /// The bytes that the datagram carries, of all if it is several.
    #[inline(always)]
    pub fn payload(&self, headers: Headers) -> u32 {
        // SAFETY: as in `len`.
        if unsafe { (*self.0).gso_size } != 0 {
            return self.len().saturating_sub((headers.udp + UDP_HEADER) as u32);
        }
        // A link may have filled the packet up.
        self.read::<2>(headers.udp + UDP_LENGTH)
            .map_or(0, |length| {
                u32::from(u16::from_be_bytes(length.0)).saturating_sub(UDP_HEADER as u32)
            })
    }

    /// Gives one end of a datagram another address and port, and mends the checksums. Returns whether it was done.
    #[inline(always)]
    pub fn set_end(
        &self,
        headers: Headers,
        end: End,
        addresses: &Addresses,
        ports: &Ports,
        address: &[u32; 4],
        port: u16,
    ) -> bool {
        let checksum = (headers.udp + UDP_CHECKSUM) as u32;
        let (before_port, at_port) = match end {
            End::Source => (ports.source, headers.udp),
            End::Destination => (ports.destination, headers.udp + 2),
        };
        let pseudo = u64::from(BPF_F_PSEUDO_HDR) | u64::from(BPF_F_MARK_MANGLED_0);
        // SAFETY: the helpers check the offsets against the packet themselves, and read what they are given. The checksum
        // of the header that UDP only thinks of is changed in its own step: where hardware is to sum up, it is all there is.
        unsafe {
            let skb = self.0.cast();
            let changed = match addresses {
                Addresses::V4 {
                    source,
                    destination,
                    ..
                } => {
                    let (before, at) = match end {
                        End::Source => (*source, IPV4_SOURCE),
                        End::Destination => (*destination, IPV4_DESTINATION),
                    };
                    let (before, after) = (u64::from(before), u64::from(address[0]));
                    bpf_l3_csum_replace(skb, (headers.ip + IPV4_CHECKSUM) as u32, before, after, 4)
                        == 0
                        && bpf_l4_csum_replace(skb, checksum, before, after, pseudo | 4) == 0
                        && bpf_skb_store_bytes(
                            skb,
                            (headers.ip + at) as u32,
                            (&raw const address[0]).cast::<c_void>(),
                            4,
                            0,
                        ) == 0
                }
                Addresses::V6 {
                    source,
                    destination,
                } => {
                    let (before, at) = match end {
                        End::Source => (source, IPV6_SOURCE),
                        End::Destination => (destination, IPV6_DESTINATION),
                    };
                    let difference = bpf_csum_diff(
                        before.as_ptr().cast_mut(),
                        16,
                        address.as_ptr().cast_mut(),
                        16,
                        0,
                    );
                    difference >= 0
                        && bpf_l4_csum_replace(skb, checksum, 0, difference as u64, pseudo) == 0
                        && bpf_skb_store_bytes(
                            skb,
                            (headers.ip + at) as u32,
                            address.as_ptr().cast::<c_void>(),
                            16,
                            0,
                        ) == 0
                }
            };
            changed && self.set_port(headers.udp, at_port, before_port, port)
        }
    }

    /// Takes one from the time to live, as a router does (RFC 1812, 5.3.1; RFC 8200, 3). Returns false if that was the last, or it
    /// could not be done.
    #[inline(always)]
    pub fn age(&self, headers: Headers) -> bool {
        // SAFETY: the helpers check the offsets against the packet themselves.
        unsafe {
            let skb = self.0.cast();
            if headers.v4 {
                let at = headers.ip + IPV4_TIME_TO_LIVE;
                let Some(Bytes([time, protocol])) = self.read::<2>(at) else {
                    return false;
                };
                if time <= 1 {
                    return false;
                }
                let left = time - 1;
                let (before, after) = (
                    u16::from_ne_bytes([time, protocol]),
                    u16::from_ne_bytes([left, protocol]),
                );
                bpf_l3_csum_replace(
                    skb,
                    (headers.ip + IPV4_CHECKSUM) as u32,
                    u64::from(before),
                    u64::from(after),
                    2,
                ) == 0
                    && bpf_skb_store_bytes(skb, at as u32, (&raw const left).cast(), 1, 0) == 0
            } else {
                let at = headers.ip + HOP_LIMIT;
                let Some(Bytes([limit])) = self.read::<1>(at) else {
                    return false;
                };
                if limit <= 1 {
                    return false;
                }
                let left = limit - 1;
                bpf_skb_store_bytes(skb, at as u32, (&raw const left).cast(), 1, 0) == 0
            }
        }
    }

    /// Reads what lies at `offset`, if the packet does not end before.
    ///
    /// # Safety
    /// Any bytes make a `T`.
    #[inline(always)]
    unsafe fn load<T>(&self, offset: usize) -> Option<T> {
        let mut read = MaybeUninit::<T>::uninit();
        // SAFETY: the helper writes as many bytes as it is told, or returns an error. The caller promises
        // that they are a `T`.
        unsafe {
            if bpf_skb_load_bytes(
                self.0.cast(),
                offset as u32,
                read.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            ) == 0
            {
                Some(read.assume_init())
            } else {
                None
            }
        }
    }
}

impl PacketBytes for Skb {
    #[inline(always)]
    fn length(&self) -> usize {
        self.len() as usize
    }

    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<Bytes<N>> {
        // SAFETY: made of bytes, of which any are good.
        unsafe { self.load(offset) }
    }

    #[inline(always)]
    fn read_words<const N: usize>(&self, offset: usize) -> Option<Words<N>> {
        // SAFETY: made of words, of which any are good.
        unsafe { self.load(offset) }
    }
}
