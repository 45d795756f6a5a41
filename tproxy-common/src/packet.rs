//! From bytes to a [`Packet`], or why not.
//!
//! The parser reads through [`PacketBytes`], so the very code that the verifier accepts in the kernel
//! is tested on slices on the host. It never trusts a length field further than the bytes reach.

use crate::abi::{LANES, Listener, NETWORK_V4, NETWORK_V6};

/// Ethertype of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// Ethertype of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ETHERTYPE_QINQ: u16 = 0x88a8;

/// IP protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// IP protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;

/// The bytes of an Ethernet header without VLAN tags.
pub const ETHERNET_HEADER: usize = 14;
/// How many VLAN tags inside the frame are followed. The outermost one is usually not inside:
/// the kernel takes it off before the first tc program runs.
const MAX_VLAN_TAGS: usize = 2;
/// How many IPv6 extension headers are followed.
pub const MAX_EXTENSIONS: usize = 8;

/// The bytes of an IPv4 header without options.
const V4_HEADER: usize = 20;
/// The first byte of one.
const V4_PLAIN: u8 = 0x45;
/// The bytes of a TCP header that are looked at.
const TCP_READ: usize = 14;
/// Both in one read.
const V4_WIDE: usize = V4_HEADER + TCP_READ;

const TCP_SYN: u8 = 0b0000_0010;
const TCP_RST: u8 = 0b0000_0100;
const TCP_ACK: u8 = 0b0001_0000;

/// Bytes of a packet, aligned so that addresses are copied by words: BPF has no unaligned access,
/// and a compiler that must assume the worst moves every byte alone.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4))]
pub struct Bytes<const N: usize>(pub [u8; N]);

/// Read access to a packet.
pub trait PacketBytes {
    /// How many bytes there are.
    fn length(&self) -> usize;

    /// `N` bytes at `offset`, or nothing if the packet ends before.
    fn read<const N: usize>(&self, offset: usize) -> Option<Bytes<N>>;

    /// `N` words at `offset` as they lie in memory, likewise.
    fn read_words<const N: usize>(&self, offset: usize) -> Option<Words<N>> {
        let mut words = [0; N];
        let mut at = offset;
        for word in &mut words {
            *word = self.read::<4>(at)?.word(0);
            at = at.checked_add(4)?;
        }
        Some(Words(words))
    }
}

impl PacketBytes for [u8] {
    fn length(&self) -> usize {
        self.len()
    }

    fn read<const N: usize>(&self, offset: usize) -> Option<Bytes<N>> {
        let bytes = self.get(offset..offset.checked_add(N)?)?;
        bytes.try_into().ok().map(Bytes)
    }
}

/// Words of a packet. What is looked at here and there in a long header is read so: of bytes the compiler would
/// put each into a slot of its own, and a program has 512 bytes of stack.
#[derive(Clone, Copy, Debug)]
pub struct Words<const N: usize>(pub [u32; N]);

impl<const N: usize> Words<N> {
    /// The byte at `at`.
    #[inline(always)]
    const fn byte(&self, at: usize) -> u8 {
        self.0[at / 4].to_ne_bytes()[at % 4]
    }

    /// The two bytes at `at`, which is even, from network order.
    #[inline(always)]
    const fn number(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.byte(at), self.byte(at + 1)])
    }

    /// The four words from byte `at` on, which is a multiple of four.
    #[inline(always)]
    const fn address(&self, at: usize) -> [u32; 4] {
        let at = at / 4;
        [self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]]
    }
}

impl<const N: usize> Bytes<N> {
    /// The four bytes at `at` as they lie in memory.
    #[inline(always)]
    const fn word(&self, at: usize) -> u32 {
        u32::from_ne_bytes([self.0[at], self.0[at + 1], self.0[at + 2], self.0[at + 3]])
    }

    /// The two bytes at `at`, from network order.
    #[inline(always)]
    const fn number(&self, at: usize) -> u16 {
        u16::from_be_bytes([self.0[at], self.0[at + 1]])
    }
}

/// Source and destination address, as words that lie in memory in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    /// IPv4.
    V4 {
        /// The sender.
        source: u32,
        /// The destination.
        destination: u32,
        /// Zero, so that every part of it has a value: a compiler may move about what is unset, and the verifier refuses that.
        unused: [u32; 6],
    },
    /// IPv6.
    V6 {
        /// The sender.
        source: [u32; 4],
        /// The destination.
        destination: [u32; 4],
    },
}

