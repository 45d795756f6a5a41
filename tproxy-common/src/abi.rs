//! The agreement between kernel and user space: map keys and values, marks, names, reasons.
//!
//! Addresses and ports are words that lie in memory in network order (`u32::from_ne_bytes` of the
//! address's bytes), so that the kernel half copies them by words. Times are nanoseconds of `CLOCK_BOOTTIME`.
//! Every structure is `repr(C)` without implicit padding and its size is asserted.

use core::mem::size_of;

/// Counts the changes of what is in this file. Maps of another version are not used.
pub const ABI_VERSION: u32 = 7;

/// The bits of a packet or socket mark that belong to tproxy-bpf. All others are left as they are.
///
/// One documented nibble: it stays clear of 1, 2 and 255 (the marks of the iptables guides), of
/// mwan3 (0x3f00), kube-proxy (0xc000), Tailscale (0xff0000) and `wg-quick` (0xca6c).
pub const MARK_MASK: u32 = 0x0000_00f0;
/// A packet on its way to the proxy: one policy-routing rule delivers it locally.
pub const MARK_STEER: u32 = 0x0000_00a0;
/// A socket whose traffic is never steered. The proxy sets it on each of its own sockets.
pub const MARK_EXEMPT: u32 = 0x0000_00b0;
/// A datagram on the express lane while the kernel forwards it to the peer.
pub const MARK_EXPRESS: u32 = 0x0000_00c0;
/// An answer on the express lane while the kernel forwards it to the device; and one with a number, on its way to the proxy.
pub const MARK_EXPRESS_ANSWER: u32 = 0x0000_00e0;
/// Where in the mark of a datagram its number stands, while its flow changes to the express lane.
pub const NUMBER_SHIFT: u32 = 16;
/// The lower half of the mark of a UDP reply. The upper half is the source port that
/// `udp_reply` writes into the datagram.
pub const MARK_REPLY: u32 = 0x0000_00d0;
/// The half of a reply's mark that must equal [`MARK_REPLY`].
pub const MARK_REPLY_MASK: u32 = 0x0000_ffff;

/// The port of DNS (RFC 1035, 4.2), host order.
pub const DNS_PORT: u16 = 53;

/// The routing table that delivers steered packets locally.
pub const ROUTE_TABLE: u32 = 0x7470;
/// The routing protocol number on every rule and route that tproxy-bpf adds, so that
/// clean-up finds exactly these.
pub const ROUTE_PROTOCOL: u8 = 0x74;
/// The priority of the policy-routing rule: after `local` (0), before everything else.
pub const RULE_PRIORITY: u32 = 100;

/// How many prefixes each bypass trie holds.
pub const BYPASS_CAPACITY: u32 = 262_144;
/// How many own addresses and subnets each trie holds.
pub const LOCALS_CAPACITY: u32 = 4_096;
/// How many source prefixes (summed over the LAN links) each trie holds.
pub const SOURCES_CAPACITY: u32 = 4_096;
/// How many links can be attached.
pub const LINKS_CAPACITY: u32 = 256;
/// How many TCP connections of each family are remembered as steered.
pub const STEERED_CAPACITY: u32 = 65_536;
/// How many fragmented TCP segments are remembered.
pub const FRAGMENTS_CAPACITY: u32 = 1_024;
/// How many gids, uids and cgroups can be exempt.
pub const EXEMPT_CAPACITY: u32 = 1_024;
/// How many marks can be exempt, beside [`MARK_EXEMPT`].
pub const EXEMPT_MARKS: usize = 16;
/// The bytes of a cgroup's path beside its exemption.
pub const EXEMPT_TEXT_BYTES: usize = 248;
/// How deep below the root of cgroup2 an exempt cgroup is looked for.
pub const CGROUP_DEPTH: u32 = 16;
/// How many peers of the gateway's UDP services are remembered.
pub const CALLERS_CAPACITY: u32 = 65_536;
/// For how long after its last datagram a peer of a UDP service counts as its caller, in nanoseconds.
pub const CALLER_LIFE: u64 = 180_000_000_000;
/// How many flows over each family can be on the express lane. Each has two entries.
pub const EXPRESS_FLOWS: u32 = 65_536;
/// For how long a flow stays on the express lane without a datagram in that direction, in nanoseconds. Less than the kernel
/// remembers a UDP flow for (`nf_conntrack_udp_timeout`, 30 s): what is forwarded without that memory may be translated by others.
pub const EXPRESS_LIFE: u64 = 15_000_000_000;
/// For how long a flow that changes to the express lane waits for what is on its way through the proxy, in nanoseconds.
pub const EXPRESS_PATIENCE: u64 = 200_000_000;
/// How many datagrams of a flow may be given to the kernel for forwarding that have not left by the WAN link.
pub const EXPRESS_ASTRAY: u64 = 64;
/// How many devices are counted for.
pub const DEVICES_CAPACITY: u32 = 8_192;
/// How many networks of destinations are counted for.
pub const NETWORKS_CAPACITY: u32 = 8_192;
/// The networks that destinations are put together by when bytes are counted, as prefix lengths: IPv4.
pub const NETWORK_V4: u8 = 24;
/// The same for IPv6.
pub const NETWORK_V6: u8 = 48;
/// How many notes (texts beside bypass prefixes) are kept.
pub const NOTES_CAPACITY: u32 = 65_536;
/// The bytes of a note.
pub const NOTE_BYTES: usize = 96;

