//! Sockets: finding them and giving packets to them.

use core::ffi::c_void;
use core::mem::size_of_val;
use core::ptr;

use aya_ebpf::bindings::{BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, bpf_sock, bpf_sock_tuple};
use aya_ebpf::bindings::{
    bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2,
};
use aya_ebpf::helpers::generated::{
    bpf_map_lookup_elem, bpf_sk_assign, bpf_sk_release, bpf_skc_lookup_tcp,
};
use tproxy_common::abi::Listener;
use tproxy_common::packet::{Addresses, Ports};
use tproxy_common::trace::Message;

use crate::maps::LISTENERS;
use crate::skb::Skb;
use crate::trace;

/// Gives the packet to the socket of its own connection, if that socket is here.
#[inline(never)]
pub fn assign_connection(skb: Skb, addresses: &Addresses, ports: &Ports) -> bool {
    with_connection(skb, addresses, ports, |sock| {
        // SAFETY: both pointers are valid; the caller holds the socket.
        let error = unsafe { bpf_sk_assign(skb.as_ptr().cast(), sock.cast(), 0) };
        if error != 0 {
            trace::message(Message::ConnectionNotAssigned, error);
        }
        error == 0
    })
}

/// Is the socket of the packet's connection here? Assigning it is possible at ingress only.
#[inline(never)]
pub fn holds_connection(skb: Skb, addresses: &Addresses, ports: &Ports) -> bool {
    with_connection(skb, addresses, ports, |_| true)
}

/// Does something with the socket that has the destination as its local and the source as its remote
/// address, if it is here.
///
/// The destination is not an address of the gateway, so a connected socket with that local address
/// is a transparent one, the proxy's. A listener is not: any service bound to a wildcard address
/// would be found.
#[inline(always)]
fn with_connection(
    skb: Skb,
    addresses: &Addresses,
    ports: &Ports,
    act: impl FnOnce(*mut bpf_sock) -> bool,
) -> bool {
    let sock = match addresses {
        Addresses::V4 {
            source,
            destination,
            ..
        } => {
            let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 {
                saddr: *source,
                daddr: *destination,
                sport: ports.source,
                dport: ports.destination,
            };
            lookup(skb, &tuple)
        }
        Addresses::V6 {
            source,
            destination,
        } => {
            let tuple = bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 {
                saddr: *source,
                daddr: *destination,
                sport: ports.source,
                dport: ports.destination,
            };
            lookup(skb, &tuple)
        }
    };
    if sock.is_null() {
        return false;
    }
    // SAFETY: `sock` is a referenced socket until it is released, on every path.
    unsafe {
        let done = (*sock).state != BPF_TCP_LISTEN && act(sock);
        bpf_sk_release(sock.cast());
        done
    }
}

/// The family of the look-up is told by the size of the tuple.
#[inline(always)]
fn lookup<T>(skb: Skb, tuple: &T) -> *mut bpf_sock {
    // SAFETY: the helper reads the tuple, whose size it is told.
    unsafe {
        bpf_skc_lookup_tcp(
            skb.as_ptr().cast(),
            ptr::from_ref(tuple).cast::<bpf_sock_tuple>().cast_mut(),
            size_of_val(tuple) as u32,
            BPF_F_CURRENT_NETNS as i64 as u64,
            0,
        )
    }
}

/// What assigning a packet to one of the proxy's listeners came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Assigned {
    Done,
    /// There is no such socket: no proxy is running.
    Down,
}

/// Gives the packet or the look-up at `ctx` to a listener of the proxy, in the sender's lane.
#[inline(always)]
pub fn assign_listener(ctx: *mut c_void, listener: Listener, addresses: &Addresses) -> Assigned {
    with_listener(listener, addresses, |sock| {
        // SAFETY: both pointers are valid for the run of the program.
        let error = unsafe { bpf_sk_assign(ctx, sock, 0) };
        if error != 0 {
            trace::message(Message::NotAssigned, error);
        }
        error == 0
    })
}

/// Is there such a socket, that is: does a proxy run?
#[inline(always)]
pub fn listener_is_up(listener: Listener, addresses: &Addresses) -> bool {
    with_listener(listener, addresses, |_| true) == Assigned::Done
}

/// Where the socket is that serves the sender.
#[inline(never)]
fn slot(listener: Listener, addresses: &Addresses) -> u32 {
    listener.slot(addresses.lane())
}

#[inline(always)]
fn with_listener(
    listener: Listener,
    addresses: &Addresses,
    act: impl FnOnce(*mut c_void) -> bool,
) -> Assigned {
    let key = slot(listener, addresses);
    // SAFETY: the helper reads the key; the socket it returns is released on every path.
    unsafe {
        let sock = bpf_map_lookup_elem(
            (&raw const LISTENERS).cast_mut().cast(),
            (&raw const key).cast(),
        );
        if sock.is_null() {
            return Assigned::Down;
        }
        let done = act(sock);
        bpf_sk_release(sock);
        if done { Assigned::Done } else { Assigned::Down }
    }
}
