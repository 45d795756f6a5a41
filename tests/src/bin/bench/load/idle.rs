//! Connections that do nothing.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use lab::{Family, Namespace, usage};

use super::connections::{self, BYTE, Server};
use crate::{
    rows::{FILES, LOADED, REST, Readings},
    stage::Stage,
};

/// Memory is read when it has not changed for this long, or after [`LIMIT`].
const QUIET: Duration = Duration::from_millis(500);
const LIMIT: Duration = Duration::from_secs(5);

/// One run. Each connection carries one byte each way first, so that the proxy has dialled for it.
///
/// # Errors
/// When the proxy cannot hold them all, or has none.
pub fn run(stage: &Stage, client: &Namespace, family: Family, count: usize) -> Result<Readings> {
    let pid = stage.relay().context("nothing relays here")?;
    let server = Server::start(&stage.lab.internet)?;
    let targets = connections::targets(family);
    let (rest, files) = (settled_kib(pid)?, usage::open_files(pid)?);
    let open = client.enter(|| open(&targets, count, BYTE))??;
    let (loaded, files_now) = (settled_kib(pid)?, usage::open_files(pid)?);
    drop(open);
    drop(server);
    Ok(vec![
        (&REST, rest as f64 / 1024.0),
        (&LOADED, loaded as f64 / 1024.0),
        (
            &FILES,
            files_now.saturating_sub(files) as f64 / count as f64,
        ),
    ])
}

/// So many connections, each of which says something and has a byte for an answer.
///
/// # Errors
/// When one of them does not come about.
pub fn open(targets: &[SocketAddr], count: usize, first: &[u8]) -> Result<Vec<TcpStream>> {
    (0..count)
        .map(|number| {
            let target = targets[number % targets.len()];
            let patience = Some(Duration::from_secs(10));
            let connect = || {
                let mut stream = TcpStream::connect(target)?;
                stream.set_read_timeout(patience)?;
                stream.write_all(first)?;
                stream.read_exact(&mut [0])?;
                Ok::<_, std::io::Error>(stream)
            };
            connect().with_context(|| format!("opening connection {} of {count}", number + 1))
        })
        .collect()
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
