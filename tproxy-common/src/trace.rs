//! Tracing: what is told of a decision, and who wants to hear of which.
//!
//! The programs ask [`TraceFilter::until`] for each packet, and nothing more while nobody listens. What passes
//! [`TraceFilter::wants`] goes into a ring buffer as a [`TraceEvent`].

use core::mem::size_of;

use crate::abi::Reason;
use crate::packet::{Addresses, Packet, Transport};

/// For how long after its last sign of life somebody counts as listening, in nanoseconds.
pub const TRACE_LIFE: u64 = 3_000_000_000;
/// The bytes of the ring buffer: a power of two, and of whole pages. About 3,200 events.
pub const TRACE_BYTES: u32 = 256 << 10;

/// Who listens, and to what. Each condition has a value that all packets meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TraceFilter {
    /// Somebody listens until then (`CLOCK_BOOTTIME`, nanoseconds). 0: nobody does. Whoever listens puts it off again and
    /// again, so that one that was killed costs nothing for long.
    pub until: u64,
    /// The set of reasons: a bit for each, by its index.
    pub reasons: u64,
    /// The source under its mask; IPv4 in its IPv4-mapped form.
    pub source: [u32; 4],
    /// Which bits of the source count.
    pub source_mask: [u32; 4],
    /// The destination under its mask; likewise.
    pub destination: [u32; 4],
    /// Which bits of the destination count.
    pub destination_mask: [u32; 4],
    /// A number that no listener before had. Each event has it, so that nobody is told what another one asked for.
    pub session: u32,
    /// The index of the link; 0 for any.
    pub link: u32,
    /// One of the ports, network order; 0 for any.
    pub port: u16,
    /// The destination port, network order; 0 for any.
    pub destination_port: u16,
    /// A set of `TraceEvent::TCP`, `UDP` and `OTHER`.
    pub protocols: u8,
    /// A set of `TraceEvent::IPV4`, `IPV6` and `NOT_IP`.
    pub families: u8,
    /// 1: of TCP only what opens a connection.
    pub new: u8,
    /// Zero.
    pub unused: u8,
}

/// A decision about a packet, or a message of the programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct TraceEvent {
    /// When (`CLOCK_BOOTTIME`, nanoseconds).
    pub time: u64,
    /// The sender; IPv4 in its IPv4-mapped form.
    pub source: [u32; 4],
    /// The destination; likewise.
    pub destination: [u32; 4],
    /// Of whose [`TraceFilter`].
    pub session: u32,
    /// The index of the link.
    pub link: u32,
    /// The bytes of the packet, link header included; 0 where the hook does not know.
    pub length: u32,
    /// The mark that the packet goes on with.
    pub mark: u32,
    /// Of a message: the error number, or 0.
    pub error: u32,
    /// The sender's port, network order; 0 if there is none.
    pub source_port: u16,
    /// The destination's port; likewise.
    pub destination_port: u16,
    /// The index of a [`Reason`] or, in a message, of a [`Message`].
    pub code: u16,
    /// [`TraceEvent::DECISION`] or [`TraceEvent::MESSAGE`].
    pub kind: u8,
    /// A [`Hook`].
    pub hook: u8,
    /// [`TraceEvent::TCP`], [`TraceEvent::UDP`] or [`TraceEvent::OTHER`].
    pub protocol: u8,
    /// [`TraceEvent::IPV4`], [`TraceEvent::IPV6`] or [`TraceEvent::NOT_IP`].
    pub family: u8,
    /// 1: it opens a TCP connection.
    pub opens: u8,
    /// 1: a fragment.
    pub fragment: u8,
}

const _: () = assert!(size_of::<TraceFilter>() == 96);
const _: () = assert!(size_of::<TraceEvent>() == 72);
const _: () = assert!(Reason::COUNT <= 64);

/// Where a decision was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Hook {
    /// tc ingress on a LAN link.
    LanIngress = 1,
    /// tc egress on a WAN link.
    LocalEgress = 2,
    /// tc egress on a LAN link.
    UdpReply = 3,
    /// Socket lookup.
    SkLookup = 4,
    /// tc ingress on a link that express datagrams come by.
    WanIngress = 5,
    /// tc egress on a link that express datagrams leave by.
    WanEgress = 6,
}

impl Hook {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::LanIngress,
        Self::LocalEgress,
        Self::UdpReply,
        Self::SkLookup,
        Self::WanIngress,
        Self::WanEgress,
    ];

    /// The word for it: the name of the program.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::LanIngress => "lan_ingress",
            Self::LocalEgress => "local_egress",
            Self::UdpReply => "udp_reply",
            Self::SkLookup => "sk_lookup",
            Self::WanIngress => "wan_ingress",
            Self::WanEgress => "wan_egress",
        }
    }
}

