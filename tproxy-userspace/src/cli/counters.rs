//! `counters`: why packets passed, were steered or were dropped.

use std::process::ExitCode;

use anyhow::Result;
use tproxy_userspace::control::place::Place;
use tproxy_userspace::observe::metrics::CounterRow;
pub use tproxy_userspace::observe::metrics::effect_word;

use super::output::{self, Table};
use super::{CountersArgs, pinned_maps};

pub fn counters(args: &CountersArgs) -> Result<ExitCode> {
    let place = Place::current()?;
    let counters = pinned_maps(&place)?.counters()?;
    let rows = counters.into_iter().map(CounterRow::from);
    if args.read.json {
        output::json(&rows.collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(
        &["reason", "effect", "packets", "bytes", "meaning"],
        &[2, 3],
    );
    for row in rows.filter(|row| args.all || row.packets > 0) {
        table.row([
            row.reason.into(),
            row.effect.into(),
            output::number(row.packets),
            output::bytes(row.bytes),
            row.sentence.into(),
        ]);
    }
    output::text_out(&table.render())?;
    Ok(ExitCode::SUCCESS)
}
