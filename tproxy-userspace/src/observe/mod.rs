//! What a running proxy tells those who ask: the control API, the metrics, the log.

pub mod api;
pub mod log;
pub mod metrics;
mod process;
pub mod socket;