impl Addresses {
    /// Those of an IPv4 packet.
    #[inline(always)]
    #[must_use]
    pub const fn v4(source: u32, destination: u32) -> Self {
        Self::V4 {
            source,
            destination,
            unused: [0; 6],
        }
    }

    /// Those of a packet that answers.
    #[inline(always)]
    #[must_use]
    pub const fn turned(&self) -> Self {
        match *self {
            Self::V4 {
                source,
                destination,
                ..
            } => Self::v4(destination, source),
            Self::V6 {
                source,
                destination,
            } => Self::V6 {
                source: destination,
                destination: source,
            },
        }
    }

    /// In which lane what the sender sends comes to the proxy, below [`LANES`]. Neighbouring addresses come in different ones
    /// (Fibonacci hashing: Knuth, The Art of Computer Programming, volume 3, 6.4).
    #[inline(always)]
    #[must_use]
    pub const fn lane(&self) -> u32 {
        const GOLDEN: u32 = 0x9e37_79b1;
        let number = match *self {
            Self::V4 { source, .. } => u32::from_be(source),
            Self::V6 { source, .. } => u32::from_be(source[0])
                .wrapping_add(u32::from_be(source[1]))
                .wrapping_add(u32::from_be(source[2]))
                .wrapping_add(u32::from_be(source[3])),
        };
        number.wrapping_mul(GOLDEN) >> (u32::BITS - LANES.ilog2())
    }

    /// Both as IPv6 addresses, IPv4 in its IPv4-mapped form (RFC 4291, 2.5.5.2).
    #[inline(always)]
    #[must_use]
    pub const fn mapped(&self) -> ([u32; 4], [u32; 4]) {
        match self {
            Self::V4 {
                source,
                destination,
                ..
            } => (map_v4(*source), map_v4(*destination)),
            Self::V6 {
                source,
                destination,
            } => (*source, *destination),
        }
    }
}

/// The first address of the network that a destination is counted by, of an address as [`Addresses::mapped`] gives it.
#[inline(always)]
#[must_use]
pub const fn network(address: [u32; 4]) -> [u32; 4] {
    const V4: u32 = (!0u32 << (32 - NETWORK_V4)).to_be();
    const V6: u32 = (!0u32 << (64 - NETWORK_V6)).to_be();
    const MAPPED: u32 = 0xffff_u32.to_be();
    match address {
        [0, 0, MAPPED, address] => [0, 0, MAPPED, address & V4],
        [first, second, _, _] => [first, second & V6, 0, 0],
    }
}

#[inline(always)]
const fn map_v4(address: u32) -> [u32; 4] {
    [0, 0, 0xffff_u32.to_be(), address]
}

/// Source and destination port, each lying in memory in network order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The sender's.
    pub source: u16,
    /// The destination's.
    pub destination: u16,
}

/// What the IP packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment, or the first fragment of one.
    Tcp {
        /// The ports.
        ports: Ports,
        /// Does it open a connection: SYN without ACK and RST?
        opens: bool,
    },
    /// A UDP datagram, or the first fragment of one.
    Udp {
        /// The ports.
        ports: Ports,
    },
    /// A fragment that is not the first, of TCP or UDP.
    LaterFragment {
        /// Is it TCP? Otherwise it is UDP.
        tcp: bool,
    },
    /// Another protocol.
    Other,
    /// TCP or UDP, but its header is cut off.
    CutOff,
    /// IPv6 with more extension headers than are followed, or a fragment of a datagram with
    /// extension headers behind the fragment header: what it carries is not known.
    Buried,
}

/// Whether a packet is a fragment. No `Option`, so that every part has a value.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    fragmented: bool,
    id: u32,
}

impl Fragment {
    /// It is none.
    pub const NONE: Self = Self {
        fragmented: false,
        id: 0,
    };

    /// It is one of the datagram with this identification.
    #[must_use]
    pub const fn of(id: u32) -> Self {
        Self {
            fragmented: true,
            id,
        }
    }

