//! `counters`: why packets passed, were steered or were dropped.

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;
use tproxy_common::abi::{Counter, Reason};
use tproxy_userspace::control::place::Place;
pub use tproxy_userspace::observe::metrics::effect_word;

use super::output::{self, Table};
use super::{CountersArgs, pinned_maps};

#[derive(Serialize)]
struct Row {
    reason: &'static str,
    effect: &'static str,
    packets: u64,
    bytes: u64,
    sentence: &'static str,
}

fn row((reason, counter): (Reason, Counter)) -> Row {
    Row {
        reason: reason.word(),
        effect: effect_word(reason.effect()),
        packets: counter.packets,
        bytes: counter.bytes,
        sentence: reason.sentence(),
    }
}

pub fn counters(args: &CountersArgs) -> Result<ExitCode> {
    let place = Place::current()?;
    let rows = pinned_maps(&place)?.counters()?.into_iter().map(row);
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
