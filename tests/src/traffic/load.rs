//! Many connections: short ones without a pause, of which none may fail, and thousands that stay.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::echo;
use crate::{
    Family, Lab,
    probe::at,
    wait::{SOON, patient},
};

/// How many threads make them.
const WORKERS: u32 = 4;

/// Connections of both families from the device to an echo at `port`, one after each `pace`, while `work` goes on. Gives how
/// many there were.
///
/// # Errors
/// Those of `work`, and when a connection fails.
pub fn under_load<T>(
    lab: &Lab,
    (port, pace): (u16, Duration),
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, u64)> {
    let (ended, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let start = Instant::now();
    let (done, failed) = thread::scope(|scope| -> Result<_> {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (ended, count) = (&ended, &count);
                scope.spawn(move || {
                    lab.device.enter(|| {
                        let mut failed = Vec::new();
                        let mut number = worker;
                        while !ended.load(Relaxed) {
                            let due = start + pace * number;
                            thread::sleep(due.saturating_duration_since(Instant::now()));
                            let family = Family::BOTH[(number / WORKERS) as usize % 2];
                            if let Err(error) = echo(at(family.far(1), port)) {
                                failed.push((start.elapsed(), error));
                            }
                            count.fetch_add(1, Relaxed);
                            number += WORKERS;
                        }
                        failed
                    })
                })
            })
            .collect();
        let done = work();
        ended.store(true, Relaxed);
        let mut failed = Vec::new();
        for worker in workers {
            failed.extend(worker.join().map_err(|_| anyhow!("a worker panicked"))??);
        }
        Ok((done?, failed))
    })?;
    let count = count.into_inner();
    ensure!(
        failed.is_empty(),
        "{} of {count} connections failed: {failed:?}",
        failed.len()
    );
    Ok((done, count))
}

/// So many connections from the namespace of this thread, in turn to each target. Each says `first` and has a byte for an
/// answer.
///
/// # Errors
/// When one of them does not come about.
pub fn hold(targets: &[SocketAddr], count: usize, first: &[u8]) -> Result<Vec<TcpStream>> {
    match hold_most(targets, count, first) {
        (open, None) => Ok(open),
        (_, Some(error)) => Err(error),
    }
}

/// As many of them as come about, and why there are no more.
#[must_use]
pub fn hold_most(
    targets: &[SocketAddr],
    count: usize,
    first: &[u8],
) -> (Vec<TcpStream>, Option<anyhow::Error>) {
    let mut open = Vec::with_capacity(count);
    for number in 0..count {
        let target = targets[number % targets.len()];
        let connect = || {
            let mut stream = TcpStream::connect(target)?;
            stream.set_read_timeout(Some(patient(SOON)))?;
            stream.write_all(first)?;
            stream.read_exact(&mut [0])?;
            Ok::<_, io::Error>(stream)
        };
        match connect().with_context(|| format!("opening connection {} of {count}", number + 1)) {
            Ok(stream) => open.push(stream),
            Err(error) => return (open, Some(error)),
        }
    }
    (open, None)
}