/// Names of the maps, which are also the names of their pins.
pub mod map {
    /// [`Settings`](super::Settings), one element.
    pub const SETTINGS: &str = "SETTINGS";
    /// [`Counter`](super::Counter) by [`Reason`](super::Reason), per CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// The proxy's sockets by [`Listener`](super::Listener).
    pub const LISTENERS: &str = "LISTENERS";
    /// IPv4 prefix to [`Bypass`](super::Bypass).
    pub const BYPASS_V4: &str = "BYPASS_V4";
    /// IPv6 prefix to [`Bypass`](super::Bypass).
    pub const BYPASS_V6: &str = "BYPASS_V6";
    /// [`NoteKey`](super::NoteKey) to [`Note`](super::Note).
    pub const NOTES: &str = "NOTES";
    /// IPv4 prefix to [`Local`](super::Local).
    pub const LOCALS_V4: &str = "LOCALS_V4";
    /// IPv6 prefix to [`Local`](super::Local).
    pub const LOCALS_V6: &str = "LOCALS_V6";
    /// [`SourceV4`](super::SourceV4) prefixes that may use the proxy.
    pub const SOURCES_V4: &str = "SOURCES_V4";
    /// [`SourceV6`](super::SourceV6) prefixes that may use the proxy.
    pub const SOURCES_V6: &str = "SOURCES_V6";
    /// Interface index to [`Link`](super::Link).
    pub const LINKS: &str = "LINKS";
    /// [`FlowV4`](super::FlowV4)s of steered TCP connections.
    pub const STEERED_V4: &str = "STEERED_V4";
    /// [`FlowV6`](super::FlowV6)s of steered TCP connections.
    pub const STEERED_V6: &str = "STEERED_V6";
    /// [`FragmentKey`](super::FragmentKey) to the verdict of the first fragment.
    pub const FRAGMENTS: &str = "FRAGMENTS";
    /// [`Caller`](super::Caller) to when it last wrote.
    pub const CALLERS: &str = "CALLERS";
    /// [`ExemptKey`](super::ExemptKey) to [`Exempt`](super::Exempt).
    pub const EXEMPT: &str = "EXEMPT";
    /// [`ExemptMarks`](super::ExemptMarks), one element.
    pub const EXEMPT_MARKS: &str = "EXEMPT_MARKS";
    /// A device's address, IPv4 in its IPv4-mapped form, to [`Traffic`](super::Traffic).
    pub const DEVICES: &str = "DEVICES";
    /// The first address of a destination's network, IPv4 in its IPv4-mapped form, to [`Traffic`](super::Traffic).
    pub const NETWORKS: &str = "NETWORKS";
    /// [`FlowV4`](super::FlowV4) to [`Express`](super::Express), for each direction.
    pub const EXPRESS_V4: &str = "EXPRESS_V4";
    /// [`FlowV6`](super::FlowV6) to [`Express`](super::Express), for each direction.
    pub const EXPRESS_V6: &str = "EXPRESS_V6";
    /// [`Express::id`](super::Express::id) to the number that the proxy has got to.
    pub const EXPRESS_REACHED: &str = "EXPRESS_REACHED";
    /// [`TraceFilter`](crate::trace::TraceFilter), one element.
    pub const TRACE: &str = "TRACE";
    /// A ring buffer of [`TraceEvent`](crate::trace::TraceEvent)s.
    pub const TRACE_EVENTS: &str = "TRACE_EVENTS";
    /// How many events found no room there, one element, per CPU.
    pub const TRACE_LOST: &str = "TRACE_LOST";
}

