//! tc egress on a WAN link: what the gateway itself sends turns round here, if it is for the proxy.
//!
//! It comes in again by `lo`, where `lo_ingress` gives it to the proxy's sockets.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;
use tproxy_common::abi::{FragmentFate, MARK_EXEMPT, MARK_MASK, MARK_STEER, Reason, Settings};
use tproxy_common::packet::{Packet, Transport};
use tproxy_common::verdict::{Target, Verdict, decide_own};

use crate::act::{CONTINUE, down, drop, pass, pass_on};
use crate::exempt::has_exempt_mark;
use crate::facts::{self, SkbFacts, count, remember_fragment, remember_steered};
use crate::skb::{Framing, LOOPBACK, Skb};
use crate::socket::listener_is_up;

#[inline(always)]
pub fn run(ctx: &TcContext, framing: Framing) -> i32 {
    let skb = Skb::new(ctx);
    // What is forwarded has no socket here, and was decided about where it came in.
    let Some(sender) = skb.sender() else {
        return CONTINUE;
    };
    // The socket is asked as well, since a firewall may have changed the mark of the packet.
    if is_exempt(skb.mark()) || is_exempt(sender.mark) {
        return pass(skb, Reason::Exempt);
    }
    // Answers come back by `lo`, where such a socket does not hear them; and it has chosen its way.
    if sender.bound_to != 0 {
        return pass(skb, Reason::BoundToLink);
    }
    let Ok(packet) = skb.parse(framing) else {
        return CONTINUE;
    };
    let facts = SkbFacts::<true> {
        skb,
        settings: facts::settings(),
    };
    match decide_own(&packet, &facts) {
        Verdict::Pass(reason) => pass_on(skb, &packet, reason),
        Verdict::Drop(reason) => drop(skb, reason),
        Verdict::Steer(target) => steer(skb, framing, &packet, target, facts.settings),
    }
}

#[inline(always)]
fn is_exempt(mark: u32) -> bool {
    mark & MARK_MASK == MARK_EXEMPT || mark != 0 && has_exempt_mark(mark)
}

#[inline(always)]
fn steer(skb: Skb, framing: Framing, packet: &Packet, target: Target, settings: Settings) -> i32 {
    let (listener, reason) = match target {
        Target::Connection => return turn_round(skb, framing, Reason::TcpSteered),
        Target::Gone => return turn_round(skb, framing, Reason::TcpGone),
        Target::Reassembly(listener) => (listener, Reason::FragmentSteered),
        Target::Listener(listener) => match packet.transport {
            Transport::Tcp { .. } => (listener, Reason::TcpOpened),
            _ => (listener, Reason::UdpSteered),
        },
        // Not to the gateway itself: that never leaves by a WAN link.
        Target::Resolver { listener, .. } => (listener, Reason::DnsSteered),
    };
    if !listener_is_up(listener) {
        return down(skb, packet, settings);
    }
    if let Transport::Tcp { ports, opens } = &packet.transport {
        if packet.fragment.is_some() {
            remember_fragment(packet, FragmentFate::Steered);
        }
        if *opens {
            remember_steered(&packet.addresses, ports);
        }
    }
    turn_round(skb, framing, reason)
}

#[inline(always)]
fn turn_round(skb: Skb, framing: Framing, reason: Reason) -> i32 {
    let length = skb.len();
    // `lo` has a link header, and the kernel refuses a redirected packet that comes without.
    if matches!(framing, Framing::None) && !skb.add_link_header() {
        return drop(skb, Reason::NoLinkHeader);
    }
    count(reason, length);
    skb.set_own_mark(MARK_STEER);
    // SAFETY: the helper takes plain numbers.
    unsafe { bpf_redirect(LOOPBACK, u64::from(BPF_F_INGRESS)) as i32 }
}
