//! The signals that end a run or make it read its configuration anew.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that matter.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    pub(super) fn new() -> Result<Self> {
        let open = |kind| signal(kind).context("listening for signals failed");
        Ok(Self {
            interrupt: open(SignalKind::interrupt())?,
            terminate: open(SignalKind::terminate())?,
            hangup: open(SignalKind::hangup())?,
        })
    }

    pub(super) async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.interrupt.recv() => Caught::Stop,
            _ = self.terminate.recv() => Caught::Stop,
            _ = self.hangup.recv() => Caught::Hangup,
        }
    }

    /// SIGINT or SIGTERM.
    pub(super) async fn stop(&mut self) {
        while self.next().await != Caught::Stop {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Caught {
    Stop,
    Hangup,
}