/// Names of the programs.
pub mod program {
    /// tc ingress on a LAN link with an Ethernet header.
    pub const LAN_INGRESS: &str = "lan_ingress";
    /// tc ingress on a LAN link without one (ppp, tun, WireGuard).
    pub const LAN_INGRESS_L3: &str = "lan_ingress_l3";
    /// tc egress on a LAN link with an Ethernet header.
    pub const UDP_REPLY: &str = "udp_reply";
    /// tc egress on a LAN link without one.
    pub const UDP_REPLY_L3: &str = "udp_reply_l3";
    /// tc egress on a WAN link with an Ethernet header.
    pub const LOCAL_EGRESS: &str = "local_egress";
    /// tc egress on a WAN link without one.
    pub const LOCAL_EGRESS_L3: &str = "local_egress_l3";
    /// tc ingress on `lo`.
    pub const LO_INGRESS: &str = "lo_ingress";
    /// tc ingress on a link that express datagrams come by, with an Ethernet header.
    pub const WAN_INGRESS: &str = "wan_ingress";
    /// The same on a link without one.
    pub const WAN_INGRESS_L3: &str = "wan_ingress_l3";
    /// tc egress on a link that express datagrams leave by, with an Ethernet header.
    pub const WAN_EGRESS: &str = "wan_egress";
    /// The same on a link without one.
    pub const WAN_EGRESS_L3: &str = "wan_egress_l3";
    /// Creation of a socket, at the root of cgroup2.
    pub const SOCK_CREATE: &str = "sock_create";
    /// Socket lookup in the gateway's network namespace.
    pub const SK_LOOKUP: &str = "lookup";
}

/// In how many lanes connections and datagrams of each family come to the proxy, a power of two. Those of one device all
/// come in the same lane, which is a socket with a queue of its own. So a device that floods fills its own lane alone.
pub const LANES: u32 = 16;

/// The proxy's sockets. Each has a place in the map [`map::LISTENERS`] for each of its lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Listener {
    /// Accepts steered TCP connections over IPv4.
    Tcp4 = 0,
    /// Accepts steered TCP connections over IPv6.
    Tcp6 = 1,
    /// Receives steered IPv4 datagrams.
    Udp4 = 2,
    /// Receives steered IPv6 datagrams.
    Udp6 = 3,
}

impl Listener {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Tcp4, Self::Tcp6, Self::Udp4, Self::Udp6];
    /// How many places [`map::LISTENERS`] has.
    pub const SLOTS: u32 = Self::ALL.len() as u32 * LANES;

    /// The key in [`map::LISTENERS`] of the socket of this lane, which is below [`LANES`].
    #[inline(always)]
    #[must_use]
    pub const fn slot(self, lane: u32) -> u32 {
        self as u32 * LANES + lane
    }
}

/// What the kernel half does, as far as it can be changed while it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    /// [`ABI_VERSION`] of who made the maps.
    pub abi: u32,
    /// A set of the `Settings::*` flags.
    pub flags: u32,
    /// The port of the IPv4 socket that sends UDP replies, network order.
    pub reply_port_v4: u16,
    /// The port of the IPv6 socket that sends UDP replies, network order.
    pub reply_port_v6: u16,
    /// The first port that the kernel gives to sockets by itself (`ip_local_port_range`), host order.
    pub first_free_port: u16,
    /// The last one.
    pub last_free_port: u16,
    /// The cookie of the gateway's network namespace: sockets of others are not touched.
    pub netns_cookie: u64,
}

impl Settings {
    /// Flag: private ranges (RFC 1918, RFC 4193, RFC 6598) are bypassed.
    pub const BYPASS_PRIVATE: u32 = 1;
    /// Flag: when the proxy is down, what it should have got is dropped. Without the flag it passes.
    pub const DOWN_DROPS: u32 = 1 << 1;

