//! Groups of outbounds: which member a connection takes, by what is known of their health.
//!
//! Members are numbered as they are configured. No I/O and no clock: the caller says what time it is, makes the checks
//! that are due, and reports what came of them and of its connections. TCP and UDP are apart: a server may carry one
//! and not the other.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::rule::Protocol;

/// Connections that fail one after the other until a member counts as down before a check says so.
const PATIENCE: u32 = 2;
/// How soon a member that is down is checked again; then after twice as long, up to the interval.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// How a group chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The member that was chosen by a person, whatever its health.
    Select,
    /// The first that is up.
    Fallback,
    /// The one whose checks are answered fastest. Another one takes its place only if it is faster by more than this.
    Fastest {
        /// The difference that does not count.
        tolerance: Duration,
    },
    /// All that are up, each for its share of the keys. A key keeps its member while that is up.
    Balance,
}

/// Is a member of use?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing has come of it yet. It is used as if it were up.
    #[default]
    Unknown,
    /// The last check was answered.
    Up,
    /// It is not used while another one is up.
    Down,
}

/// What is known of a member and one protocol.
#[derive(Clone, Debug)]
pub struct Health {
    /// Is it of use?
    pub state: State,
    /// Since when.
    pub since: Instant,
    /// How long the last check took that was answered.
    pub delay: Option<Duration>,
    /// What went wrong last.
    pub error: Option<Box<str>>,
    /// Failures since the last success.
    failures: u32,
    /// Checks that failed one after the other.
    misses: u32,
    /// When it is to be checked. None while a check is under way.
    due: Option<Instant>,
}

/// A group.
#[derive(Debug)]
pub struct Group {
    kind: Kind,
    interval: Duration,
    /// Of each protocol all members.
    members: [Vec<Health>; 2],
    /// The member that was chosen, or is the fastest, of each protocol.
    chosen: [usize; 2],
}

/// A check that is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Due {
    /// The member.
    pub member: usize,
    /// By which protocol.
    pub protocol: Protocol,
}

impl Group {
    /// A group of so many members, none of which has been checked. Each is to be checked every `interval`.
    #[must_use]
    pub fn new(kind: Kind, members: usize, interval: Duration, now: Instant) -> Self {
        let unknown = Health {
            state: State::Unknown,
            since: now,
            delay: None,
            error: None,
            failures: 0,
            misses: 0,
            due: Some(now),
        };
        let all = vec![unknown; members];
        Self {
            kind,
            interval,
            members: [all.clone(), all],
            chosen: [0; 2],
        }
    }

    /// All members, the one to take first; the next are for when that fails. Where members share the work, `key`
    /// decides.
    #[must_use]
    pub fn order(&self, protocol: Protocol, key: impl Hash) -> Vec<usize> {
        let all = &self.members[protocol as usize];
        let chosen = self.chosen[protocol as usize];
        let mut order: Vec<usize> = (0..all.len()).collect();
        match self.kind {
            Kind::Select => order = vec![chosen],
            Kind::Fallback => order.sort_by_key(|member| all[*member].is_down()),
            Kind::Fastest { .. } => order.sort_by_key(|member| {
                let health = &all[*member];
                let delay = health.delay.unwrap_or(Duration::MAX);
                (health.is_down(), *member != chosen, delay)
            }),
            Kind::Balance => {
                order.sort_by_cached_key(|member| {
                    (all[*member].is_down(), Reverse(score(&key, *member)))
                });
            }
        }
        order
    }

    /// From now on it is this member. False if there is none of that number, or nobody chooses in such a group.
    pub fn select(&mut self, member: usize) -> bool {
        let can = self.kind == Kind::Select && member < self.members[0].len();
        if can {
            self.chosen = [member; 2];
        }
        can
    }

    /// A check was answered after this time.
    pub fn answered(&mut self, Due { member, protocol }: Due, delay: Duration, now: Instant) {
        let interval = self.interval;
        let health = self.health_mut(member, protocol);
        health.turn(State::Up, now);
        health.delay = Some(delay);
        (health.failures, health.misses) = (0, 0);
        health.due = Some(now + interval);
        self.settle(protocol);
    }

    /// A check was not answered, or not as it should be.
    pub fn missed(&mut self, Due { member, protocol }: Due, why: &str, now: Instant) {
        let interval = self.interval;
        let health = self.health_mut(member, protocol);
        health.turn(State::Down, now);
        health.error = Some(why.into());
        let pause = FIRST_RETRY.saturating_mul(1 << health.misses.min(16));
        health.misses += 1;
        health.due = Some(now + pause.min(interval));
        self.settle(protocol);
    }

    /// A connection got through.
    pub fn worked(&mut self, member: usize, protocol: Protocol) {
        self.health_mut(member, protocol).failures = 0;
    }

    /// A connection failed because of the member, not of its destination. It is checked at once.
    pub fn failed(&mut self, member: usize, protocol: Protocol, why: &str, now: Instant) {
        let health = self.health_mut(member, protocol);
        health.failures = health.failures.saturating_add(1);
        health.error = Some(why.into());
        if health.state != State::Down {
            health.due = health.due.map(|due| due.min(now));
        }
        if health.failures >= PATIENCE {
            health.turn(State::Down, now);
        }
        self.settle(protocol);
    }

    /// The checks whose time has come. Each is to be reported by [`answered`](Self::answered) or [`missed`](Self::missed).
    pub fn take_due(&mut self, now: Instant) -> Vec<Due> {
        let mut taken = Vec::new();
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (member, health) in self.members[protocol as usize].iter_mut().enumerate() {
                if health.due.take_if(|due| *due <= now).is_some() {
                    taken.push(Due { member, protocol });
                }
            }
        }
        taken
    }

    /// When the next check is due. None while all are under way.
    #[must_use]
    pub fn next_due(&self) -> Option<Instant> {
        self.members
            .iter()
            .flatten()
            .filter_map(|health| health.due)
            .min()
    }

    /// What is known of a member.
    #[must_use]
    pub fn health(&self, member: usize, protocol: Protocol) -> &Health {
        &self.members[protocol as usize][member]
    }

    fn health_mut(&mut self, member: usize, protocol: Protocol) -> &mut Health {
        &mut self.members[protocol as usize][member]
    }

    /// Finds out which is the fastest.
    fn settle(&mut self, protocol: Protocol) {
        let Kind::Fastest { tolerance } = self.kind else {
            return;
        };
        let all = &self.members[protocol as usize];
        let up = |member: &usize| all[*member].state == State::Up;
        let delay = |member: &usize| all[*member].delay.unwrap_or(Duration::MAX);
        let Some(fastest) = (0..all.len()).filter(up).min_by_key(delay) else {
            return;
        };
        let chosen = self.chosen[protocol as usize];
        if !up(&chosen) || delay(&fastest).saturating_add(tolerance) < delay(&chosen) {
            self.chosen[protocol as usize] = fastest;
        }
    }
}

impl Health {
    fn is_down(&self) -> bool {
        self.state == State::Down
    }

    fn turn(&mut self, state: State, now: Instant) {
        if self.state != state {
            (self.state, self.since) = (state, now);
        }
        if state == State::Up {
            self.error = None;
        }
    }
}

/// How much a key is drawn to a member (rendezvous hashing): the keys of a member that is gone go to the others in equal
/// parts, and no other key moves.
fn score(key: &impl Hash, member: usize) -> u64 {
    let mut hasher = DefaultHasher::new();
    (member, key).hash(&mut hasher);
    hasher.finish()
}
