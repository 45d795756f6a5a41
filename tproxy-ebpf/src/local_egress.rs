//! tc egress on a WAN link: what the gateway itself sends turns round here, if it is for the proxy.
//!
//! It comes in again by `lo`, where `lo_ingress` gives it to the proxy's sockets.

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;
use tproxy_common::abi::{MARK_EXEMPT, MARK_MASK, MARK_STEER, Reason, Settings};
use tproxy_common::packet::Packet;
use tproxy_common::verdict::{Target, Verdict, decide_own};

use crate::act::{CONTINUE, down, drop, pass, pass_on, reason_of, remember};
use crate::exempt::has_exempt_mark;
use crate::facts::{self, SkbFacts, count};
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
    let marks = [skb.mark(), sender.mark];
    if marks[0] & MARK_MASK == MARK_EXEMPT || marks[1] & MARK_MASK == MARK_EXEMPT {
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
        // Not before the decision: a mark is exempted while connections with it live, and each of them
        // goes on as it began.
        exempt: has_exempt_mark(marks[0]) || has_exempt_mark(marks[1]),
    };
    match decide_own(&packet, &facts) {
        Verdict::Pass(reason) => pass_on(skb, &packet, reason),
        Verdict::Drop(reason) => drop(skb, reason),
        Verdict::Steer(target) => steer(skb, framing, &packet, target, facts.settings),
    }
}

#[inline(always)]
fn steer(skb: Skb, framing: Framing, packet: &Packet, target: Target, settings: Settings) -> i32 {
    if !matches!(target, Target::Connection | Target::Gone) {
        if !listener_is_up(packet.listener()) {
            return down(skb, packet, settings);
        }
        remember(packet);
    }
    turn_round(skb, framing, reason_of(packet, target))
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