told! {
    /// What the programs tell beside their decisions: what should not happen.
    #[repr(u16)]
    Message:
    NotAssigned = "not_assigned", "The kernel did not give a packet to the proxy's listener.";
    ConnectionNotAssigned = "connection_not_assigned", "The kernel did not give a segment to the connection that the proxy holds.";
    SteeredNotRemembered = "steered_not_remembered", "A steered connection could not be remembered, so it gets no RST if the proxy is killed.";
    FragmentNotRemembered = "fragment_not_remembered", "The fate of a first fragment could not be remembered, so those that follow may be dropped.";
    CallerNotRemembered = "caller_not_remembered", "Who wrote to a UDP service could not be remembered, so the answer may go through the proxy.";
    NotCounted = "not_counted", "There was no room to count what a device sends past the proxy.";
    ReplyNotRewritten = "reply_not_rewritten", "A UDP reply could not be given its source port and was dropped.";
}

impl TraceEvent {
    /// Kind: a decision.
    pub const DECISION: u8 = 0;
    /// Kind: a message.
    pub const MESSAGE: u8 = 1;
    /// Protocol: TCP.
    pub const TCP: u8 = 1;
    /// Protocol: UDP.
    pub const UDP: u8 = 1 << 1;
    /// Protocol: another, or it cannot be told.
    pub const OTHER: u8 = 1 << 2;
    /// Family: IPv4.
    pub const IPV4: u8 = 1;
    /// Family: IPv6.
    pub const IPV6: u8 = 1 << 1;
    /// Family: none, or it cannot be told.
    pub const NOT_IP: u8 = 1 << 2;

    /// What is told of a packet that could not be parsed. What became of it, and where, is to be added.
    #[inline(always)]
    #[must_use]
    pub const fn empty(session: u32, time: u64) -> Self {
        Self {
            time,
            source: [0; 4],
            destination: [0; 4],
            session,
            link: 0,
            length: 0,
            mark: 0,
            error: 0,
            source_port: 0,
            destination_port: 0,
            code: 0,
            kind: Self::DECISION,
            hook: 0,
            protocol: Self::OTHER,
            family: Self::NOT_IP,
            opens: 0,
            fragment: 0,
        }
    }

    /// Adds what is known of the packet.
    #[inline(always)]
    pub fn describe(&mut self, packet: &Packet) {
        (self.source, self.destination) = packet.addresses.mapped();
        self.family = match packet.addresses {
            Addresses::V4 { .. } => Self::IPV4,
            Addresses::V6 { .. } => Self::IPV6,
        };
        self.fragment = packet.fragment.is_one().into();
        match &packet.transport {
            Transport::Tcp { ports, opens } => {
                self.protocol = Self::TCP;
                self.source_port = ports.source;
                self.destination_port = ports.destination;
                self.opens = (*opens).into();
            }
            Transport::Udp { ports } => {
                self.protocol = Self::UDP;
                self.source_port = ports.source;
                self.destination_port = ports.destination;
            }
            Transport::LaterFragment { tcp } => {
                self.protocol = if *tcp { Self::TCP } else { Self::UDP };
            }
            Transport::Other | Transport::CutOff | Transport::Buried => {}
        }
    }
}

impl TraceFilter {
    /// Every reason.
    pub const ALL_REASONS: u64 = u64::MAX;
    /// Every protocol.
    pub const ALL_PROTOCOLS: u8 = TraceEvent::TCP | TraceEvent::UDP | TraceEvent::OTHER;
    /// Every family.
    pub const ALL_FAMILIES: u8 = TraceEvent::IPV4 | TraceEvent::IPV6 | TraceEvent::NOT_IP;

    /// Nobody listens; all conditions are met by every packet.
    #[must_use]
    pub const fn everything() -> Self {
        Self {
            until: 0,
            reasons: Self::ALL_REASONS,
            source: [0; 4],
            source_mask: [0; 4],
            destination: [0; 4],
            destination_mask: [0; 4],
            session: 0,
            link: 0,
            port: 0,
            destination_port: 0,
            protocols: Self::ALL_PROTOCOLS,
            families: Self::ALL_FAMILIES,
            new: 0,
            unused: 0,
        }
    }

    /// Is this decision one of those that are asked for?
    #[inline(always)]
    #[must_use]
    pub const fn wants(&self, event: &TraceEvent) -> bool {
        self.reasons >> (event.code & 63) & 1 != 0
            && self.protocols & event.protocol != 0
            && self.families & event.family != 0
            && (self.new == 0 || event.protocol != TraceEvent::TCP || event.opens != 0)
            && (self.link == 0 || self.link == event.link)
            && (self.port == 0
                || self.port == event.source_port
                || self.port == event.destination_port)
            && (self.destination_port == 0 || self.destination_port == event.destination_port)
            && is_within(&event.source, &self.source, &self.source_mask)
            && is_within(
                &event.destination,
                &self.destination,
                &self.destination_mask,
            )
    }
}

/// Do these addresses agree in the bits of the mask?
#[inline(always)]
const fn is_within(address: &[u32; 4], prefix: &[u32; 4], mask: &[u32; 4]) -> bool {
    ((address[0] ^ prefix[0]) & mask[0])
        | ((address[1] ^ prefix[1]) & mask[1])
        | ((address[2] ^ prefix[2]) & mask[2])
        | ((address[3] ^ prefix[3]) & mask[3])
        == 0
}
