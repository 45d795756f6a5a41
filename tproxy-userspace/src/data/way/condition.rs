//! In which condition an outbound is: what its connections and its checks say.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::Way;
use crate::data::outbound::{Blame, DialError, Outbound};
use crate::data::record::Protocol;
use crate::policy::health::{Health, Standing, State};

/// So many destinations in a row that hang up are no chance.
const SILENT: u32 = 20;

/// The log tells no more often than this that an outbound is down.
const TELLING_PAUSE: Duration = Duration::from_secs(60);

/// What was told of an outbound that is down.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Down {
    /// When it was told last.
    last: Option<Instant>,
    /// It was told, and not yet that it is up again.
    is_told: bool,
}

/// What is known of an outbound, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OutboundStatus {
    /// Its name.
    pub name: String,
    /// Its URL without a password.
    pub url: String,
    /// The outbound that its server is reached through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub via: Option<String>,
    /// How it carries TCP.
    pub tcp: HealthStatus,
    /// How it carries UDP.
    pub udp: HealthStatus,
}

/// What is known of an outbound and one protocol, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HealthStatus {
    /// Is it of use?
    pub state: State,
    /// For how long it has been in this state, in seconds.
    pub since_seconds: u64,
    /// How long the last check took that was answered, in milliseconds.
    pub delay_milliseconds: Option<u64>,
    /// What went wrong last, if it has not been up since.
    pub error: Option<String>,
    /// In how many seconds it is checked. None: it is not, or a check is under way.
    pub check_in_seconds: Option<u64>,
}

impl Way {
    /// Does it carry datagrams? A server does not that is reached through another outbound, unless it takes them by TCP:
    /// the datagrams could not be sent there.
    #[must_use]
    pub fn carries_datagrams(&self) -> bool {
        match *self.outbound {
            Outbound::Direct | Outbound::Block | Outbound::Trojan(_) => true,
            Outbound::Http(_) | Outbound::Https(_) => false,
            Outbound::Socks5(_) | Outbound::Shadowsocks(_) => self.through().is_none(),
        }
    }

    /// Notes which protocols it carries. For a way that nobody uses yet.
    pub(super) fn set_protocols(&mut self) {
        let now = Instant::now();
        let udp = match self.carries_datagrams() {
            true => Health::new(now),
            false => Health::unsupported(now),
        };
        *self.health() = [Health::new(now), udp];
    }

    /// What a choice among outbounds goes by.
    #[must_use]
    pub fn standing(&self, protocol: Protocol) -> Standing {
        self.health()[protocol as usize].standing()
    }

    /// A connection was made, or could not be.
    pub(in crate::data) fn report(&self, protocol: Protocol, failure: Option<&DialError>) {
        self.tell(failure);
        let now = Instant::now();
        self.change(protocol, |health| match failure {
            None => health.worked(now),
            Some(error) => match error.blame(&self.outbound) {
                Blame::Outbound => health.failed(&error.to_string(), now),
                Blame::Unclear => health.doubted(now),
                // It has answered.
                Blame::Destination => health.worked(now),
            },
        });
    }

    /// The server has answered by what it carries, so it takes the password.
    pub(in crate::data) fn answered(&self) {
        self.proven.store(true, Relaxed);
        self.silent.store(0, Relaxed);
        self.report(Protocol::Tcp, None);
    }

    /// The server ended a connection without an answer. Gives whether that tells of a wrong password. Once it has taken
    /// the password, it is the destination that hangs up, unless none answers any more: the password may be another now.
    pub(in crate::data) fn is_silenced(&self) -> bool {
        let in_a_row = self.silent.fetch_add(1, Relaxed) + 1;
        let is_wrong = !self.proven.load(Relaxed) || in_a_row >= SILENT;
        if !is_wrong {
            self.change(Protocol::Tcp, |health| health.doubted(Instant::now()));
        }
        is_wrong
    }

