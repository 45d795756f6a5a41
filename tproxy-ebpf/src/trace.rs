//! Telling who listens what is decided, and what should not happen.
//!
//! While nobody listens it costs one look at [`TRACE`] for each packet.

use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;
use tproxy_common::abi::Reason;
use tproxy_common::packet::Packet;
use tproxy_common::trace::{Hook, Message, TraceEvent, TraceFilter};

use crate::maps::{TRACE, TRACE_EVENTS, TRACE_LOST};
use crate::skb::{Framing, Skb};

/// Does somebody listen? One who was killed counts for as long as [`TraceFilter::until`] says, and until the next packet.
///
/// To be asked where it matters: whatever is kept over a decision, the verifier follows together with all that may be
/// decided.
#[inline(always)]
pub fn is_on() -> bool {
    // SAFETY: map memory, valid for the run of the program. User space writes the number at any time.
    TRACE
        .get_ptr(0)
        .is_some_and(|filter| unsafe { (&raw const (*filter).until).read_volatile() } != 0)
}

/// Tells of a decision at a tc hook, if it is asked for. The caller has seen that somebody listens.
#[inline(always)]
pub fn decision(skb: Skb, packet: Option<&Packet>, hook: Hook, reason: Reason) {
    let (link, length, mark) = (skb.interface(), skb.len(), skb.mark());
    report(packet, link, length, mark, about(hook, reason));
}

/// The same about a packet that was not parsed for the decision.
#[inline(always)]
pub fn bare(skb: Skb, framing: Framing, hook: Hook, reason: Reason) {
    let packet = skb.parse(framing).ok();
    decision(skb, packet.as_ref(), hook, reason);
}

/// Tells of a datagram that socket lookup gave to the proxy.
#[inline(always)]
pub fn lookup(packet: &Packet, link: u32, reason: Reason) {
    report(Some(packet), link, 0, 0, about(Hook::SkLookup, reason));
}

#[inline(always)]
const fn about(hook: Hook, reason: Reason) -> u32 {
    (hook as u32) << 16 | reason as u32
}

/// A BPF function has five arguments: `about` is a [`Hook`] in its upper half and a [`Reason`] in its lower.
#[inline(never)]
fn report(packet: Option<&Packet>, link: u32, length: u32, mark: u32, about: u32) {
    let Some((filter, now)) = listener() else {
        return;
    };
    let mut event = TraceEvent::empty(filter.session, now);
    (event.link, event.length, event.mark) = (link, length, mark);
    event.hook = (about >> 16) as u8;
    event.code = about as u16;
    if let Some(packet) = packet {
        event.describe(packet);
    }
    if filter.wants(&event) {
        send(&event);
    }
}

/// Tells of what should not happen, with the error of a helper.
#[inline(always)]
pub fn message(message: Message, error: impl Into<i64>) {
    report_message(message as u32, error.into());
}

#[inline(never)]
fn report_message(code: u32, error: i64) {
    if let Some((filter, now)) = listener() {
        let mut event = TraceEvent::empty(filter.session, now);
        event.kind = TraceEvent::MESSAGE;
        event.code = code as u16;
        event.error = error.unsigned_abs() as u32;
        send(&event);
    }
}

/// What is listened to, and the time.
#[inline(always)]
fn listener() -> Option<(&'static TraceFilter, u64)> {
    let filter = TRACE.get_ptr_mut(0)?;
    // SAFETY: as in `is_on`.
    let until = unsafe { (&raw const (*filter).until).read_volatile() };
    if until == 0 {
        return None;
    }
    // SAFETY: the helper takes no arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: as in `is_on`. One who was killed left the number behind. (Should somebody begin to listen at
    // this very moment, the next sign of life is a second away.)
    unsafe {
        if until < now {
            (&raw mut (*filter).until).write_volatile(0);
            return None;
        }
        Some((&*filter, now))
    }
}

#[inline(always)]
fn send(event: &TraceEvent) {
    if TRACE_EVENTS.output::<TraceEvent>(event, 0).is_err()
        && let Some(lost) = TRACE_LOST.get_ptr_mut(0)
    {
        // SAFETY: an element of a per-CPU array, which only this run of the program writes.
        unsafe { *lost += 1 };
    }
}
