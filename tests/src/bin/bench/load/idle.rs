//! Connections that do nothing.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lab::{Family, Namespace, servers::OneByte, traffic, usage};

use super::connections::{self, BYTE, PORT};
use crate::{
    rows::{FILES, HELD, KIB_EACH, LOADED, REST, Readings},
    stage::Stage,
};

/// Memory is read when it has not changed for this long, or after [`LIMIT`].
const QUIET: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(5);
/// A program is at rest so long after its start.
const START: Duration = Duration::from_secs(5);

/// One run. Each connection carries one byte each way first, so that the proxy has dialled for it.
///
/// Other programs may hold fewer, as their files allow, and then their figures are of those.
///
/// # Errors
/// When ours cannot hold them all, another holds none, or nothing relays here.
pub fn run(stage: &Stage, client: &Namespace, family: Family, count: usize) -> Result<Readings> {
    let pid = stage.relay().context("nothing relays here")?;
    let server = OneByte::start(&stage.lab.internet, PORT)?;
    let targets = connections::targets(family);
    thread::sleep(START);
    let (rest, own) = (settled_kib(pid)?, usage::own_kib(pid)?);
    // What is opened once, with the first connection, is no file of each.
    let first = client.enter(|| traffic::hold(&targets, 1, BYTE))??;
    let files = usage::open_files(pid)?;
    let (others, refused) = client.enter(|| traffic::hold_most(&targets, count - 1, BYTE))?;
    if let Some(error) = refused.filter(|_| !stage.way.peer || others.is_empty()) {
        return Err(error);
    }
    let (loaded, files_now) = (settled_kib(pid)?, usage::open_files(pid)?);
    let own_now = usage::own_kib(pid)?;
    let (more, held) = (others.len() as f64, (first.len() + others.len()) as f64);
    drop((first, others));
    drop(server);
    Ok(vec![
        (&HELD, held),
        (&REST, rest as f64 / 1024.0),
        (&LOADED, loaded as f64 / 1024.0),
        (&KIB_EACH, own_now.saturating_sub(own) as f64 / held),
        (&FILES, files_now.saturating_sub(files) as f64 / more),
    ])
}

/// Resident memory when it does not change any more.
///
/// # Errors
/// When the process is gone.
pub fn settled_kib(pid: u32) -> Result<u64> {
    let start = Instant::now();
    let mut last = (usage::resident_kib(pid)?, start);
    while last.1.elapsed() < QUIET && start.elapsed() < LIMIT {
        thread::sleep(Duration::from_millis(50));
        let now = usage::resident_kib(pid)?;
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
    Ok(last.0)
}
