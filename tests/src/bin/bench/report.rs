//! What people and programs are shown.

use std::{
    io::{IsTerminal, Write},
    sync::OnceLock,
};

use lab::Family;
use serde_json::{Value, json};

use crate::{
    comparison::Comparison,
    kernel::{self, CaseResult},
    lists,
    ours::PREFIXES,
    results::{Results, RowResult, Verdict},
    rows::{Bound, Metric, ROWS, Row},
    top,
    ways::{WAYS, Way},
};

/// The width of the first column of names and of figures, and of each other.
const NAME: usize = 26;
const FIRST: usize = 16;
const COLUMN: usize = 20;

/// Ways and rows by name.
pub fn list() {
    println!("Ways:");
    for way in &WAYS {
        println!("  {:<NAME$}{}", way.name, way.what);
    }
    println!("\nRows:");
    for row in &ROWS {
        println!("  {:<NAME$}{}", row.name, row.title);
    }
    println!(
        "  {:<NAME$}nanoseconds a packet of lan_ingress",
        kernel::NAME
    );
    println!(
        "  {:<NAME$}{} names and {} prefixes of each family: loading, memory, look-ups",
        lists::NAME,
        lists::DOMAINS,
        lists::PREFIXES
    );
    println!(
        "  {:<NAME$}`top` at {} flows: what it, and answering it, costs",
        top::NAME,
        top::FLOWS
    );
}

/// What is going to be measured, and where.
pub fn heading(results: &Results) {
    let machine = &results.machine;
    println!(
        "{}; in parentheses the ratio to the first column;\n\
         reno in all namespaces; {PREFIXES} prefixes of each family in the bypass set",
        results.source()
    );
    for way in &results.ways {
        println!("  {:<NAME$}{}", way.name, way.what);
    }
    if machine.load > 0.5 {
        println!(
            "\nThis machine is not idle (load {:.1} before the first run): expect noise.",
            machine.load
        );
    }
}

/// Where we are, on a terminal.
pub fn progress(row: &Row, way: &Way, round: u32, rounds: u32) {
    if on_terminal() {
        eprint!(
            "\r\x1b[K{} ({}), round {} of {rounds}: {}",
            row.title,
            row.name,
            round + 1,
            way.name
        );
        std::io::stderr().flush().ok();
    }
}

/// Takes the line of [`progress`] away.
pub fn progress_done() {
    if on_terminal() {
        eprint!("\r\x1b[K");
    }
}

fn on_terminal() -> bool {
    static TERMINAL: OnceLock<bool> = OnceLock::new();
    *TERMINAL.get_or_init(|| std::io::stderr().is_terminal())
}

/// One row, measured.
pub fn row(result: &RowResult) {
    println!("\n{} ({})", result.row.title, result.row.name);
    let ways: Vec<&Way> = WAYS.iter().filter(|way| result.has(way.name)).collect();
    let mut line = format!("  {:<FIRST$}", "");
    for way in &ways {
        line += &format!("{:<COLUMN$}", way.name);
    }
    println!("{}", line.trim_end());
    for metric in &result.metrics {
        // Nothing lost is what one expects.
        let all = ways.iter().flat_map(|way| result.samples(metric, way.name));
        if metric.name == crate::rows::LOST.name && all.sum::<f64>() == 0.0 {
            continue;
        }
        let mut line = format!("  {:<FIRST$}", metric.title);
        for way in &ways {
            line += &format!("{:<COLUMN$}", cell(result, metric, way));
        }
        println!("{}", line.trim_end());
    }
    for verdict in result.verdicts() {
        println!("  {}", sentence(result, &verdict));
    }
    for (way, why) in &result.failures {
        println!("  {way} failed, {why}");
    }
}

fn cell(result: &RowResult, metric: &Metric, way: &Way) -> String {
    let Some(median) = result.median(metric, way.name) else {
        return "-".to_owned();
    };
    let figure = format!("{median:.*}", metric.digits);
    match result.ratio(metric, way.name) {
        Some(ratio) if metric.compared && way.name != result.row.subject().base() => {
            format!("{figure} ({ratio:.2})")
        }
        _ => figure,
    }
}

fn sentence(result: &RowResult, verdict: &Verdict) -> String {
    let Verdict {
        target,
        figure,
        range: (least, most),
        reached,
    } = verdict;
    let word = if *reached { "reached" } else { "MISSED" };
    let figures = format!("{figure:.2}, rounds {least:.2} to {most:.2}");
    match target.bound {
        Bound::Ratio(bound) => format!(
            "target: {} at least {bound:.2} of {}: {word} ({figures})",
            target.way,
            result.row.subject().base()
        ),
        Bound::Most(bound) => format!(
            "target: {} {} at most {bound}: {word} ({figures})",
            target.way, target.metric.title
        ),
        Bound::Added(bound) => format!(
            "target: {} {} at most {bound} above {}: {word} ({figures})",
            target.way,
            target.metric.title,
            result.row.subject().base()
        ),
        Bound::NotBelow(other) | Bound::NotAbove(other) => {
            let bound = if matches!(target.bound, Bound::NotBelow(_)) {
                "at least"
            } else {
                "at most"
            };
            format!(
                "target: {} {} {bound} that of {other}: {word} (ratio {figures})",
                target.way, target.metric.title
            )
        }
    }
}

