//! TCP streams, by iperf3.

use anyhow::{Context, Result};
use lab::{
    Family, Namespace,
    traffic::{self, Test},
};

use crate::{
    rows::{CPU, GBIT, Readings},
    stage::Stage,
};

const GIB: f64 = (1_u64 << 30) as f64;

/// One run.
///
/// # Errors
/// When iperf3 fails.
pub fn run(
    stage: &Stage,
    client: &Namespace,
    family: Family,
    streams: u32,
    to_device: bool,
    seconds: u32,
) -> Result<Readings> {
    let address = stage.iperf(family)?;
    let test = Test {
        streams,
        seconds,
        reverse: to_device,
        ..Test::default()
    };
    let (report, used) = stage.with_effort(|| traffic::iperf(client, address, test))?;
    let mut readings = vec![(&GBIT, report.bits_per_second / 1e9)];
    if let Some(used) = used {
        let bytes = report.json["end"]["sum_received"]["bytes"]
            .as_f64()
            .context("no count of bytes in iperf3's report")?;
        readings.push((&CPU, used.cpu_seconds / (bytes / GIB)));
    }
    Ok(readings)
}
