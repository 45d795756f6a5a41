//! Thousands of flows, floods, those who do not read, and a long time: what the proxy holds, what it costs, and what the
//! others notice.

#[path = "hold/day.rs"]
mod day;
#[path = "hold/floods.rs"]
mod floods;
#[path = "hold/many.rs"]
mod many;
#[path = "hold/slow.rs"]
mod slow;

use std::time::Duration;

/// For how long each load goes on: `LAB_HOLD_SECONDS`, or this many.
fn seconds(usual: u64) -> Duration {
    let told = std::env::var("LAB_HOLD_SECONDS").ok();
    let told = told.and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(told.unwrap_or(usual))
}
