//! What a running proxy tells those who ask: the control socket.

pub mod socket;
