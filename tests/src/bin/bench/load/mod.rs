//! The loads: what a run sends.

pub mod connections;
pub mod dns;
pub mod idle;
pub mod tcp;
pub mod udp;

use std::time::Duration;

use anyhow::Result;

use crate::{
    rows::{LOST, P50, P99, RATE, Readings},
    stage::Stage,
};

/// What came of many exchanges.
#[derive(Debug, Default)]
pub struct Exchanges {
    /// How long each took that was completed.
    pub times: Vec<Duration>,
    /// How many were not completed.
    pub lost: u64,
    /// From the first to the last.
    pub elapsed: Duration,
}

impl Exchanges {
    /// Rate, percentiles and loss.
    pub fn readings(mut self) -> Readings {
        self.times.sort_unstable();
        let done = self.times.len() as f64;
        vec![
            (&RATE, done / self.elapsed.as_secs_f64()),
            (&P50, self.percentile(50)),
            (&P99, self.percentile(99)),
            (&LOST, percent(self.lost as f64, done + self.lost as f64)),
        ]
    }

    /// In microseconds, by nearest rank, of sorted times. Not a number when there are none.
    fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.times.len() * percent).div_ceil(100).max(1);
        self.times
            .get(rank - 1)
            .map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
    }
}

/// Runs something that makes exchanges: what came of them, and what each cost who relays.
///
/// # Errors
/// When it fails, or who relays dies.
pub fn relayed(stage: &Stage, run: impl FnOnce() -> Result<Exchanges>) -> Result<Readings> {
    let (exchanges, used) = stage.with_effort(run)?;
    let done = exchanges.times.len() as f64;
    let mut readings = exchanges.readings();
    readings.extend(used.into_iter().flat_map(|used| used.each(done)));
    Ok(readings)
}

/// `part` of `all`, in percent.
pub fn percent(part: f64, all: f64) -> f64 {
    if all > 0.0 { part / all * 100.0 } else { 0.0 }
}
