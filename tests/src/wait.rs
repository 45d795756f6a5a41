//! Waiting for a condition, with a deadline. Nothing in the lab sleeps for a fixed time.

use std::{
    fs,
    sync::LazyLock,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::Namespace;

/// How long the lab waits for anything that should be there at once.
pub const SOON: Duration = Duration::from_secs(10);

/// How many times as long as usual all may take: `LAB_PATIENCE`, which `cargo xtask vm` sets, since the processor that
/// it emulates is slow.
static PATIENCE: LazyLock<u32> = LazyLock::new(|| {
    let told = std::env::var("LAB_PATIENCE").ok();
    told.and_then(|times| times.parse().ok()).unwrap_or(1)
});

/// A limit, as long as it is here.
#[must_use]
pub fn patient(limit: Duration) -> Duration {
    limit * *PATIENCE
}

/// Asks `condition` again and again until it gives a value.
///
/// # Errors
/// The condition's own error, or, after `limit` (as [`patient`] has it), one that names `what`.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let limit = patient(limit);
    let start = Instant::now();
    let mut pause = Duration::from_micros(500);
    loop {
        if let Some(value) = condition()? {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} for {what}, in vain");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// A transport, as `/proc/net` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A listening TCP socket.
    Tcp,
    /// A bound UDP socket.
    Udp,
}

/// Waits until a socket in `ns` listens on (or, for UDP, is bound to) `port`, over either family.
///
/// # Errors
/// When none does after [`SOON`].
pub fn listening(ns: &Namespace, transport: Transport, port: u16) -> Result<()> {
    let what = format!("{transport:?} port {port} in {}", ns.name());
    until(&what, SOON, || {
        Ok(is_listening(ns, transport, port)?.then_some(()))
    })
}

/// Is there a listening (UDP: bound and unconnected) socket at `port` in `ns`?
///
/// # Errors
/// When the namespace cannot be entered.
pub fn is_listening(ns: &Namespace, transport: Transport, port: u16) -> Result<bool> {
    let (files, state) = match transport {
        Transport::Tcp => (["tcp", "tcp6"], "0A"),
        Transport::Udp => (["udp", "udp6"], "07"),
    };
    ns.enter(|| {
        files.iter().any(|file| {
            fs::read_to_string(format!("/proc/thread-self/net/{file}")).is_ok_and(|table| {
                table.lines().skip(1).any(|line| {
                    let mut words = line.split_whitespace().skip(1);
                    let local = words.next().and_then(|address| address.rsplit_once(':'));
                    let listens = words.nth(1) == Some(state);
                    listens
                        && local.is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port))
                })
            })
        })
    })
}
