//! What the kernel half and the userspace half of tproxy-bpf agree on, and the thinking they share.
//!
//! - [`abi`]: map keys and values, marks, names, and the list of [`Reason`](abi::Reason)s.
//! - [`packet`]: bytes to a [`Packet`](packet::Packet), or why not.
//! - [`trace`]: what is told of a decision, and who wants to hear of which.
//! - [`verdict`]: a packet and what the hook knows to a [`Verdict`](verdict::Verdict): the whole steering policy.
//!
//! No unsafe code, no allocation, no I/O: everything here runs in the kernel and in a unit test alike.

#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
pub mod packet;
pub mod trace;
pub mod verdict;
