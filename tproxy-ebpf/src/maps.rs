//! Every map: key, value, who writes, who reads, who evicts, how large and why.
//!
//! All are pinned under the gateway's folder in bpffs, so that commands work without a daemon and
//! a killed proxy leaves its state to the next one.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SockMap};
use tproxy_common::abi::{
    BYPASS_CAPACITY, Bypass, CALLERS_CAPACITY, Caller, Counter, DEVICES_CAPACITY, EXEMPT_CAPACITY,
    EXPRESS_FLOWS, Exempt, ExemptKey, ExemptMarks, Express, FRAGMENTS_CAPACITY, FlowV4, FlowV6,
    FragmentKey, LINKS_CAPACITY, LOCALS_CAPACITY, Link, Listener, Local, NETWORKS_CAPACITY,
    NOTES_CAPACITY, Note, NoteKey, Reason, SOURCES_CAPACITY, STEERED_CAPACITY, Settings, SourceV4,
    SourceV6, Traffic,
};
use tproxy_common::trace::{TRACE_BYTES, TraceFilter};

/// The settings in force. Written by user space, read for each packet.
#[map]
pub static SETTINGS: Array<Settings> = Array::pinned(1, 0);

/// Packets and bytes by reason. Written by the programs, one copy a CPU so that nothing is
/// contended; read by user space.
#[map]
pub static COUNTERS: PerCpuArray<Counter> = PerCpuArray::pinned(Reason::COUNT as u32, 0);

/// The proxy's sockets. Written by the proxy when it is ready; a socket that closes, and so a proxy
/// that dies, leaves the map by itself. An empty slot is how the programs know that no proxy runs.
#[map]
pub static LISTENERS: SockMap = SockMap::pinned(Listener::SLOTS, 0);

/// Bypassed prefixes. Written by the commands and the configuration; the programs count hits in
/// the values. Memory is used only for the entries that are there.
#[map]
pub static BYPASS_V4: LpmTrie<u32, Bypass> = LpmTrie::pinned(BYPASS_CAPACITY, BPF_F_NO_PREALLOC);

/// The same for IPv6.
#[map]
pub static BYPASS_V6: LpmTrie<[u32; 4], Bypass> =
    LpmTrie::pinned(BYPASS_CAPACITY, BPF_F_NO_PREALLOC);

/// Texts beside bypassed prefixes. Never read by the programs; a map so that they live exactly as
/// long as the prefixes.
#[map]
pub static NOTES: HashMap<NoteKey, Note> = HashMap::pinned(NOTES_CAPACITY, BPF_F_NO_PREALLOC);

/// The gateway's own addresses and subnets. Written by whoever follows netlink.
#[map]
pub static LOCALS_V4: LpmTrie<u32, Local> = LpmTrie::pinned(LOCALS_CAPACITY, BPF_F_NO_PREALLOC);

/// The same for IPv6.
#[map]
pub static LOCALS_V6: LpmTrie<[u32; 4], Local> =
    LpmTrie::pinned(LOCALS_CAPACITY, BPF_F_NO_PREALLOC);

/// Who may use the proxy: prefixes by link. Written with the locals.
#[map]
pub static SOURCES_V4: LpmTrie<SourceV4, u32> =
    LpmTrie::pinned(SOURCES_CAPACITY, BPF_F_NO_PREALLOC);

/// The same for IPv6.
#[map]
pub static SOURCES_V6: LpmTrie<SourceV6, u32> =
    LpmTrie::pinned(SOURCES_CAPACITY, BPF_F_NO_PREALLOC);

/// The attached links. Written by attach and detach, read by `sk_lookup`.
#[map]
pub static LINKS: HashMap<u32, Link> = HashMap::pinned(LINKS_CAPACITY, 0);

/// TCP connections that were steered, so that the rest of one that the proxy has lost is answered
/// with RST and never leaks to the server. Written for a steered SYN, removed by a SYN that passes;
/// the least recently used entry gives way. Losing an entry costs only the RST.
#[map]
pub static STEERED_V4: LruHashMap<FlowV4, u32> = LruHashMap::pinned(STEERED_CAPACITY, 0);