    /// Flag: DNS questions (port 53) are steered wherever they go, to the gateway itself too.
    pub const HIJACK_DNS: u32 = 1 << 2;
    /// Flag: what devices send and get past the proxy is counted for each of them.
    pub const ACCOUNT: u32 = 1 << 3;
    /// Flag: flows may be on the express lane.
    pub const EXPRESS: u32 = 1 << 4;
    /// Flag: what is on the express lane is given to the link itself, past routing and firewall.
    pub const EXPRESS_REDIRECT: u32 = 1 << 5;

    /// Is this flag set?
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Sets or clears this flag.
    pub const fn set(&mut self, flag: u32, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }

    /// Is this a port that the kernel never gives to a socket by itself, so that a service must have
    /// asked for it? Network order.
    #[inline(always)]
    #[must_use]
    pub const fn is_asked_for(&self, port: u16) -> bool {
        let port = u16::from_be(port);
        port < self.first_free_port || port > self.last_free_port
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// How many packets.
    pub packets: u64,
    /// Their bytes, link header included.
    pub bytes: u64,
}

/// What a device, or devices and a network, sent and got past the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Traffic {
    /// From the device.
    pub up: Counter,
    /// To the device.
    pub down: Counter,
}

/// Who put a prefix into the bypass set, or exempted somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Origin {
    /// The command line, at run time.
    Command = 1,
    /// The configuration or one of its files.
    Config = 2,
    /// The running proxy, for the addresses of its outbound's server.
    Outbound = 3,
    /// `exempt run`, for the cgroup that it starts commands in.
    Run = 4,
    /// The running proxy, for the addresses of a name that goes direct.
    Learned = 5,
}

impl Origin {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Command,
        Self::Config,
        Self::Outbound,
        Self::Run,
        Self::Learned,
    ];

    /// The word for it.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Command => "command",
            Self::Config => "config",
            Self::Outbound => "outbound",
            Self::Run => "run",
            Self::Learned => "learned",
        }
    }
}

/// A bypassed prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Bypass {
    /// After this time (`CLOCK_BOOTTIME`, nanoseconds) the entry counts no more. 0: never.
    pub expires: u64,
    /// Packets that this prefix let pass.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The length of this prefix: where an expired entry is passed over.
    pub prefix_len: u32,
    /// An [`Origin`].
    pub origin: u32,
}

/// Names a note: a bypassed prefix of either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NoteKey {
    /// The address; IPv4 in its IPv4-mapped form.
    pub address: [u32; 4],
    /// The length in bits of the mapped form (IPv4: 96 more).
    pub prefix_len: u32,
}

/// A text beside a bypassed prefix: UTF-8, filled up with zero bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Note {
    /// The text.
    pub text: [u8; NOTE_BYTES],
}

/// A prefix of the gateway itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Local {
    /// [`Local::ADDRESS`] or [`Local::SUBNET`].
    pub kind: u32,
}

impl Local {
    /// One of the gateway's own addresses.
    pub const ADDRESS: u32 = 1;
    /// A subnet that one of its links is part of.
    pub const SUBNET: u32 = 2;
}

/// Set in the link of a source: it is about what the gateway itself sends by that link, not about
/// what arrives there. Interface indices are positive `int`s, so the bit is free.
pub const SOURCE_OWN: u32 = 1 << 31;

/// Where a packet may come from: a link and a prefix. As a trie key its first 32 bits are the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SourceV4 {
    /// The interface index, or that with [`SOURCE_OWN`]; network order.
    pub link: u32,
    /// The source address.
    pub address: u32,
}

/// [`SourceV4`] for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct SourceV6 {
    /// The interface index, or that with [`SOURCE_OWN`]; network order.
    pub link: u32,
    /// The source address.
    pub address: [u32; 4],
}

/// A link that is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Link {
    /// A set of the `Link::*` flags.
    pub flags: u32,
}

