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
use tproxy_common::abi::{MARK_REPLY, MARK_REPLY_MASK, Reason};
use tproxy_common::packet::{Addresses, Transport};

use crate::facts::{count, settings};
use crate::skb::{Framing, Skb};

#[inline(always)]
pub fn run(ctx: &TcContext, framing: Framing) -> i32 {
    let skb = Skb::new(ctx);
    let mark = skb.mark();
    if mark & MARK_REPLY_MASK != MARK_REPLY {
        // What is forwarded has no socket here, so it pays for the first question only.
        if skb.sender().is_some() && skb.is_redirect(framing) {
            count(Reason::OwnRedirect, skb.len());
            return TC_ACT_SHOT;
        }
        return TC_ACT_UNSPEC;
    }
    let Ok(packet) = skb.parse(framing) else {
        return TC_ACT_UNSPEC;
    };
    if let Transport::Udp { ports } = &packet.transport {
        let settings = settings();
        let reply_port = match packet.addresses {
            Addresses::V4 { .. } => settings.reply_port_v4,
            Addresses::V6 { .. } => settings.reply_port_v6,
        };
        if ports.source != reply_port {
            return TC_ACT_UNSPEC;
        }
        let port = ((mark >> 16) as u16).to_be();
        if !skb.set_udp_source(packet.transport_offset, ports.source, port) {
            // A reply from the wrong port would be taken for another peer's.
            return TC_ACT_SHOT;
        }
        count(Reason::ReplySent, skb.len());
    }
    // The port has no meaning further on, and the link below may be attached as well.
    skb.set_mark(0);
    TC_ACT_UNSPEC
}