/// The same for IPv6.
#[map]
pub static STEERED_V6: LruHashMap<FlowV6, u32> = LruHashMap::pinned(STEERED_CAPACITY, 0);

/// The fate of the first fragment of a fragmented TCP segment: fragments that follow carry no
/// ports. UDP needs no such state, its verdict does not depend on ports.
#[map]
pub static FRAGMENTS: LruHashMap<FragmentKey, u32> = LruHashMap::pinned(FRAGMENTS_CAPACITY, 0);

/// Who wrote to a UDP service of the gateway, and when last: the answers go direct, or the peer would
/// see them come from elsewhere. Written by `sk_lookup`, read by `local_egress`. Only for ports that the kernel
/// does not give to sockets by itself: what a stranger writes must not lead a client's traffic past
/// the proxy. Losing an entry costs answers until the peer writes again.
#[map]
pub static CALLERS: LruHashMap<Caller, u64> = LruHashMap::pinned(CALLERS_CAPACITY, 0);

/// UDP flows that go the proxy's way without it, an entry for each direction. Made and removed by the proxy for flows that it
/// has decided about, and counted by it; the programs find what is to be done there, and count. Nothing that comes in by a link
/// makes an entry. Where none is, the proxy gets the datagram.
#[map]
pub static EXPRESS_V4: HashMap<FlowV4, Express> =
    HashMap::pinned(2 * EXPRESS_FLOWS, BPF_F_NO_PREALLOC);

/// The same for IPv6.
#[map]
pub static EXPRESS_V6: HashMap<FlowV6, Express> =
    HashMap::pinned(2 * EXPRESS_FLOWS, BPF_F_NO_PREALLOC);

/// Which of the numbered datagrams of an entry the proxy has sent on. Written by the proxy, read while a flow changes to the lane.
#[map]
pub static EXPRESS_REACHED: HashMap<u32, u32> =
    HashMap::pinned(4 * EXPRESS_FLOWS, BPF_F_NO_PREALLOC);

/// Whose sockets are exempt: gids, uids, cgroups. Written by the commands and the configuration, read by
/// `sock_create`.
#[map]
pub static EXEMPT: HashMap<ExemptKey, Exempt> = HashMap::pinned(EXEMPT_CAPACITY, BPF_F_NO_PREALLOC);

/// Marks of others that are exempt. Written as `EXEMPT`, read by `local_egress`.
#[map]
pub static EXEMPT_MARKS: Array<ExemptMarks> = Array::pinned(1, 0);

/// What devices send and get past the proxy. Written by the programs while `Settings::ACCOUNT` is set, read by user
/// space. The device that was silent for longest gives way. CPUs share an entry, as with bypassed prefixes: it costs less
/// than finding one's own copy.
#[map]
pub static DEVICES: LruHashMap<[u32; 4], Traffic> = LruHashMap::pinned(DEVICES_CAPACITY, 0);

/// The same, by the networks that they talk to. Written and read as `DEVICES`.
#[map]
pub static NETWORKS: LruHashMap<[u32; 4], Traffic> = LruHashMap::pinned(NETWORKS_CAPACITY, 0);

/// Who listens to decisions, and to which. Written by `trace`, and by it alone: `SETTINGS` has writers of its own, and
/// one that writes them back would undo what another has changed meanwhile. The programs take out a listener whose time is over.
#[map]
pub static TRACE: Array<TraceFilter> = Array::pinned(1, 0);

/// Decisions that somebody listens to, and messages. Written by the programs, read by `trace`.
#[map]
pub static TRACE_EVENTS: RingBuf = RingBuf::pinned(TRACE_BYTES, 0);

/// How many of them found no room.
#[map]
pub static TRACE_LOST: PerCpuArray<u64> = PerCpuArray::pinned(1, 0);
