//! The bench: what tproxy-bpf costs, as ratios to plain forwarding (or what else a row compares with) in the same run.
//!
//! The runs of a row go round the ways of getting through a gateway, A B C A B C …, so that whatever else the machine
//! does meets all of them, and each round gives its own ratio. What is printed are medians over the rounds. The ways are in [`ways`], the rows in [`rows`]:
//! to measure something else, add a line there.

mod comparison;
mod guard;
mod kernel;
mod lists;
mod load;
mod options;
mod ours;
mod outbounds;
mod peers;
mod prefixes;
mod report;
mod results;
mod rows;
mod stage;
mod svg;
mod top;
mod ways;

use std::{fs, path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use lab::interrupt::Interrupt;
use tproxy_userspace::net::raise_open_files;

use comparison::Comparison;
use guard::Guard;
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
    let guard = options.guard.as_deref().map(Guard::read).transpose()?;
    let mut complaints = Vec::new();
    let rows = options.rows(guard.as_ref())?;
    let ways = options.ways(&rows);
    raise_open_files()?;
    let mut results = Results::new(options, &ways);
    report::heading(&results);
    if !rows.is_empty() {
        let mut stages: Vec<Stage> = Vec::new();
        for way in ways {
            let hint = if way.is_rival() {
                " (without --peers it is left out)"
            } else {
                ""
            };
            let stage = Stage::set(way, stages.first())
                .with_context(|| format!("setting up the way \"{}\"{hint}", way.name))?;
            stages.push(stage);
        }
        for row in rows {
            let mut result = RowResult::new(row);
            measure(&mut result, &stages, options);
            report::row(&result);
            if let Some(guard) = &guard {
                complaints.extend(watch(guard, &mut result, &stages, options));
            }
            results.rows.push(result);
        }
    }
    if options.wants_beside(kernel::NAME) {
        results.kernel = kernel::measure(options)?;
        report::kernel(&results.kernel);
    }
    if options.wants_beside(lists::NAME) {
        results.lists = lists::measure(options)?;
        report::lists(&results.lists);
    }
    if options.wants_beside(top::NAME) {
        results.top = top::measure(options)?;
        report::top(&results.top);
    }
    let comparison = Comparison::of(&results);
    if options.peers && !comparison.lines.is_empty() {
        report::comparison(&comparison);
    }
    report::summary(&results);
    if let Some(path) = &options.json {
        let json = report::json(&results, &comparison);
        write(path, &serde_json::to_string_pretty(&json)?)?;
    }
    if let Some(path) = &options.svg {
        ensure!(
            comparison.has_ratios(),
            "drawing {}: no row about forwarding was measured; --only leaves them out",
            path.display()
        );
        write(path, &svg::draw(&comparison, &results.source()))?;
    }
    for complaint in &complaints {
        println!("{complaint}");
    }
    let whole = results.rows.iter().all(|row| row.failures.is_empty());
    Ok(whole && complaints.is_empty())
}

/// Measures a row again that has lost too much, and says so if it stays at that.
fn watch(
    guard: &Guard,
    result: &mut RowResult,
    stages: &[Stage],
    options: &Options,
) -> Option<String> {
    for _ in 1..guard::TRIES {
        let complaint = guard.complaint(result)?;
        println!("  {complaint}; once more, all rounds together:");
        measure(result, stages, options);
        report::row(result);
    }
    guard.complaint(result)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// All rounds of one row, behind those that it has.
fn measure(result: &mut RowResult, stages: &[Stage], options: &Options) {
    let (row, first) = (result.row, result.rounds);
    result.rounds += options.rounds();
    for round in first..result.rounds {
        for stage in stages.iter().filter(|stage| row.concerns(stage.way)) {
            report::progress(row, stage.way, round, result.rounds);
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
}

fn measure_once(row: &Row, stage: &Stage, options: &Options) -> Result<rows::Readings> {
    let fresh = row.fresh.then(|| Stage::set(stage.way, None)).transpose()?;
    let stage = fresh.as_ref().unwrap_or(stage);
    let _there = stage.enter()?;
    row.measure(stage, options)
}
