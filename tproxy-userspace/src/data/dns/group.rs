//! Several upstreams that stand in for each other.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{Instant, sleep, timeout};

use super::stats::Counters;
use super::transport::{Ask, Exchange, Failure, Timing};
use super::wire::{Response, code};

/// An upstream that failed once is asked last for so long; each further failure doubles it.
const BACKOFF: Duration = Duration::from_secs(1);
/// The longest such time.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);

/// An upstream, and how it did lately.
#[derive(Debug)]
pub struct Member {
    name: String,
    exchange: Box<dyn Exchange>,
    health: Mutex<Health>,
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    /// It is asked last until then.
    avoid: Option<Instant>,
}

impl Member {
    /// An upstream that has not failed yet.
    #[must_use]
    pub fn new(name: impl Into<String>, exchange: Box<dyn Exchange>) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            exchange,
            health: Mutex::default(),
        })
    }

    fn is_avoided(&self) -> bool {
        let health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        health.avoid.is_some_and(|until| Instant::now() < until)
    }

    fn worked(&self) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut *health).failures > 0 {
            drop(health);
            tracing::info!("the DNS server {} answers again", self.name);
        }
    }

    fn failed(&self, why: &str) {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = BACKOFF * 2_u32.pow(health.failures.min(6));
        health.avoid = Some(Instant::now() + pause.min(LONGEST_BACKOFF));
        health.failures = health.failures.saturating_add(1);
        // Once, lest a server that is down fills the log.
        if health.failures == 1 {
            drop(health);
            tracing::warn!("asking the DNS server {} failed: {why}", self.name);
        }
    }
}

/// Upstreams in the order of preference.
#[derive(Debug)]
pub struct Group {
    members: Vec<Arc<Member>>,
    timing: Timing,
    counters: Arc<Counters>,
}

impl Group {
    /// A group of these.
    #[must_use]
    pub fn new(members: Vec<Arc<Member>>, timing: Timing, counters: Arc<Counters>) -> Self {
        Self {
            members,
            timing,
            counters,
        }
    }

    /// Asks one after the other: the next when one fails, or keeps silent for a while; then both are waited for.
    /// The first answer that is of use counts. If there is none, it is the first that came.
    ///
    /// # Errors
    /// Why the last of them failed.
    pub async fn ask(&self, ask: &Ask) -> Result<Response, Failure> {
        let asked = timeout(self.timing.limit, self.race(ask)).await;
        asked.unwrap_or(Err(Failure::Timeout))
    }

    async fn race(&self, ask: &Ask) -> Result<Response, Failure> {
        let (avoided, well): (Vec<_>, Vec<_>) =
            self.members.iter().partition(|member| member.is_avoided());
        let mut waiting = well.into_iter().chain(avoided);
        let mut under_way = FuturesUnordered::new();
        let mut silent: Vec<Overtaken<'_>> = Vec::new();
        let mut useless = None;
        let mut failure = Failure::Nobody;
        let mut exhausted = false;
        loop {
            if under_way.is_empty() || !exhausted {
                match waiting.next() {
                    Some(member) => {
                        silent.push(Overtaken {
                            member,
                            counters: &self.counters,
                            since: Instant::now(),
                            patience: self.timing.overtake,
                        });
                        under_way
                            .push(async move { (member, member.exchange.exchange(ask).await) });
                    }
                    None if under_way.is_empty() => break,
                    None => exhausted = true,
                }
            }
            let ended = tokio::select! {
                ended = under_way.next() => ended,
                () = sleep(self.timing.overtake), if !exhausted => None,
            };
            let Some((member, result)) = ended else {
                continue;
            };
            let heard = silent
                .iter()
                .position(|one| Arc::ptr_eq(one.member, member));
            if let Some(at) = heard {
                silent.swap_remove(at).forgive();
            }
            match result {
                Ok(response) => {
                    member.worked();
                    if matches!(response.code, code::NO_ERROR | code::NX_DOMAIN) {
                        return Ok(response);
                    }
                    // The code is the name's or the server's fault: one question does not tell.
                    useless.get_or_insert(response);
                }
                Err(error) => {
                    if matches!(error, Failure::Malformed) {
                        Counters::add(&self.counters.malformed_answers);
                    }
                    Counters::add(&self.counters.upstream_failures);
                    member.failed(&error.to_string());
                    failure = error;
                }
            }
        }
        useless.ok_or(failure)
    }
}

/// An upstream that is being waited for. If the wait ends without a word of it, because another one was faster or the
/// time was over, that counts as a failure; or one that is down would cost a wait with every question.
struct Overtaken<'g> {
    member: &'g Arc<Member>,
    counters: &'g Counters,
    since: Instant,
    patience: Duration,
}

impl Overtaken<'_> {
    fn forgive(self) {
        std::mem::forget(self);
    }
}

impl Drop for Overtaken<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() >= self.patience {
            Counters::add(&self.counters.upstream_failures);
            self.member.failed(&Failure::Timeout.to_string());
        }
    }
}