    /// Is it one?
    #[inline(always)]
    #[must_use]
    pub const fn is_one(self) -> bool {
        self.fragmented
    }

    /// The identification of the datagram, if it is one.
    #[inline(always)]
    #[must_use]
    pub const fn id(self) -> Option<u32> {
        if self.fragmented { Some(self.id) } else { None }
    }
}

impl PartialEq for Fragment {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Fragment {}

/// What was learnt from a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who sent it, and where it goes.
    pub addresses: Addresses,
    /// What it carries.
    pub transport: Transport,
    /// Is it a fragment, and of which datagram?
    pub fragment: Fragment,
    /// Where the transport header starts, in bytes from the start of the packet.
    pub transport_offset: usize,
}

impl Packet {
    /// Which of the proxy's sockets it would be for. What is neither TCP nor UDP is for none.
    #[inline(always)]
    #[must_use]
    pub const fn listener(&self) -> Listener {
        let tcp = matches!(
            self.transport,
            Transport::Tcp { .. } | Transport::LaterFragment { tcp: true }
        );
        match (tcp, &self.addresses) {
            (true, Addresses::V4 { .. }) => Listener::Tcp4,
            (true, Addresses::V6 { .. }) => Listener::Tcp6,
            (false, Addresses::V4 { .. }) => Listener::Udp4,
            (false, Addresses::V6 { .. }) => Listener::Udp6,
        }
    }
}

/// Why there is no [`Packet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unparsed {
    /// Neither IPv4 nor IPv6.
    NotIp,
    /// An IP header that contradicts itself, or that the packet ends within.
    Malformed,
}

/// A [`Packet`] in the making: flat, and every part has a value, if only 0.
///
/// An enum's variant leaves the parts of the others without one. A compiler may move such a part about, and
/// the verifier of the kernel refuses a program that reads what was never set.
#[derive(Clone, Copy)]
struct Flat {
    v4: bool,
    /// IPv4: the first word of each.
    source: [u32; 4],
    destination: [u32; 4],
    carried: Carried,
    fragmented: bool,
    id: u32,
    transport_offset: usize,
}

/// A [`Transport`] in the making, as [`Flat`] is.
#[derive(Clone, Copy)]
struct Carried {
    kind: Kind,
    ports: Ports,
    /// TCP: does it open a connection? A later fragment: is it TCP?
    flag: bool,
}

#[derive(Clone, Copy)]
enum Kind {
    Tcp,
    Udp,
    LaterFragment,
    Other,
    CutOff,
    Buried,
}

impl Carried {
    #[inline(always)]
    const fn nothing(kind: Kind) -> Self {
        Self {
            kind,
            ports: Ports {
                source: 0,
                destination: 0,
            },
            flag: false,
        }
    }
}

impl Flat {
    #[inline(always)]
    fn packet(self) -> Packet {
        let Carried { kind, ports, flag } = self.carried;
        Packet {
            addresses: if self.v4 {
                Addresses::v4(self.source[0], self.destination[0])
            } else {
                Addresses::V6 {
                    source: self.source,
                    destination: self.destination,
                }
            },
            transport: match kind {
                Kind::Tcp => Transport::Tcp { ports, opens: flag },
                Kind::Udp => Transport::Udp { ports },
                Kind::LaterFragment => Transport::LaterFragment { tcp: flag },
                Kind::Other => Transport::Other,
                Kind::CutOff => Transport::CutOff,
                Kind::Buried => Transport::Buried,
            },
            fragment: Fragment {
                fragmented: self.fragmented,
                id: self.id,
            },
            transport_offset: self.transport_offset,
        }
    }
}

/// Parses a packet whose link header has been passed over: at `offset` the header that
/// `ethertype` (host order) names begins.
///
/// # Errors
/// [`Unparsed`] when no addresses can be had from it.
#[inline(always)]
pub fn parse<B: PacketBytes + ?Sized>(
    bytes: &B,
    ethertype: u16,
    offset: usize,
) -> Result<Packet, Unparsed> {
    parse_flat(bytes, ethertype, offset).map(Flat::packet)
}

