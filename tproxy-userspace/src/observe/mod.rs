//! What a running proxy tells: those who ask by the control socket, and the service manager.

pub mod service;
pub mod socket;
