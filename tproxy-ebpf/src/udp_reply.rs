//! tc egress on a LAN link: gives the proxy's UDP replies the port that the device wrote to.
//!
//! One socket of the proxy answers for every remote address. The address goes into the control
//! message of the datagram, the port into the upper half of its mark; here it moves into the header.
//!
//! It also ends ICMPv6 redirects of the gateway. They come where packets leave by the link that they came by,
//! and a device that follows one goes round the proxy too. For IPv4 there is a sysctl; for IPv6 there is none
//! (`ip6_forward` in the kernel's net/ipv6/ip6_output.c).

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use tproxy_common::abi::{
    MARK_EXPRESS_ANSWER, MARK_MASK, MARK_REPLY, MARK_REPLY_MASK, Reason, Settings,
};
use tproxy_common::packet::{Addresses, Packet, Transport};
use tproxy_common::trace::{Hook, Message};

use crate::facts::{count, settings};
use crate::skb::{Framing, Skb};
use crate::{account, trace};

#[inline(always)]
pub fn run(ctx: &TcContext, framing: Framing) -> i32 {
    let skb = Skb::new(ctx);
    let mark = skb.mark();
    let reply = mark & MARK_REPLY_MASK == MARK_REPLY;
    if !reply {
        if skb.came_in_by() != 0 {
            // What is forwarded pays for these questions only, unless it is to be counted.
            if mark & MARK_MASK == MARK_EXPRESS_ANSWER {
                // Its bytes are counted with its flow.
                count(Reason::ExpressDelivered, skb.len());
                return TC_ACT_UNSPEC;
            }
            if !settings().has(Settings::ACCOUNT) {
                return TC_ACT_UNSPEC;
            }
        } else if skb.sender().is_none() || !skb.is_redirect(framing) {
            return TC_ACT_UNSPEC;
        }
    }
    let redirect = !reply && skb.came_in_by() == 0;
    if redirect {
        count(Reason::OwnRedirect, skb.len());
        if !trace::is_on() {
            return TC_ACT_SHOT;
        }
    }
    let Ok(mut packet) = skb.parse(framing) else {
        return if redirect { TC_ACT_SHOT } else { TC_ACT_UNSPEC };
    };
    if redirect {
        tell(skb, &packet, Reason::OwnRedirect);
        return TC_ACT_SHOT;
    }
    if !reply {
        account::down(&packet.addresses, skb.len());
        return TC_ACT_UNSPEC;
    }
    if let Transport::Udp { ports } = &mut packet.transport {
        let settings = settings();
        let reply_port = match packet.addresses {
            Addresses::V4 { .. } => settings.reply_port_v4,
            Addresses::V6 { .. } => settings.reply_port_v6,
        };
        if ports.source != reply_port {
            return TC_ACT_UNSPEC;
        }
        let port = ((mark >> 16) as u16).to_be();
        if !skb.set_port(
            packet.transport_offset,
            packet.transport_offset,
            ports.source,
            port,
        ) {
            // A reply from the wrong port would be taken for another peer's.
            trace::message(Message::ReplyNotRewritten, 0);
            return TC_ACT_SHOT;
        }
        ports.source = port;
        count(Reason::ReplySent, skb.len());
        if trace::is_on() {
            tell(skb, &packet, Reason::ReplySent);
        }
    }
    // The port has no meaning further on, and the link below may be attached as well.
    skb.set_mark(0);
    TC_ACT_UNSPEC
}

#[inline(always)]
fn tell(skb: Skb, packet: &Packet, reason: Reason) {
    trace::decision(skb, Some(packet), Hook::UdpReply, reason);
}
