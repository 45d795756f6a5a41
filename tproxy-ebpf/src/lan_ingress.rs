//! tc ingress on a LAN link: the gate that everything from the devices passes.

use aya_ebpf::programs::TcContext;
use tproxy_common::abi::{MARK_STEER, Reason, Settings};
use tproxy_common::packet::{Packet, Unparsed};
use tproxy_common::verdict::{Target, Verdict, decide};

use crate::act::{down, drop, pass, pass_on, reason_of, remember};
use crate::facts::{self, SkbFacts};
use crate::skb::{Framing, Skb};
use crate::socket::{Assigned, assign_listener, listener_is_up};

#[inline(always)]
pub fn run(ctx: &TcContext, framing: Framing) -> i32 {
    let skb = Skb::new(ctx);
    if !skb.is_for_host() {
        let many = skb.is_for_many();
        return pass(
            skb,
            if many {
                Reason::Multicast
            } else {
                Reason::OtherHost
            },
        );
    }
    let packet = match skb.parse(framing) {
        Ok(packet) => packet,
        Err(Unparsed::NotIp) => return pass(skb, Reason::NotIp),
        Err(Unparsed::Malformed) => return pass(skb, Reason::MalformedIp),
    };
    let facts = SkbFacts::<false> {
        skb,
        settings: facts::settings(),
        exempt: false,
    };
    match decide(&packet, &facts) {
        Verdict::Pass(reason) => pass_on(skb, &packet, reason),
        Verdict::Drop(reason) => drop(skb, reason),
        Verdict::Steer(target) => steer(skb, &packet, target, facts.settings),
    }
}

#[inline(always)]
fn steer(skb: Skb, packet: &Packet, target: Target, settings: Settings) -> i32 {
    let listener = packet.listener();
    let up = match target {
        // Found already, or nobody is to be found.
        Target::Connection | Target::Gone => true,
        Target::Reassembly => listener_is_up(listener),
        Target::Listener | Target::Resolver | Target::OwnResolver => {
            assign_listener(skb.as_ptr().cast(), listener) == Assigned::Done
        }
    };
    if !up {
        return match target {
            // Whom the other one asks in turn is decided anew.
            Target::OwnResolver => pass_on(skb, packet, Reason::OwnAddress),
            _ => down(skb, packet, settings),
        };
    }
    match target {
        Target::Connection | Target::Gone => {}
        _ => remember(packet),
    }
    skb.set_own_mark(MARK_STEER);
    pass(skb, reason_of(packet, target))
}
