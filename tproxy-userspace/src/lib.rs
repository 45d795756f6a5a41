//! The userspace half of tproxy-bpf: the library behind the program.
//!
//! `control` looks after the kernel half, `data` is the proxy; neither knows the other, and the
//! program passes plain values between them.

pub mod config;
pub mod control;
pub mod data;
pub mod import;
pub mod net;
pub mod observe;
pub mod policy;
pub mod privileges;
pub mod step;
