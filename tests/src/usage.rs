//! What a process uses, from `/proc`.

use std::{fs, time::Duration};

use anyhow::{Context, Result};

/// The open files of process `pid`.
///
/// # Errors
/// When it is gone.
pub fn open_files(pid: u32) -> Result<usize> {
    let path = format!("/proc/{pid}/fd");
    Ok(fs::read_dir(&path)
        .with_context(|| format!("reading {path}"))?
        .count())
}

/// The resident memory of process `pid`, in KiB.
///
/// # Errors
/// When it is gone.
pub fn resident_kib(pid: u32) -> Result<u64> {
    status(pid, "VmRSS:")
}

/// How much of that is the process's own, and not of files.
///
/// # Errors
/// When it is gone.
pub fn own_kib(pid: u32) -> Result<u64> {
    status(pid, "RssAnon:")
}

fn status(pid: u32, name: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("no {name} in {path}"))
}

/// How often the threads of process `pid` have gone to sleep of their own accord. A thread that has ended is not counted any
/// more.
///
/// # Errors
/// When it is gone.
pub fn voluntary_switches(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/task");
    let tasks = fs::read_dir(&path).with_context(|| format!("reading {path}"))?;
    let switches = tasks.filter_map(|task| {
        // One that ends meanwhile has none.
        let text = fs::read_to_string(task.ok()?.path().join("status")).ok()?;
        let mut lines = text.lines();
        let rest = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        rest.trim().parse::<u64>().ok()
    });
    Ok(switches.sum())
}

/// The CPU time that process `pid` has used, user and system, to 10 ms.
///
/// # Errors
/// When it is gone.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    // proc(5): the name, in parentheses, may hold anything; utime and stime are fields 14 and 15,
    // in ticks of USER_HZ, which is 100 on every Linux that Rust's std runs on.
    let ticks: u64 = text
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_whitespace().skip(11).take(2))
        .into_iter()
        .flatten()
        .filter_map(|word| word.parse::<u64>().ok())
        .sum();
    Ok(Duration::from_millis(ticks * 10))
}
