//! tc ingress on a LAN link: the gate that everything from the devices passes.

use core::cell::Cell;

use aya_ebpf::programs::TcContext;
use tproxy_common::abi::{MARK_STEER, Reason, Settings};
use tproxy_common::packet::{Packet, Transport, Unparsed};
use tproxy_common::trace::Hook;
use tproxy_common::verdict::{Target, Verdict, decide, is_forwarded};

use crate::act::{CONTINUE, Done, down, pass_on, reason_of, remember};
use crate::express;
use crate::facts::{self, SkbFacts, count};
use crate::skb::{Framing, Skb};
use crate::socket::{Assigned, assign_listener, listener_is_up};
use crate::{account, trace};

#[inline(always)]
pub fn run(ctx: &TcContext, framing: Framing) -> i32 {
    let skb = Skb::new(ctx);
    if !skb.is_for_host() {
        let many = skb.is_for_many();
        return leave(
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
        Err(Unparsed::NotIp) => return leave(skb, Reason::NotIp),
        Err(Unparsed::Malformed) => return leave(skb, Reason::MalformedIp),
    };
    let facts = SkbFacts::<false> {
        skb,
        settings: facts::settings(),
        exempt: false,
        locality: Cell::new(None),
    };
    let done = match decide(&packet, &facts) {
        Verdict::Pass(reason) => pass_on(&packet, reason),
        Verdict::Drop(reason) => Done::ends(reason),
        Verdict::Steer(target) => steer(skb, framing, &packet, target, facts.settings),
    };
    count(done.reason, skb.len());
    if facts.settings.has(Settings::ACCOUNT) && is_forwarded(&packet, done.reason, &facts) {
        account::up(&packet.addresses, skb.interface(), skb.len());
    }
    if trace::is_on() {
        trace::decision(skb, Some(&packet), Hook::LanIngress, done.reason);
    }
    done.action
}

/// Lets pass what is not parsed.
#[inline(always)]
fn leave(skb: Skb, reason: Reason) -> i32 {
    count(reason, skb.len());
    if trace::is_on() {
        trace::decision(skb, None, Hook::LanIngress, reason);
    }
    CONTINUE
}

#[inline(always)]
fn steer(skb: Skb, framing: Framing, packet: &Packet, target: Target, settings: Settings) -> Done {
    let listener = packet.listener();
    if matches!(target, Target::Listener)
        && matches!(packet.transport, Transport::Udp { .. })
        && settings.has(Settings::EXPRESS)
        && let Some(done) = express::send(skb, framing, packet)
    {
        return done;
    }
    let up = match target {
        // Found already, or nobody is to be found.
        Target::Connection | Target::Gone => true,
        Target::Reassembly => listener_is_up(listener, &packet.addresses),
        Target::Listener | Target::Resolver | Target::OwnResolver => {
            assign_listener(skb.as_ptr().cast(), listener, &packet.addresses) == Assigned::Done
        }
    };
    if !up {
        return match target {
            // Whom the other one asks in turn is decided anew.
            Target::OwnResolver => pass_on(packet, Reason::OwnAddress),
            _ => down(packet, settings),
        };
    }
    match target {
        Target::Connection | Target::Gone => {}
        _ => remember(packet),
    }
    skb.set_own_mark(MARK_STEER);
    Done::goes_on(reason_of(packet, target))
}