/// The programs alone.
pub fn kernel(results: &[CaseResult]) {
    println!(
        "\nlan_ingress, ns a packet under BPF_PROG_TEST_RUN: best / median ({})",
        kernel::NAME
    );
    let mut line = format!("  {:<FIRST$}", "");
    for size in kernel::SIZES {
        for family in Family::BOTH {
            line += &format!("{:<COLUMN$}", format!("{family:?}, {size}"));
        }
    }
    println!("  {:<8}{}", "", line.trim_end());
    let mut titles: Vec<&str> = Vec::new();
    for result in results {
        if !titles.contains(&result.title) {
            titles.push(result.title);
        }
    }
    for title in titles {
        let mut line = format!("    {title:<22}");
        for result in results.iter().filter(|result| result.title == title) {
            line += &format!(
                "{:<COLUMN$}",
                format!("{:.0} / {:.0}", result.best, result.median)
            );
        }
        println!("{}", line.trim_end());
    }
    let judged: Vec<&CaseResult> = results.iter().filter(|r| r.reached.is_some()).collect();
    let worst = judged.iter().map(|r| r.above_floor).fold(0.0, f64::max);
    let word = if judged.iter().all(|r| r.reached == Some(true)) {
        "reached"
    } else {
        "MISSED"
    };
    println!(
        "  target: bypassed at most {:.0} ns above the floor: {word} (the dearest {worst:.0})",
        kernel::TARGET
    );
}

/// Large lists.
pub fn lists(lines: &[lists::Line]) {
    println!(
        "\n{} names and {} prefixes of each family in files ({})",
        lists::DOMAINS,
        lists::PREFIXES,
        lists::NAME
    );
    each(lines);
}

/// What looking costs.
pub fn top(lines: &[lists::Line]) {
    println!(
        "\n`top` every second at {} flows ({})",
        top::FLOWS,
        top::NAME
    );
    each(lines);
}

fn each(lines: &[lists::Line]) {
    for line in lines {
        println!("  {:<70}{:>8.2} {}", line.title, line.figure, line.unit);
    }
}

/// All ways beside each other.
pub fn comparison(comparison: &Comparison) {
    println!(
        "\nThe ratio to plain forwarding, CPU seconds of who relays for a GiB, what is added to the median time, \
         what is lost:\n\n{}",
        comparison.table().trim_end()
    );
}

/// How many targets were reached.
pub fn summary(results: &Results) {
    let verdicts: Vec<bool> = results
        .rows
        .iter()
        .flat_map(|row| row.verdicts().into_iter().map(|verdict| verdict.reached))
        .chain(results.kernel.iter().filter_map(|case| case.reached))
        .collect();
    let reached = verdicts.iter().filter(|reached| **reached).count();
    println!("\n{reached} of {} targets reached.", verdicts.len());
    let failures: usize = results.rows.iter().map(|row| row.failures.len()).sum();
    if failures > 0 {
        println!("{failures} runs failed; they are named above.");
    }
}

/// Everything, each single figure included.
pub fn json(results: &Results, comparison: &Comparison) -> Value {
    json!({
        "machine": {
            "kernel": results.machine.kernel,
            "cores": results.machine.cores,
            "load": results.machine.load,
        },
        "rounds": results.rounds,
        "seconds": results.seconds,
        "bypass_prefixes": PREFIXES,
        "ways": results.ways.iter().map(|way| json!({
            "name": way.name,
            "what": way.what,
        })).collect::<Vec<_>>(),
        "rows": results.rows.iter().map(row_json).collect::<Vec<_>>(),
        "comparison": comparison.json(),
        "lan_ingress": results.kernel.iter().map(|case| json!({
            "packet": case.title,
            "family": format!("{:?}", case.family),
            "prefixes": case.prefixes,
            "best_ns": case.best,
            "median_ns": case.median,
            "above_floor_ns": case.above_floor,
            "target_above_floor_ns": case.reached.map(|_| kernel::TARGET),
            "reached": case.reached,
        })).collect::<Vec<_>>(),
        "lists": lines_json(&results.lists),
        "top": lines_json(&results.top),
    })
}

fn lines_json(lines: &[lists::Line]) -> Vec<Value> {
    let line = |line: &lists::Line| {
        json!({
            "title": line.title,
            "unit": line.unit,
            "median": line.figure,
            "samples": line.samples,
        })
    };
    lines.iter().map(line).collect()
}

fn row_json(result: &RowResult) -> Value {
    let mut figures = Vec::new();
    for metric in &result.metrics {
        for way in WAYS.iter().filter(|way| result.has(way.name)) {
            figures.push(json!({
                "metric": metric.name,
                "way": way.name,
                "median": result.median(metric, way.name),
                "ratio": metric.compared.then(|| result.ratio(metric, way.name)),
                "ratios": metric.compared.then(|| result.ratios(metric, way.name)),
                "samples": result.samples(metric, way.name),
            }));
        }
    }
    let targets: Vec<Value> = result
        .verdicts()
        .into_iter()
        .map(|verdict| {
            let target = verdict.target;
            let (of, bound) = match target.bound {
                Bound::Ratio(least) => ("at_least_ratio", json!(least)),
                Bound::Most(most) => ("at_most", json!(most)),
                Bound::Added(most) => ("at_most_added", json!(most)),
                Bound::NotBelow(other) => ("at_least_that_of", json!(other)),
                Bound::NotAbove(other) => ("at_most_that_of", json!(other)),
            };
            json!({
                "way": target.way,
                "metric": target.metric.name,
                of: bound,
                "figure": verdict.figure,
                "reached": verdict.reached,
            })
        })
        .collect();
    let failures: Vec<Value> = result
        .failures
        .iter()
        .map(|(way, why)| json!({ "way": way, "why": why }))
        .collect();
    json!({
        "name": result.row.name,
        "title": result.row.title,
        "ratios_to": result.row.subject().base(),
        "figures": figures,
        "targets": targets,
        "failures": failures,
    })
}
