//! tc ingress on a link that express datagrams come by: gives answers, and errors about datagrams, to the device that they
//! are for.
//!
//! All else goes on to whoever it is for. Nothing that comes in here makes an entry in a map.

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::programs::TcContext;
use tproxy_common::packet::PROTOCOL_UDP;
use tproxy_common::trace::Hook;

use crate::facts::count;
use crate::icmp::{ICMP, ICMPV6};
use crate::skb::{Framing, Skb};
use crate::{express, trace};

#[inline(always)]
pub fn run(ctx: &TcContext, framing: Framing) -> i32 {
    let skb = Skb::new(ctx);
    if !skb.is_for_host() {
        return TC_ACT_UNSPEC;
    }
    let length = skb.len();
    let done = match skb.carries(framing) {
        Some(PROTOCOL_UDP) => express::receive(skb, framing),
        Some(ICMP | ICMPV6) => express::receive_error(skb, framing),
        _ => None,
    };
    let Some(done) = done else {
        return TC_ACT_UNSPEC;
    };
    count(done.reason, length);
    if trace::is_on() {
        trace::bare(skb, framing, Hook::WanIngress, done.reason);
    }
    done.action
}
