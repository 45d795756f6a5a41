//! The kernel half of tproxy-bpf: the table of programs. Each one gathers facts, asks
//! `tproxy_common` what to do, and does it.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod account;
mod act;
mod exempt;
mod express;
mod facts;
mod icmp;
mod lan_ingress;
mod lo_ingress;
mod local_egress;
mod maps;
mod sk_lookup;
mod skb;
mod socket;
mod trace;
mod udp_reply;
mod wan_egress;
mod wan_ingress;

use aya_ebpf::macros::{cgroup_sock, classifier, sk_lookup};
use aya_ebpf::programs::{SkLookupContext, SockContext, TcContext};

use crate::skb::Framing;

#[classifier]
fn lan_ingress(ctx: TcContext) -> i32 {
    lan_ingress::run(&ctx, Framing::Ethernet)
}

#[classifier]
fn lan_ingress_l3(ctx: TcContext) -> i32 {
    lan_ingress::run(&ctx, Framing::None)
}

#[classifier]
fn udp_reply(ctx: TcContext) -> i32 {
    udp_reply::run(&ctx, Framing::Ethernet)
}

#[classifier]
fn udp_reply_l3(ctx: TcContext) -> i32 {
    udp_reply::run(&ctx, Framing::None)
}

#[classifier]
fn local_egress(ctx: TcContext) -> i32 {
    local_egress::run(&ctx, Framing::Ethernet)
}

#[classifier]
fn local_egress_l3(ctx: TcContext) -> i32 {
    local_egress::run(&ctx, Framing::None)
}

#[classifier]
fn wan_ingress(ctx: TcContext) -> i32 {
    wan_ingress::run(&ctx, Framing::Ethernet)
}

#[classifier]
fn wan_ingress_l3(ctx: TcContext) -> i32 {
    wan_ingress::run(&ctx, Framing::None)
}

#[classifier]
fn wan_egress(ctx: TcContext) -> i32 {
    wan_egress::run(&ctx, Framing::Ethernet)
}

#[classifier]
fn wan_egress_l3(ctx: TcContext) -> i32 {
    wan_egress::run(&ctx, Framing::None)
}

#[classifier]
fn lo_ingress(ctx: TcContext) -> i32 {
    lo_ingress::run(&ctx)
}

#[cgroup_sock(sock_create)]
fn sock_create(ctx: SockContext) -> i32 {
    exempt::mark_socket(&ctx)
}

/// Its section is called `sk_lookup`, and an ELF symbol must not be called like a section.
#[sk_lookup]
fn lookup(ctx: SkLookupContext) -> u32 {
    sk_lookup::run(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The helpers that the programs call are for GPL-compatible programs; the code is under both.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