impl Link {
    /// Flag: devices of the LAN are behind this link.
    pub const LAN: u32 = 1;
    /// Flag: attached as a LAN link by `attach`, so that stays when a proxy ends.
    pub const LAN_STAYS: u32 = 1 << 1;
    /// Flag: held by clsact filters, not by tcx links.
    pub const CLSACT: u32 = 1 << 2;
    /// Flag: the clsact qdisc was already there, so it stays on detach.
    pub const CLSACT_WAS_THERE: u32 = 1 << 3;
    /// Flag: the gateway's own traffic that leaves by this link is steered.
    pub const WAN: u32 = 1 << 4;
    /// Flag: attached as a WAN link by `attach`, so that stays when a proxy ends.
    pub const WAN_STAYS: u32 = 1 << 5;
    /// Flag: `lo`, where the gateway's own traffic comes in that a WAN link gave up.
    pub const LOOPBACK: u32 = 1 << 6;
    /// Flag: datagrams on the express lane leave and come by this link.
    pub const EXPRESS: u32 = 1 << 7;
}

/// One TCP connection over IPv4 as the gateway sees it from the device's side. (The families have maps of
/// their own here, because each segment of a direct connection asks: a key of 12 bytes is hashed
/// in a third of the time.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FlowV4 {
    /// The device.
    pub source: u32,
    /// Where it wants to go.
    pub destination: u32,
    /// The device's port, network order.
    pub source_port: u16,
    /// The destination port, network order.
    pub destination_port: u16,
}

/// [`FlowV4`] for IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FlowV6 {
    /// The device.
    pub source: [u32; 4],
    /// Where it wants to go.
    pub destination: [u32; 4],
    /// The device's port, network order.
    pub source_port: u16,
    /// The destination port, network order.
    pub destination_port: u16,
}

/// One direction of a UDP flow on the express lane: what is made of its datagrams, and what went.
///
/// User space makes and removes it; from then on the programs alone write to it. It is found by the addresses and ports that
/// the datagrams come with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Express {
    /// To the peer: the source that it sees. From the peer: the device. IPv4 in the first word.
    pub address: [u32; 4],
    /// The port there, network order.
    pub port: u16,
    /// A set of the `Express::*` flags.
    pub flags: u16,
    /// The index of the link that the datagrams leave by.
    pub link: u32,
    /// The longest IP packet that may leave there, in bytes.
    pub mtu: u32,
    /// The key in [`map::EXPRESS_REACHED`].
    pub id: u32,
    /// How many datagrams went to the proxy since the entry was made, each with its number.
    pub numbered: u32,
    /// 1: the proxy has none of them any more, so all go by the lane.
    pub open: u32,
    /// When the last one went by the lane, or when the entry was made. 0: they do not get out by it, so no more go.
    pub used: u64,
    /// Datagrams that went by the lane.
    pub packets: u64,
    /// Their payload, in bytes.
    pub bytes: u64,
    /// To the peer: how many of them have left by the WAN link, where the kernel forwards them.
    pub left: u64,
}

impl Express {
    /// Flag: the device is the gateway itself.
    pub const OWN: u16 = 1;

    /// The number that the last of so many numbered datagrams had: 1 to 65,535, and again from 1.
    #[inline(always)]
    #[must_use]
    pub const fn number(numbered: u32) -> u32 {
        numbered.wrapping_sub(1) % 0xffff + 1
    }
}

/// One fragmented TCP segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct FragmentKey {
    /// The sender; IPv4 in its IPv4-mapped form.
    pub source: [u32; 4],
    /// The destination; likewise.
    pub destination: [u32; 4],
    /// The identification.
    pub id: u32,
}

/// What became of the first fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FragmentFate {
    /// It passed, so the others pass.
    Passed = 1,
    /// It was steered, so the others are.
    Steered = 2,
}

/// A peer that wrote to a UDP service of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Caller {
    /// The peer; IPv4 in its IPv4-mapped form.
    pub peer: [u32; 4],
    /// The gateway's address that it wrote to; likewise.
    pub own: [u32; 4],
    /// The peer's port, network order.
    pub peer_port: u16,
    /// The service's port, network order.
    pub own_port: u16,
}

/// By what a program of the gateway is exempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum ExemptKind {
    /// The group of the process that makes the socket (the real one).
    Gid = 1,
    /// The user of the process that makes the socket (the real one).
    Uid = 2,
    /// The cgroup of the process that makes the socket, or one above it. Follows from
    /// [`ExemptKind::CgroupPath`].
    Cgroup = 3,
    /// A cgroup by its path, whether it is there or not. The programs never ask for it: it is what
    /// user space remembers, since a cgroup that is made anew has another id.
    CgroupPath = 4,
}

