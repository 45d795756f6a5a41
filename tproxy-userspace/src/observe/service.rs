//! What the service manager is told of a run: `sd_notify(3)`, which systemd and others read. Without one, nothing.

use std::io;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{Interval, MissedTickBehavior, interval};

/// More than the drain itself, for what comes after it.
const TO_DETACH: Duration = Duration::from_secs(30);
/// A status is one line that a person reads.
const LONGEST_STATUS: usize = 500;

/// What there is to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// It serves.
    Ready {
        /// What it does, for a person.
        status: &'a str,
    },
    /// It reads its configuration anew. [`Event::Ready`] or [`Event::Refused`] follows.
    Reloading,
    /// The reload failed, and the old configuration goes on to hold.
    Refused {
        /// Why.
        reason: &'a str,
    },
    /// It ends, which may take as long as connections may live on.
    Stopping {
        /// So long.
        drain: Duration,
    },
    /// The loop that follows the machine goes round.
    Alive,
}

/// The service manager, if one waits to be told.
pub struct Manager {
    /// Half the time after which it takes silence for a hang.
    pings: Option<Interval>,
    /// It could be told the last time.
    reached: bool,
    /// It hears nothing more of this process.
    left: bool,
}

impl Manager {
    /// From `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`. Wants a runtime.
    #[must_use]
    pub fn from_environment() -> Self {
        let pings = sd_notify::watchdog_enabled().map(|limit| {
            let mut pings = interval(rhythm(limit));
            pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pings
        });
        Self {
            pings,
            reached: true,
            left: false,
        }
    }

    /// Ends when the watchdog is to be told that all is well; never without one.
    pub async fn due(&mut self) {
        match &mut self.pings {
            Some(pings) => {
                pings.tick().await;
            }
            None => std::future::pending().await,
        }
    }

    /// From now on it follows another process, and would wonder who this one is.
    pub fn leave(&mut self) {
        (self.pings, self.left) = (None, true);
    }

    /// Tells it. What it cannot be told is no reason to end: if it misses it, it acts.
    pub fn tell(&mut self, event: Event<'_>) {
        if self.left {
            return;
        }
        let status = match event {
            Event::Ready { status } => one_line(status),
            Event::Refused { reason } => one_line(&format!(
                "the last reload failed, and the old configuration holds: {reason}"
            )),
            _ => String::new(),
        };
        let told = now().and_then(|now| sd_notify::notify(&states(event, &status, now)));
        if let Err(error) = &told
            && self.reached
        {
            tracing::warn!("telling the service manager failed: {error}");
        }
        self.reached = told.is_ok();
    }
}

/// How often to tell a watchdog with this limit that all is well, as `sd_watchdog_enabled(3)` recommends.
fn rhythm(limit: Duration) -> Duration {
    (limit / 2).max(Duration::from_millis(1))
}

/// Microseconds of the clock that a reload is dated by (`CLOCK_MONOTONIC`).
fn now() -> io::Result<i128> {
    match NotifyState::monotonic_usec_now()? {
        NotifyState::MonotonicUsec(now) => Ok(now),
        _ => Err(io::Error::other("the monotonic clock tells no time")),
    }
}

/// One message. `status` is one line.
fn states<'a>(event: Event<'_>, status: &'a str, now: i128) -> Vec<NotifyState<'a>> {
    match event {
        Event::Ready { .. } | Event::Refused { .. } => vec![
            NotifyState::Ready,
            NotifyState::Status(status),
            NotifyState::Watchdog,
        ],
        Event::Reloading => vec![
            NotifyState::Reloading,
            NotifyState::MonotonicUsec(now),
            NotifyState::Status("reading the configuration anew"),
            // The loop stands still meanwhile, so the time begins here.
            NotifyState::Watchdog,
        ],
        Event::Stopping { drain } => {
            let limit = drain.saturating_add(TO_DETACH).as_micros();
            vec![
                NotifyState::Stopping,
                NotifyState::Status("stopping"),
                NotifyState::ExtendTimeoutUsec(u32::try_from(limit).unwrap_or(u32::MAX)),
            ]
        }
        Event::Alive => vec![NotifyState::Watchdog],
    }
}

/// A line break would begin another field of the message.
fn one_line(text: &str) -> String {
    let words = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty());
    let mut line = words.collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST_STATUS) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(event: Event<'_>, status: &str) -> Vec<String> {
        let status = one_line(status);
        let states = states(event, &status, 12_345_678);
        states.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn each_event_has_its_message() {
        let ready = Event::Ready { status: "" };
        assert_eq!(
            message(ready, "eth0 proxied"),
            ["READY=1", "STATUS=eth0 proxied", "WATCHDOG=1"]
        );
        // A reload is over when it has failed, too.
        let refused = Event::Refused { reason: "" };
        assert_eq!(message(refused, "no")[0], "READY=1");
        // One message: systemd wants the time with it.
        let reloading = message(Event::Reloading, "");
        assert_eq!(reloading[..2], ["RELOADING=1", "MONOTONIC_USEC=12345678"]);
        assert_eq!(message(Event::Alive, ""), ["WATCHDOG=1"]);
    }

    #[test]
    fn the_end_may_take_as_long_as_the_drain() {
        let stopping = |seconds| {
            let drain = Duration::from_secs(seconds);
            message(Event::Stopping { drain }, "")
        };
        assert_eq!(stopping(10)[0], "STOPPING=1");
        assert_eq!(stopping(10)[2], "EXTEND_TIMEOUT_USEC=40000000");
        // The field has 32 bits: more than an hour.
        assert_eq!(stopping(100_000)[2], "EXTEND_TIMEOUT_USEC=4294967295");
        assert_eq!(stopping(u64::MAX)[2], "EXTEND_TIMEOUT_USEC=4294967295");
    }

    #[test]
    fn no_text_adds_a_field() {
        let text = "the file\n  --> a\u{0}b\r\nREADY=1\nMAINPID=1";
        assert_eq!(one_line(text), "the file --> a b READY=1 MAINPID=1");
        let long = one_line(&"ä".repeat(10_000));
        assert_eq!(long.chars().count(), LONGEST_STATUS + 1);
    }

    #[test]
    fn a_watchdog_hears_twice_within_its_time() {
        assert_eq!(rhythm(Duration::from_secs(60)), Duration::from_secs(30));
        // An interval of no time would panic.
        assert!(rhythm(Duration::from_nanos(1)) > Duration::ZERO);
    }
}
