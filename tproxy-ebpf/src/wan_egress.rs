//! tc egress on a link that express datagrams leave by: gives them the proxy's address and port as their source.
//!
//! Until here they are the device's, so routing and firewall see who sends them.

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::programs::TcContext;
use tproxy_common::abi::{MARK_EXPRESS, MARK_MASK, Reason};
use tproxy_common::trace::Hook;

use crate::facts::count;
use crate::skb::{Framing, Skb};
use crate::{express, trace};

#[inline(always)]
pub fn run(ctx: &TcContext, framing: Framing) -> i32 {
    let skb = Skb::new(ctx);
    if skb.mark() & MARK_MASK != MARK_EXPRESS {
        return TC_ACT_UNSPEC;
    }
    if express::leave(skb, framing) {
        skb.set_own_mark(0);
        return TC_ACT_UNSPEC;
    }
    count(Reason::ExpressAstray, skb.len());
    if trace::is_on() {
        trace::bare(skb, framing, Hook::WanEgress, Reason::ExpressAstray);
    }
    TC_ACT_SHOT
}
