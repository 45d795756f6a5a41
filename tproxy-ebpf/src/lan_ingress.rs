//! tc ingress on a LAN link: the gate that everything from the devices passes.

use aya_ebpf::programs::TcContext;
use tproxy_common::abi::{FragmentFate, Listener, MARK_STEER, Reason, Settings};
use tproxy_common::packet::{Packet, Transport, Unparsed};
use tproxy_common::verdict::{Target, Verdict, decide};

use crate::act::{down, drop, no_resolver, pass, pass_on};
use crate::facts::{self, SkbFacts, remember_fragment, remember_steered, tcp_ports};
use crate::skb::{Framing, Skb};
use crate::socket::{self, Assigned};

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
    };
    match decide(&packet, &facts) {
        Verdict::Pass(reason) => pass_on(skb, &packet, reason),
        Verdict::Drop(reason) => drop(skb, reason),
        Verdict::Steer(target) => steer(skb, &packet, target, facts.settings),
    }
}

#[inline(always)]
fn steer(skb: Skb, packet: &Packet, target: Target, settings: Settings) -> i32 {
    match target {
        Target::Connection => mark(skb, Reason::TcpSteered),
        Target::Gone => mark(skb, Reason::TcpGone),
        Target::Reassembly(listener) => {
            if !socket::listener_is_up(listener) {
                return down(skb, packet, settings);
            }
            if let Transport::Tcp { ports, opens } = &packet.transport {
                remember_fragment(packet, FragmentFate::Steered);
                if *opens {
                    remember_steered(&packet.addresses, ports);
                }
            }
            mark(skb, Reason::FragmentSteered)
        }
        Target::Resolver { listener, own } => {
            if socket::assign_listener(skb.as_ptr().cast(), listener) == Assigned::Down {
                return no_resolver(skb, packet, settings, own);
            }
            if let Transport::Tcp { ports, .. } = &packet.transport {
                remember_steered(&packet.addresses, ports);
            }
            mark(skb, Reason::DnsSteered)
        }
        Target::Listener(listener) => {
            match socket::assign_listener(skb.as_ptr().cast(), listener) {
                Assigned::Down => down(skb, packet, settings),
                Assigned::Done => match listener {
                    Listener::Udp4 | Listener::Udp6 => mark(skb, Reason::UdpSteered),
                    Listener::Tcp4 | Listener::Tcp6 => {
                        if let Some(ports) = tcp_ports(packet) {
                            remember_steered(&packet.addresses, ports);
                        }
                        mark(skb, Reason::TcpOpened)
                    }
                },
            }
        }
    }
}

#[inline(always)]
fn mark(skb: Skb, reason: Reason) -> i32 {
    skb.set_own_mark(MARK_STEER);
    pass(skb, reason)
}
