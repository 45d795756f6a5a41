//! What is done with a packet, and counted, at each tc hook that decides.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use tproxy_common::abi::{FragmentFate, Reason, Settings};
use tproxy_common::packet::{Packet, Transport};

use crate::facts::{count, forget_steered, remember_fragment};
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

/// No proxy is running, and this is a DNS question. What asks the gateway itself reaches whoever answers
/// there without us; whom that asks in turn is decided anew.
#[inline(always)]
pub fn no_resolver(skb: Skb, packet: &Packet, settings: Settings, own: bool) -> i32 {
    if own {
        pass_on(skb, packet, Reason::OwnAddress)
    } else {
        down(skb, packet, settings)
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
