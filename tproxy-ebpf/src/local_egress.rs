//! tc egress on a WAN link: what the gateway itself sends turns round here, if it is for the proxy.
//!
//! It comes in again by `lo`, where `lo_ingress` gives it to the proxy's sockets.

use core::cell::Cell;

use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated::bpf_redirect;
use aya_ebpf::programs::TcContext;
use tproxy_common::abi::{MARK_EXEMPT, MARK_MASK, MARK_STEER, Reason, Settings};
use tproxy_common::packet::{Packet, Transport};
use tproxy_common::trace::Hook;
use tproxy_common::verdict::{Target, Verdict, decide_own};

use crate::act::{CONTINUE, Done, down, pass_on, reason_of, remember};
use crate::exempt::has_exempt_mark;
use crate::express;
use crate::facts::{self, SkbFacts, count};
use crate::skb::{Framing, LOOPBACK, Skb};
use crate::socket::listener_is_up;
use crate::trace;

#[inline(always)]
pub fn run(ctx: &TcContext, framing: Framing) -> i32 {
    let skb = Skb::new(ctx);
    // What is forwarded has no socket here, and was decided about where it came in.
    let Some(sender) = skb.sender() else {
        return CONTINUE;
    };
    // The socket is asked as well, since a firewall may have changed the mark of the packet.
    let marks = [skb.mark(), sender.mark];
    let apart = if marks[0] & MARK_MASK == MARK_EXEMPT || marks[1] & MARK_MASK == MARK_EXEMPT {
        Some(Reason::Exempt)
    } else if sender.bound_to != 0 {
        // Answers come back by `lo`, where such a socket does not hear them; and it has chosen its way.
        Some(Reason::BoundToLink)
    } else {
        None
    };
    // Only who listens wants to know what kind of packet it is.
    if let Some(reason) = apart
        && !trace::is_on()
    {
        count(reason, skb.len());
        return CONTINUE;
    }
    let length = skb.len();
    let Ok(packet) = skb.parse(framing) else {
        if let Some(reason) = apart {
            count(reason, length);
        }
        return CONTINUE;
    };
    let done = if let Some(reason) = apart {
        Done::goes_on(reason)
    } else {
        let facts = SkbFacts::<true> {
            skb,
            settings: facts::settings(),
            // Not before the decision: a mark is exempted while connections with it live, and each of them
            // goes on as it began.
            exempt: has_exempt_mark(marks[0]) || has_exempt_mark(marks[1]),
            locality: Cell::new(None),
        };
        match decide_own(&packet, &facts) {
            Verdict::Pass(reason) => pass_on(&packet, reason),
            Verdict::Drop(reason) => Done::ends(reason),
            Verdict::Steer(target) => steer(skb, framing, &packet, target, facts.settings),
        }
    };
    // Without the link header that it may have got since.
    count(
        done.reason,
        match framing {
            Framing::Ethernet => skb.len(),
            Framing::None => length,
        },
    );
    if trace::is_on() {
        trace::decision(skb, Some(&packet), Hook::LocalEgress, done.reason);
    }
    done.action
}

#[inline(always)]
fn steer(skb: Skb, framing: Framing, packet: &Packet, target: Target, settings: Settings) -> Done {
    if matches!(target, Target::Listener)
        && matches!(packet.transport, Transport::Udp { .. })
        && settings.has(Settings::EXPRESS)
        && let Some(done) = express::send_own(skb, framing, packet)
    {
        return done;
    }
    if !matches!(target, Target::Connection | Target::Gone) {
        if !listener_is_up(packet.listener(), &packet.addresses) {
            return down(packet, settings);
        }
        remember(packet);
    }
    turn_round(skb, framing, reason_of(packet, target))
}

#[inline(always)]
fn turn_round(skb: Skb, framing: Framing, reason: Reason) -> Done {
    // `lo` has a link header, and the kernel refuses a redirected packet that comes without.
    if matches!(framing, Framing::None) && !skb.add_link_header() {
        return Done::ends(Reason::NoLinkHeader);
    }
    skb.set_own_mark(MARK_STEER);
    Done {
        // SAFETY: the helper takes plain numbers.
        action: unsafe { bpf_redirect(LOOPBACK, u64::from(BPF_F_INGRESS)) as i32 },
        reason,
    }
}
