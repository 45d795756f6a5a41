//! SIGINT, SIGTERM and SIGHUP for the binaries: no namespace may outlive them.

use std::{
    process,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::sys::signal::{SigSet, Signal};

use crate::remains;

/// Catches the signals that end a program.
#[derive(Debug)]
pub struct Interrupt {
    awaited: Arc<AtomicBool>,
    signals: mpsc::Receiver<Signal>,
}

impl Interrupt {
    /// Catches them from now on: unless somebody [waits](Self::wait), all labs of this process are cleared
    /// and it exits with 128 and the signal's number. To be called before any other thread starts.
    ///
    /// # Errors
    /// When the signals cannot be blocked.
    pub fn catch() -> Result<Self> {
        let set = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
        set.thread_block().context("blocking SIGINT and SIGTERM")?;
        let awaited = Arc::new(AtomicBool::new(false));
        let (sender, signals) = mpsc::channel();
        let flag = Arc::clone(&awaited);
        thread::spawn(move || {
            let mut answered: Option<Instant> = None;
            loop {
                let Ok(signal) = set.wait() else { continue };
                // A terminal and a supervisor may both pass on the same Ctrl-C.
                if answered.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
                    continue;
                }
                // A later signal finds the flag lowered: it means it.
                if flag.swap(false, Ordering::SeqCst) {
                    answered = Some(Instant::now());
                    sender.send(signal).ok();
                } else {
                    remains::clear_all();
                    process::exit(128 + signal as i32);
                }
            }
        });
        Ok(Self { awaited, signals })
    }

    /// Waits for a signal, which the caller then answers by ending in order.
    pub fn wait(&self) -> Option<Signal> {
        self.awaited.store(true, Ordering::SeqCst);
        self.signals.recv().ok()
    }
}
