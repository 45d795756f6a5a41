//! What is known of an outbound and one protocol: can it be used?
//!
//! No I/O and no clock: the caller says what time it is, makes the checks that are due, and reports what came of them
//! and of its connections.

#[cfg(test)]
mod tests;

use std::time::{Duration, Instant};

use serde::Serialize;

/// Connections that fail one after the other until an outbound counts as down before a check says so.
const PATIENCE: u32 = 2;
/// How soon an outbound that is down is checked again; then after twice as long, up to the interval.
const FIRST_RETRY: Duration = Duration::from_secs(5);
/// Whatever connections say, it is checked no more often than this.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// Is an outbound of use?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing has come of it yet. It is used as if it were up.
    #[default]
    Unknown,
    /// The last check was answered, or, without checks, the last connection got through.
    Up,
    /// It is not used while another one is up.
    Down,
    /// It does not carry this protocol.
    Unsupported,
}

/// What a choice among outbounds goes by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Is it of use?
    pub state: State,
    /// How long the last check took that was answered.
    pub delay: Option<Duration>,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Health {
    standing: Standing,
    since: Instant,
    error: Option<Box<str>>,
    /// Connections that failed since the last that did not.
    failures: u32,
    /// Checks that failed one after the other.
    misses: u32,
    /// How often it is checked. None: it is not.
    interval: Option<Duration>,
    checked: Option<Instant>,
    /// When it is to be checked. None while a check is under way.
    due: Option<Instant>,
}

impl Health {
    /// Of an outbound that nothing is known of, and that is not checked.
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            standing: Standing::default(),
            since: now,
            error: None,
            failures: 0,
            misses: 0,
            interval: None,
            checked: None,
            due: None,
        }
    }

    /// Of one that does not carry the protocol. That never changes.
    #[must_use]
    pub fn unsupported(now: Instant) -> Self {
        let mut health = Self::new(now);
        health.standing.state = State::Unsupported;
        health
    }

    /// What a choice goes by.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.standing
    }

    /// Since when it is in its state.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// What went wrong last, if it has not been up since.
    #[must_use]
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }

    /// From now on it is checked this often, the first time at once, or not at all.
    pub fn check_every(&mut self, interval: Option<Duration>, now: Instant) {
        if self.is_unsupported() || self.interval == interval {
            return;
        }
        self.interval = interval;
        self.due = interval.map(|_| now);
    }

    /// Is it to be checked now? Then the check is to be made, and reported by [`answered`](Self::answered) or
    /// [`missed`](Self::missed).
    pub fn take_due(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    /// When it is to be checked. None while a check is under way, and without checks.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.due
    }

    /// A check was answered after this time.
    pub fn answered(&mut self, delay: Duration, now: Instant) {
        self.turn(State::Up, now);
        self.standing.delay = Some(delay);
        (self.failures, self.misses) = (0, 0);
        self.checked = Some(now);
        self.due = self.interval.map(|interval| now + interval);
    }

    /// A check was not answered, or not as it should be.
    pub fn missed(&mut self, why: &str, now: Instant) {
        self.turn(State::Down, now);
        self.error = Some(why.into());
        let pause = FIRST_RETRY.saturating_mul(1 << self.misses.min(16));
        self.misses = self.misses.saturating_add(1);
        self.checked = Some(now);
        self.due = self.interval.map(|interval| now + pause.min(interval));
    }

    /// A connection got through.
    pub fn worked(&mut self, now: Instant) {
        if self.is_unsupported() {
            return;
        }
        self.failures = 0;
        match self.interval {
            // Of some protocols that says only that somebody listens.
            Some(_) if self.standing.state == State::Down => self.doubted(now),
            Some(_) => {}
            None => self.turn(State::Up, now),
        }
    }

    /// A connection failed because of the outbound, not of its destination. It is checked at once.
    pub fn failed(&mut self, why: &str, now: Instant) {
        if self.is_unsupported() {
            return;
        }
        self.failures = self.failures.saturating_add(1);
        self.error = Some(why.into());
        if self.standing.state != State::Down {
            self.doubted(now);
        }
        if self.failures >= PATIENCE {
            self.turn(State::Down, now);
        }
    }

    /// A connection failed, and nobody knows because of whom. It is checked at once.
    pub fn doubted(&mut self, now: Instant) {
        let soonest = self
            .checked
            .map_or(now, |checked| now.max(checked + LEAST_PAUSE));
        self.due = self.due.map(|due| due.min(soonest));
    }

    fn is_unsupported(&self) -> bool {
        self.standing.state == State::Unsupported
    }

    fn turn(&mut self, state: State, now: Instant) {
        if self.standing.state != state {
            (self.standing.state, self.since) = (state, now);
        }
        if state == State::Up {
            self.error = None;
        }
    }
}
