//! What a running proxy tells: those who ask, by the control API, the metrics and the log, and the service manager.

pub mod api;
pub mod log;
pub mod metrics;
pub mod process;
pub mod service;
pub mod socket;
pub mod unit;
