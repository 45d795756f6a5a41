//! A progress bar for work that takes long, at a terminal only.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Work that is done sooner shows no bar.
const PATIENCE: Duration = Duration::from_millis(300);
/// How often it is drawn while nothing is told.
const TICK: Duration = Duration::from_millis(100);

/// A bar on standard error. It comes after a moment, only if standard error is a terminal, and goes when it is dropped.
pub struct Bar {
    bar: ProgressBar,
    /// Closed by the drop, so that a bar that has not come does not come any more.
    _waiting: Sender<()>,
}

impl Bar {
    /// A bar that is not there yet.
    pub fn new() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        let style = ProgressStyle::with_template("{spinner} {msg} {wide_bar} {percent}%");
        bar.set_style(style.expect("the template is right"));
        let (sender, receiver) = channel::<()>();
        let later = bar.downgrade();
        thread::spawn(move || {
            if receiver.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout)
                && let Some(bar) = later.upgrade()
            {
                bar.set_draw_target(ProgressDrawTarget::stderr());
                bar.enable_steady_tick(TICK);
            }
        });
        Self {
            bar,
            _waiting: sender,
        }
    }

    /// What is done now, and how much of the whole is behind it.
    pub fn set(&self, what: &str, done: u64, total: u64) {
        self.bar.set_length(total.max(1));
        self.bar.set_position(done);
        self.bar.set_message(what.to_owned());
    }

    /// What is done now, of which nobody knows how long it takes.
    pub fn wait(&self, what: &str) {
        let style = ProgressStyle::with_template("{spinner} {msg}");
        self.bar.set_style(style.expect("the template is right"));
        self.bar.set_message(what.to_owned());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
