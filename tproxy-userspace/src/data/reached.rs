//! Limits that were reached: which, how often, and what helps.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::stats::Stats;

/// How many limits there are.
const LIMITS: usize = 8;
/// How long nothing more is told of a limit that was told of.
const PAUSE: Duration = Duration::from_secs(60);

/// A limit that was reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reached {
    /// A word for it: lower case, with underscores.
    pub limit: &'static str,
    /// How often.
    pub times: u64,
    /// What happened so often.
    pub what: &'static str,
    /// What a person can do.
    pub remedy: &'static str,
}

/// All limits, whether reached or not.
fn limits(stats: &Stats) -> [Reached; LIMITS] {
    let failures = |word: &str| stats.failures.get(word).copied().unwrap_or(0);
    let of = |limit, times, what, remedy| Reached {
        limit,
        times,
        what,
        remedy,
    };
    [
        of(
            "connections",
            stats.limit_reached,
            "connections refused, as many as are allowed lived",
            "raise tcp.max_connections, or the limit of open files (LimitNOFILE=)",
        ),
        of(
            "device",
            failures("device_limit"),
            "connections refused, as one device had its share of those that are allowed",
            "look at `tproxy-bpf top` for the device that has so many, or raise tcp.max_connections",
        ),
        of(
            "associations",
            stats.evicted,
            "UDP associations ended early to make room for others",
            "raise udp.max_associations",
        ),
        of(
            "flows",
            stats.flows_evicted,
            "UDP flows forgotten early to make room for others",
            "raise udp.max_associations",
        ),
        of(
            "files",
            stats.accept_failed + failures("no_resources"),
            "connections without a file, port or memory",
            "raise the limit of open files (LimitNOFILE=, fs.file-max), or lower tcp.max_connections",
        ),
        of(
            "pipes",
            stats.pipe_missing,
            "bytes copied, as there was no pipe for them",
            "raise the limit of open files (LimitNOFILE=) and fs.pipe-user-pages-soft",
        ),
        of(
            "receive_queue",
            stats.datagrams_lost,
            "datagrams from devices lost, as they came faster than they could be relayed",
            "look at `tproxy-bpf top` for the device that sends them",
        ),
        of(
            "send_queue",
            stats.datagrams_blocked,
            "datagrams lost, as a socket or a queue had no room for more",
            "look at `tproxy-bpf top` for the flow that has too many",
        ),
    ]
}

impl Stats {
    /// The limits that were reached since the start.
    #[must_use]
    pub fn reached(&self) -> Vec<Reached> {
        let mut reached = limits(self).to_vec();
        reached.retain(|limit| limit.times > 0);
        reached
    }
}

/// Tells of limits when they are reached, of each at most once a minute.
#[derive(Debug, Default)]
pub struct Alarm {
    told: [(u64, Option<Instant>); LIMITS],
}

impl Alarm {
    /// What was reached and is to be told now. `times` counts from when it was told last.
    pub fn news(&mut self, stats: &Stats, now: Instant) -> Vec<Reached> {
        let mut news = Vec::new();
        for (limit, (told, last)) in limits(stats).into_iter().zip(&mut self.told) {
            let times = limit.times.saturating_sub(*told);
            let is_soon = |last: Instant| now.saturating_duration_since(last) < PAUSE;
            if times > 0 && !last.is_some_and(is_soon) {
                (*told, *last) = (limit.times, Some(now));
                news.push(Reached { times, ..limit });
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::limits::{Budget, Limits};
    use crate::data::record::Outcome;
    use crate::data::stats::Counters;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn each_limit_is_told_once_a_minute() {
        let counters = Counters::default();
        let budget = Budget::new(1024, &Limits::default());
        let mut alarm = Alarm::default();
        let start = Instant::now();
        let mut news = |second| {
            let stats = counters.snapshot(budget);
            let now = start + Duration::from_secs(second);
            let news = alarm.news(&stats, now).into_iter();
            let news: Vec<_> = news.map(|it| (it.limit, it.times)).collect();
            (news, stats.reached().len())
        };
        assert_eq!(news(0), (vec![], 0));
        counters.ended(Outcome::LimitReached).fetch_add(3, Relaxed);
        counters.ended(Outcome::NoResources).fetch_add(1, Relaxed);
        counters.accept_failed.fetch_add(1, Relaxed);
        assert_eq!(news(1), (vec![("connections", 3), ("files", 2)], 2));
        counters.ended(Outcome::LimitReached).fetch_add(1, Relaxed);
        counters.datagrams_lost.fetch_add(5, Relaxed);
        assert_eq!(news(2), (vec![("receive_queue", 5)], 3));
        counters.ended(Outcome::LimitReached).fetch_add(1, Relaxed);
        assert_eq!(news(60), (vec![], 3));
        assert_eq!(news(61), (vec![("connections", 2)], 3));
        assert_eq!(news(200), (vec![], 3));
    }
}