    /// A check was made.
    pub(in crate::data) fn checked(&self, protocol: Protocol, result: Result<Duration, String>) {
        let now = Instant::now();
        if protocol == Protocol::Tcp && result.is_ok() {
            self.proven.store(true, Relaxed);
            self.silent.store(0, Relaxed);
        }
        self.change(protocol, |health| match &result {
            Ok(delay) => health.answered(*delay, now),
            Err(why) => health.missed(why, now),
        });
    }

    /// From now on it is checked this often, or not at all. What is there to end traffic is not.
    pub(in crate::data) fn check_every(&self, interval: Option<Duration>) {
        let interval = interval.filter(|_| *self.outbound != Outbound::Block);
        for health in &mut *self.health() {
            health.check_every(interval, Instant::now());
        }
    }

    /// Is a check to be made now? Then it is.
    pub(in crate::data) fn take_due(&self, protocol: Protocol, now: Instant) -> bool {
        self.health()[protocol as usize].take_due(now)
    }

    /// When the next check is to be made.
    pub(in crate::data) fn next_due(&self) -> Option<Instant> {
        let health = self.health();
        health.iter().filter_map(Health::next_due).min()
    }

    /// Waits until a check may be due sooner than it was.
    pub(in crate::data) async fn doubted(&self) {
        self.doubted.notified().await;
    }

    fn change(&self, protocol: Protocol, change: impl FnOnce(&mut Health)) {
        let mut all = self.health();
        let health = &mut all[protocol as usize];
        let (before, due) = (health.standing().state, health.next_due());
        change(health);
        let (after, sooner) = (health.standing().state, health.next_due() < due);
        let error = health.error().unwrap_or_default().to_owned();
        drop(all);
        if sooner {
            self.doubted.notify_one();
        }
        let carries = match protocol {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        };
        let name = &self.name;
        match (before, after) {
            // What a person has to mend was told with that.
            (State::Unknown | State::Up, State::Down)
                if self.may_tell(protocol) && !self.told.load(Relaxed) =>
            {
                tracing::warn!("the outbound \"{name}\" is down for {carries}: {error}");
            }
            (State::Down, State::Up)
                if std::mem::take(&mut self.downs()[protocol as usize].is_told) =>
            {
                tracing::info!("the outbound \"{name}\" is up again for {carries}");
            }
            _ => {}
        }
    }

    /// Is it time to tell that it is down? One that comes and goes is told of once a minute.
    fn may_tell(&self, protocol: Protocol) -> bool {
        let down = &mut self.downs()[protocol as usize];
        let now = Instant::now();
        let is_soon = |last: Instant| now.saturating_duration_since(last) < TELLING_PAUSE;
        if down.last.is_some_and(is_soon) {
            return false;
        }
        *down = Down {
            last: Some(now),
            is_told: true,
        };
        true
    }

    fn downs(&self) -> MutexGuard<'_, [Down; 2]> {
        // No code that can panic runs under the lock.
        self.downs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of it, for people.
    #[must_use]
    pub fn status(&self) -> OutboundStatus {
        let now = Instant::now();
        let [tcp, udp] = &*self.health();
        OutboundStatus {
            name: self.name.to_string(),
            url: self.outbound.to_string(),
            via: self.via.as_ref().map(|via| via.name.to_string()),
            tcp: HealthStatus::of(tcp, now),
            udp: HealthStatus::of(udp, now),
        }
    }

    fn health(&self) -> MutexGuard<'_, [Health; 2]> {
        // No code that can panic runs under the lock.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HealthStatus {
    fn of(health: &Health, now: Instant) -> Self {
        let Standing { state, delay } = health.standing();
        let milliseconds = |delay: Duration| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let due = health.next_due();
        Self {
            state,
            since_seconds: now.saturating_duration_since(health.since()).as_secs(),
            delay_milliseconds: delay.map(milliseconds),
            error: health.error().map(ToOwned::to_owned),
            check_in_seconds: due.map(|due| due.saturating_duration_since(now).as_secs()),
        }
    }
}