/// Who is exempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct ExemptKey {
    /// An [`ExemptKind`].
    pub kind: u32,
    /// Zero.
    pub unused: u32,
    /// The gid, the uid or the id of the cgroup (its inode number). Of a path: any number that no other
    /// path has.
    pub id: u64,
}

/// What goes with an exemption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Exempt {
    /// An [`Origin`].
    pub origin: u32,
    /// Zero.
    pub unused: u32,
    /// A cgroup's path below the root of cgroup2, with its slash in front; filled up with zero bytes.
    pub text: [u8; EXEMPT_TEXT_BYTES],
}

/// Marks of others that are exempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ExemptMarks {
    /// How many of `marks` are in use, from the start.
    pub count: u32,
    /// The marks.
    pub marks: [ExemptMark; EXEMPT_MARKS],
}

/// A mark of others that is exempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ExemptMark {
    /// The bits under the mask.
    pub value: u32,
    /// Which bits count; not zero.
    pub mask: u32,
    /// An [`Origin`].
    pub origin: u32,
}

const _: () = assert!(size_of::<Settings>() == 24);
const _: () = assert!(size_of::<Counter>() == 16);
const _: () = assert!(size_of::<Traffic>() == 32);
const _: () = assert!(size_of::<Bypass>() == 32);
const _: () = assert!(size_of::<NoteKey>() == 20);
const _: () = assert!(size_of::<Note>() == NOTE_BYTES);
const _: () = assert!(size_of::<Local>() == 4);
const _: () = assert!(size_of::<SourceV4>() == 8);
const _: () = assert!(size_of::<SourceV6>() == 20);
const _: () = assert!(size_of::<Link>() == 4);
const _: () = assert!(size_of::<FlowV4>() == 12);
const _: () = assert!(size_of::<FlowV6>() == 36);
const _: () = assert!(size_of::<Express>() == 72);
const _: () = assert!(size_of::<FragmentKey>() == 36);
const _: () = assert!(size_of::<Caller>() == 36);
const _: () = assert!(size_of::<ExemptKey>() == 16);
const _: () = assert!(size_of::<Exempt>() == 256);
const _: () = assert!(size_of::<ExemptMarks>() == 4 + 12 * EXEMPT_MARKS);

/// What happens to a packet for a [`Reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The kernel goes on with it as if tproxy-bpf were not there.
    Pass,
    /// The proxy gets it.
    Steer,
    /// It ends here.
    Drop,
}

macro_rules! reasons {
    ($($name:ident = $word:literal, $effect:ident, $sentence:literal;)*) => {
        told! {
            /// Why a packet passed, was steered or was dropped. One list for the counter's index, the
            /// metric's label and the word that the commands print.
            #[derive(PartialOrd, Ord, Hash)]
            #[repr(u32)]
            Reason: $($name = $word, $sentence;)*
        }

        impl Reason {
            /// What happens to the packet.
            #[must_use]
            pub const fn effect(self) -> Effect {
                match self { $(Self::$name => Effect::$effect,)* }
            }
        }
    };
}

