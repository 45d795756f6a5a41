//! Packet memory: the one file that touches it.

use core::ffi::c_void;
use core::mem::{MaybeUninit, size_of};

use aya_ebpf::bindings::{__sk_buff, BPF_F_MARK_MANGLED_0};
use aya_ebpf::helpers::generated::{
    bpf_l4_csum_replace, bpf_sk_fullsock, bpf_skb_change_head, bpf_skb_change_type,
    bpf_skb_load_bytes, bpf_skb_store_bytes,
};
use aya_ebpf::programs::TcContext;
use tproxy_common::abi::MARK_MASK;
use tproxy_common::packet::{
    Bytes, ETHERNET_HEADER, ETHERTYPE_IPV6, Packet, PacketBytes, Unparsed, Words, parse,
};

/// Where in a UDP header the checksum stands (RFC 768).
const UDP_CHECKSUM: usize = 6;
/// Where in an IPv6 header the next header is named, and how long it is (RFC 8200, 3).
const NEXT_HEADER: usize = 6;
const IPV6_HEADER: usize = 40;
const ICMPV6: u8 = 58;
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
        // SAFETY: as in `len`; the field may be written by tc programs.
        unsafe { (*self.0).mark = mark }
    }

    /// Sets our bits of the mark and leaves those of others.
    #[inline(always)]
    pub fn set_own_mark(&self, mark: u32) {
        self.set_mark(self.mark() & !MARK_MASK | mark);
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
        // The kernel keeps the ethertype behind the link header, and behind an offloaded VLAN tag,
        // in the context, so the header itself need not be read.
        // SAFETY: as in `len`.
        let ethertype = u16::from_be(unsafe { (*self.0).protocol } as u16);
        parse(self, ethertype, header(framing))
    }

    /// Is it an ICMPv6 redirect (RFC 4861, 4.5)? Those of the kernel have no extension headers.
    #[inline(always)]
    pub fn is_redirect(&self, framing: Framing) -> bool {
        // SAFETY: as in `len`.
        let ethertype = u16::from_be(unsafe { (*self.0).protocol } as u16);
        let offset = header(framing);
        ethertype == ETHERTYPE_IPV6
            && self
                .read::<1>(offset + NEXT_HEADER)
                .is_some_and(|next| next.0[0] == ICMPV6)
            && self
                .read::<1>(offset + IPV6_HEADER)
                .is_some_and(|kind| kind.0[0] == ICMPV6_REDIRECT)
    }

    /// Writes the source port of the UDP header at `offset` and mends its checksum.
    /// Returns whether it was done.
    #[inline(always)]
    pub fn set_udp_source(&self, offset: usize, from: u16, to: u16) -> bool {
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
                    offset as u32,
                    (&raw const to).cast::<c_void>(),
                    2,
                    0,
                ) == 0
        }
    }
}

impl Skb {
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
