//! tc ingress on `lo`: gives what the gateway itself sent, and `local_egress` turned round, to the
//! proxy's sockets. All else leaves at the first question.

use aya_ebpf::programs::TcContext;
use tproxy_common::abi::{MARK_MASK, MARK_STEER};
use tproxy_common::packet::Transport;

use crate::act::CONTINUE;
use crate::skb::{Framing, Skb};
use crate::socket::{assign_connection, assign_listener};

#[inline(always)]
pub fn run(ctx: &TcContext) -> i32 {
    let skb = Skb::new(ctx);
    if skb.mark() & MARK_MASK != MARK_STEER {
        return CONTINUE;
    }
    // Its link header names the router that it was on its way to.
    skb.set_for_host();
    let Ok(packet) = skb.parse(Framing::Ethernet) else {
        return CONTINUE;
    };
    // Fragments are put together first, and socket lookup finds the socket then.
    if packet.fragment.is_one() {
        return CONTINUE;
    }
    match &packet.transport {
        Transport::Udp { .. } => {}
        Transport::Tcp { opens, ports } => {
            if assign_connection(skb, &packet.addresses, ports) || !*opens {
                return CONTINUE;
            }
        }
        _ => return CONTINUE,
    }
    // With the proxy gone since, the packet ends here: it is marked, and no socket wants it.
    let _ = assign_listener(skb.as_ptr().cast(), packet.listener(), &packet.addresses);
    CONTINUE
}