reasons! {
    NotIp = "not_ip", Pass, "Neither IPv4 nor IPv6 (ARP, for example).";
    OtherHost = "other_host", Pass, "Addressed to another machine on the link; the kernel ignores it.";
    MalformedIp = "malformed_ip", Pass, "The IP header is broken; left to the kernel, which drops it.";
    OtherProtocol = "other_protocol", Pass, "Neither TCP nor UDP (ICMP, for example).";
    OwnAddress = "own_address", Pass, "Addressed to the gateway itself.";
    OwnSubnet = "own_subnet", Pass, "Addressed to a subnet that the gateway is part of.";
    Multicast = "multicast", Pass, "A multicast or broadcast destination.";
    LinkLocal = "link_local", Pass, "A link-local destination.";
    Loopback = "loopback", Pass, "A loopback or unspecified destination.";
    Reserved = "reserved", Pass, "A destination in the reserved range 240.0.0.0/4.";
    PrivateRange = "private_range", Pass, "A private destination (RFC 1918, 4193, 6598).";
    Bypassed = "bypassed", Pass, "The destination is in the bypass set.";
    ForeignSource = "foreign_source", Pass, "The source may not use the proxy: it is not of this LAN or, for what the gateway sends, no address of its own.";
    DirectConnection = "direct_connection", Pass, "Part of a TCP connection that the proxy does not hold.";
    DownPassed = "down_passed", Pass, "No proxy is running and on_proxy_down is \"pass\".";
    DirectFragment = "direct_fragment", Pass, "A later fragment of a TCP segment that passed.";
    TcpOpened = "tcp_opened", Steer, "A new TCP connection, given to the proxy.";
    TcpSteered = "tcp_steered", Steer, "Part of a TCP connection that the proxy holds.";
    TcpGone = "tcp_gone", Steer, "Part of a TCP connection that the proxy held and lost; it ends in the gateway.";
    UdpSteered = "udp_steered", Steer, "A datagram, given to the proxy.";
    DnsSteered = "dns_steered", Steer, "A DNS question, given to the proxy's resolver whomever it is for.";
    FragmentSteered = "fragment_steered", Steer, "A fragment, reassembled by the gateway and then given to the proxy.";
    DownDropped = "down_dropped", Drop, "No proxy is running and on_proxy_down is \"drop\".";
    MalformedTransport = "malformed_transport", Drop, "The TCP or UDP header is cut off.";
    LongExtensionChain = "long_extension_chain", Drop, "More IPv6 extension headers than can be followed.";
    LoneFragment = "lone_fragment", Drop, "A later fragment of a TCP segment whose first fragment was not seen.";
    ReplySent = "reply_sent", Pass, "A UDP reply of the proxy that got its source port.";
    LookupSteered = "lookup_steered", Steer, "A reassembled datagram that socket lookup gave to the proxy.";
    Exempt = "exempt", Pass, "Sent by the gateway from an exempt socket: the proxy's, or one exempt by gid, uid, cgroup or mark.";
    BoundToLink = "bound_to_link", Pass, "Sent by the gateway from a socket that is bound to this link.";
    ServiceReply = "service_reply", Pass, "Sent by a UDP service of the gateway to a peer that wrote to it first.";
    NoLinkHeader = "no_link_header", Drop, "Sent by the gateway and for the proxy, but there was no room for the link header that it needs to get there.";
    DhcpClient = "dhcp_client", Pass, "Sent by the gateway's own DHCP client.";
    Express = "express", Steer, "A datagram on the express lane: it goes the proxy's way, but in the kernel.";
    ExpressAnswer = "express_answer", Steer, "An answer on the express lane, on its way to the device.";
    ExpressDelivered = "express_delivered", Pass, "An answer on the express lane that has got to where the device is.";
    ExpressError = "express_error", Steer, "An ICMP error about a datagram on the express lane, on its way to the device.";
    ExpressAstray = "express_astray", Drop, "A datagram on the express lane that was about to leave by another link, or translated by a firewall.";
    OwnRedirect = "own_redirect", Drop, "An ICMPv6 redirect of the gateway, which would have told a device to go round it.";
}

impl Reason {
    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_indexed_in_order_and_their_words_differ() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(
                Reason::ALL[..index]
                    .iter()
                    .all(|other| other.word() != reason.word()),
                "{} stands twice",
                reason.word()
            );
        }
    }

    #[test]
    fn numbers_go_round_and_are_never_zero() {
        for (numbered, number) in [(1, 1), (0xffff, 0xffff), (0x1_0000, 1), (0, 1)] {
            assert_eq!(Express::number(numbered), number, "{numbered}");
        }
    }

    #[test]
    fn marks_are_told_apart_under_the_mask() {
        let marks = [
            MARK_STEER,
            MARK_EXEMPT,
            MARK_EXPRESS,
            MARK_EXPRESS_ANSWER,
            MARK_REPLY,
        ];
        for (index, mark) in marks.iter().enumerate() {
            assert_eq!(mark & !MARK_MASK, 0);
            assert!(!marks[..index].contains(mark));
            // The marks of the iptables guides.
            assert!([1, 2, 255].iter().all(|guide| guide & MARK_MASK != *mark));
        }
        // A reply never looks steered or exempt, whatever port it carries.
        assert!(
            (0..=u16::MAX)
                .all(|port| { (u32::from(port) << 16 | MARK_REPLY) & MARK_MASK == MARK_REPLY })
        );
    }
}
