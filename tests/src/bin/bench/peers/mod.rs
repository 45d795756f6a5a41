//! Other proxies, each as who knows it would set it up: one file each, and what several share in [`steering`].
//!
//! They dial what the device asked for, or have a server of their own protocol do it, without cipher, where that is all they
//! can.

use std::ops::RangeInclusive;

pub mod haproxy;
pub mod redsocks;
pub mod sing_box;
pub mod sslocal;
pub mod steering;
pub mod v2ray;

/// Ports of the gateway that proxies listen at, which connections of its own must leave alone.
pub const LISTENING: RangeInclusive<u16> = 12_345..=12_999;
/// Those of them for who needs another one at each start.
pub const SHORT_LIVED: RangeInclusive<u16> = 12_400..=12_999;
