//! What is done with a packet, and counted, at each tc hook that decides.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use tproxy_common::abi::{FragmentFate, Reason, Settings};
use tproxy_common::packet::{Packet, Transport};
use tproxy_common::verdict::Target;

use crate::facts::{count, forget_steered, remember_fragment, remember_steered};
use crate::skb::Skb;

/// `TC_ACT_UNSPEC` lets the programs and filters behind this one have their say; a tcx chain reads
/// the same value as `TCX_NEXT`.
pub const CONTINUE: i32 = TC_ACT_UNSPEC;

/// No proxy is running: the declared policy decides.
#[inline(always)]
pub fn down(skb: Skb, packet: &Packet, settings: Settings) -> i32 {
    if settings.has(Settings::DOWN_DROPS) {
        drop(skb, Reason::DownDropped)
    } else {
        pass_on(skb, packet, Reason::DownPassed)
    }
}

/// Why a packet for this target is steered.
#[inline(always)]
pub fn reason_of(packet: &Packet, target: Target) -> Reason {
    match target {
        Target::Connection => Reason::TcpSteered,
        Target::Gone => Reason::TcpGone,
        Target::Reassembly => Reason::FragmentSteered,
        Target::Resolver | Target::OwnResolver => Reason::DnsSteered,
        Target::Listener => match packet.transport {
            Transport::Tcp { .. } => Reason::TcpOpened,
            _ => Reason::UdpSteered,
        },
    }
}

/// Remembers what follows from the steering of a packet for those behind it.
#[inline(always)]
pub fn remember(packet: &Packet) {
    if let Transport::Tcp { ports, opens } = &packet.transport {
        if packet.fragment.is_some() {
            remember_fragment(packet, FragmentFate::Steered);
        }
        if *opens {
            remember_steered(&packet.addresses, ports);
        }
    }
}

/// Lets a packet pass, forgets what it makes untrue and remembers what follows for its fragments.
#[inline(always)]
pub fn pass_on(skb: Skb, packet: &Packet, reason: Reason) -> i32 {
    let fragment = packet.fragment.is_some();
    match &packet.transport {
        Transport::Tcp { opens, ports } => {
            if *opens {
                forget_steered(&packet.addresses, ports);
            }
            if fragment {
                remember_fragment(packet, FragmentFate::Passed);
            }
        }
        // For its ports. For any other reason the fragments that follow pass by themselves.
        Transport::Udp { .. } if fragment && matches!(reason, Reason::ServiceReply) => {
            remember_fragment(packet, FragmentFate::Passed);
        }
        _ => {}
    }
    pass(skb, reason)
}

#[inline(always)]
pub fn pass(skb: Skb, reason: Reason) -> i32 {
    count(reason, skb.len());
    CONTINUE
}

#[inline(always)]
pub fn drop(skb: Skb, reason: Reason) -> i32 {
    count(reason, skb.len());
    TC_ACT_SHOT
}
