//! The kernel half of tproxy-bpf: the table of programs. Each one gathers facts, asks
//! `tproxy_common` what to do, and does it.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod facts;
mod lan_ingress;
mod maps;
mod sk_lookup;
mod skb;
mod socket;
mod udp_reply;

use aya_ebpf::macros::{classifier, sk_lookup};
use aya_ebpf::programs::{SkLookupContext, TcContext};

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