#[inline(always)]
fn parse_flat<B: PacketBytes + ?Sized>(
    bytes: &B,
    mut ethertype: u16,
    mut offset: usize,
) -> Result<Flat, Unparsed> {
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype != ETHERTYPE_VLAN && ethertype != ETHERTYPE_QINQ {
            break;
        }
        ethertype = bytes
            .read::<4>(offset)
            .ok_or(Unparsed::Malformed)?
            .number(2);
        offset += 4;
    }
    match ethertype {
        ETHERTYPE_IPV4 => parse_v4(bytes, offset),
        ETHERTYPE_IPV6 => parse_v6(bytes, offset),
        _ => Err(Unparsed::NotIp),
    }
}

/// Parses an Ethernet frame, for those who have nothing but its bytes.
///
/// # Errors
/// As [`parse`].
pub fn parse_frame<B: PacketBytes + ?Sized>(bytes: &B) -> Result<Packet, Unparsed> {
    let ethertype = bytes
        .read::<2>(ETHERNET_HEADER - 2)
        .ok_or(Unparsed::Malformed)?;
    parse(bytes, ethertype.number(0), ETHERNET_HEADER)
}

/// RFC 791, 3.1.
#[inline(always)]
fn parse_v4<B: PacketBytes + ?Sized>(bytes: &B, offset: usize) -> Result<Flat, Unparsed> {
    // Nearly all packets have no options and are this long: one read is enough for them. (A read that
    // fails costs as much as three that do not.)
    if bytes.length() >= offset + V4_WIDE
        && let Some(wide) = bytes.read::<V4_WIDE>(offset)
        && wide.0[0] == V4_PLAIN
    {
        return parse_v4_header(&wide, offset, |protocol, left| match protocol {
            PROTOCOL_TCP => tcp(Some(&wide), V4_HEADER, left),
            PROTOCOL_UDP => udp(Some(&wide), V4_HEADER, left),
            _ => Carried::nothing(Kind::Other),
        });
    }
    let header = bytes.read::<V4_HEADER>(offset).ok_or(Unparsed::Malformed)?;
    let transport_offset = offset + usize::from(header.0[0] & 0x0f) * 4;
    parse_v4_header(&header, offset, |protocol, left| {
        parse_transport(bytes, transport_offset, protocol, left)
    })
}

/// `transport` parses what the protocol with this number has to say in so many bytes.
#[inline(always)]
fn parse_v4_header<const N: usize>(
    header: &Bytes<N>,
    offset: usize,
    transport: impl FnOnce(u8, usize) -> Carried,
) -> Result<Flat, Unparsed> {
    let header_length = usize::from(header.0[0] & 0x0f) * 4;
    let total = usize::from(header.number(2));
    if header.0[0] >> 4 != 4 || header_length < V4_HEADER || total < header_length {
        return Err(Unparsed::Malformed);
    }
    let more = header.number(6) & 0x2000 != 0;
    let later = header.number(6) & 0x1fff != 0;
    let protocol = header.0[9];
    let transport = if later {
        later_fragment(protocol)
    } else {
        transport(protocol, total - header_length)
    };
    Ok(Flat {
        v4: true,
        source: [header.word(12), 0, 0, 0],
        destination: [header.word(16), 0, 0, 0],
        carried: transport,
        fragmented: more || later,
        id: u32::from(header.number(4)),
        transport_offset: offset + header_length,
    })
}

