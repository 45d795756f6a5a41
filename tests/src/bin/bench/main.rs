//! The bench: what tproxy-bpf costs, as ratios to plain forwarding (or what else a row compares with) in the same run.
//!
//! The runs of a row go round the ways of getting through a gateway, A B C A B C …, so that whatever else the machine
//! does meets all of them, and each round gives its own ratio. What is printed are medians over the rounds. The ways are in [`ways`], the rows in [`rows`]:
//! to measure something else, add a line there.

mod kernel;
mod lists;
mod load;
mod options;
mod outbounds;
mod prefixes;
mod report;
mod results;
mod rows;
mod stage;
mod top;
mod v2ray;
mod ways;

use std::{fs, process::ExitCode};

use anyhow::{Context, Result};
use clap::Parser;
use lab::interrupt::Interrupt;
use tproxy_userspace::net::raise_open_files;

use options::Options;
use results::{Results, RowResult};
use rows::Row;
use stage::Stage;

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        // What could not be measured has been named.
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<bool> {
    let _interrupt = Interrupt::catch()?;
    if options.list {
        report::list();
        return Ok(true);
    }
    let rows = options.rows()?;
    let ways = options.ways(&rows);
    raise_open_files()?;
    let mut results = Results::new(options, &ways);
    report::heading(&results);
    if !rows.is_empty() {
        let mut stages: Vec<Stage> = Vec::new();
        for way in ways {
            let hint = if way.peer {
                " (--no-peers leaves it out)"
            } else {
                ""
            };
            let stage = Stage::set(way, stages.first())
                .with_context(|| format!("setting up the way \"{}\"{hint}", way.name))?;
            stages.push(stage);
        }
        for row in rows {
            let result = measure(row, &stages, options);
            report::row(&result);
            results.rows.push(result);
        }
    }
    if options.wants(kernel::NAME) {
        results.kernel = kernel::measure(options)?;
        report::kernel(&results.kernel);
    }
    if options.wants(lists::NAME) {
        results.lists = lists::measure(options)?;
        report::lists(&results.lists);
    }
    if options.wants(top::NAME) {
        results.top = top::measure(options)?;
        report::top(&results.top);
    }
    report::summary(&results);
    if let Some(path) = &options.json {
        fs::write(path, serde_json::to_string_pretty(&report::json(&results))?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(results.rows.iter().all(|row| row.failures.is_empty()))
}

/// All rounds of one row.
fn measure(row: &'static Row, stages: &[Stage], options: &Options) -> RowResult {
    let mut result = RowResult::new(row);
    for round in 0..options.rounds() {
        for stage in stages.iter().filter(|stage| row.concerns(stage.way)) {
            report::progress(row, stage.way, round, options.rounds());
            match measure_once(row, stage, options) {
                Ok(readings) => {
                    for (metric, value) in readings {
                        result.add(metric, stage.way, round, value);
                    }
                }
                Err(error) => result.fail(stage.way, round, &error),
            }
        }
    }
    report::progress_done();
    result
}

fn measure_once(row: &Row, stage: &Stage, options: &Options) -> Result<rows::Readings> {
    let fresh = row.fresh.then(|| Stage::set(stage.way, None)).transpose()?;
    let stage = fresh.as_ref().unwrap_or(stage);
    let _there = stage.enter()?;
    row.measure(stage, options)
}