/// RFC 8200, 3 and 4.
#[inline(always)]
fn parse_v6<B: PacketBytes + ?Sized>(bytes: &B, offset: usize) -> Result<Flat, Unparsed> {
    let header = bytes.read_words::<10>(offset).ok_or(Unparsed::Malformed)?;
    if header.byte(0) >> 4 != 6 {
        return Err(Unparsed::Malformed);
    }
    let mut left = usize::from(header.number(4));
    let mut next = header.byte(6);
    let mut at = offset + 40;
    let (mut fragmented, mut id) = (false, 0);
    // Until the last header is found.
    let mut carried = Carried::nothing(Kind::Buried);
    let mut found = false;
    for _ in 0..MAX_EXTENSIONS {
        let Extension::Header(kind) = Extension::of(next) else {
            (carried, found) = (parse_transport(bytes, at, next, left), true);
            break;
        };
        let Some(extension) = bytes.read::<8>(at) else {
            (carried, found) = (Carried::nothing(Kind::CutOff), true);
            break;
        };
        let length = match kind {
            ExtensionKind::Options => 8 + usize::from(extension.0[1]) * 8,
            // Counted in words of four bytes, less two (RFC 4302, 2.2).
            ExtensionKind::Authentication => 8 + usize::from(extension.0[1]) * 4,
            ExtensionKind::Fragment => 8,
        };
        if length > left {
            (carried, found) = (Carried::nothing(Kind::CutOff), true);
            break;
        }
        next = extension.0[0];
        if let ExtensionKind::Fragment = kind {
            let field = extension.number(2);
            let later = field & 0xfff8 != 0;
            // A fragment that is first and last at once ("atomic", RFC 6946) is no fragment.
            if later || field & 1 != 0 {
                (fragmented, id) = (true, extension.word(4));
                // What comes behind these options is known to the first fragment alone, and all of
                // a datagram must share one verdict.
                if let Extension::Header(_) = Extension::of(next) {
                    found = true;
                    break;
                }
            }
            if later {
                (carried, found) = (later_fragment(next), true);
                break;
            }
        }
        at += length;
        left -= length;
    }
    // The last one followed may have been the last there is.
    if !found && let Extension::None = Extension::of(next) {
        carried = parse_transport(bytes, at, next, left);
    }
    Ok(Flat {
        v4: false,
        source: header.address(8),
        destination: header.address(24),
        carried,
        fragmented,
        id,
        transport_offset: at,
    })
}

#[derive(Clone, Copy)]
enum ExtensionKind {
    Options,
    Authentication,
    Fragment,
}

enum Extension {
    None,
    Header(ExtensionKind),
}

impl Extension {
    /// Which header a "next header" value names.
    #[inline(always)]
    const fn of(next: u8) -> Self {
        match next {
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6: one length format.
            0 | 43 | 60 | 135 | 139 | 140 => Self::Header(ExtensionKind::Options),
            44 => Self::Header(ExtensionKind::Fragment),
            51 => Self::Header(ExtensionKind::Authentication),
            _ => Self::None,
        }
    }
}

#[inline(always)]
fn parse_transport<B: PacketBytes + ?Sized>(
    bytes: &B,
    offset: usize,
    protocol: u8,
    left: usize,
) -> Carried {
    match protocol {
        PROTOCOL_TCP => tcp(bytes.read::<TCP_READ>(offset).as_ref(), 0, left),
        PROTOCOL_UDP => udp(bytes.read::<4>(offset).as_ref(), 0, left),
        _ => Carried::nothing(Kind::Other),
    }
}

/// RFC 9293, 3.1. The header begins at `at`.
#[inline(always)]
fn tcp<const N: usize>(bytes: Option<&Bytes<N>>, at: usize, left: usize) -> Carried {
    match bytes {
        Some(bytes) if left >= 20 => Carried {
            kind: Kind::Tcp,
            ports: ports(bytes, at),
            flag: opens(bytes.0[at + 13]),
        },
        _ => Carried::nothing(Kind::CutOff),
    }
}

/// RFC 768. The header begins at `at`.
#[inline(always)]
fn udp<const N: usize>(bytes: Option<&Bytes<N>>, at: usize, left: usize) -> Carried {
    match bytes {
        Some(bytes) if left >= 8 => Carried {
            kind: Kind::Udp,
            ports: ports(bytes, at),
            flag: false,
        },
        _ => Carried::nothing(Kind::CutOff),
    }
}

#[inline(always)]
const fn opens(flags: u8) -> bool {
    flags & (TCP_SYN | TCP_RST | TCP_ACK) == TCP_SYN
}

#[inline(always)]
const fn ports<const N: usize>(bytes: &Bytes<N>, at: usize) -> Ports {
    Ports {
        source: u16::from_ne_bytes([bytes.0[at], bytes.0[at + 1]]),
        destination: u16::from_ne_bytes([bytes.0[at + 2], bytes.0[at + 3]]),
    }
}

#[inline(always)]
const fn later_fragment(protocol: u8) -> Carried {
    let mut carried = Carried::nothing(match protocol {
        PROTOCOL_TCP | PROTOCOL_UDP => Kind::LaterFragment,
        _ => Kind::Other,
    });
    carried.flag = protocol == PROTOCOL_TCP;
    carried
}
