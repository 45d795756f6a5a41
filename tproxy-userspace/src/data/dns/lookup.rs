//! From a question to an answer: the cache, then one question upstream however many wait for it.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::cache::{Cache, Found, Kept, Key};
use super::group::Group as Upstreams;
use super::learned::{Announcer, Heard, Learned};
use super::split::{Choose, Group};
use super::stats::{Counters, DnsStats};
use super::transport::{Ask, Timing};
use super::wire::{Query, code};

/// Questions to upstreams that may be under way at once.
const MOST_UNDER_WAY: usize = 1024;

/// None: nobody had an answer.
pub type Outcome = Option<Kept>;
/// The outer None: not yet.
pub type Coming = watch::Receiver<Option<Outcome>>;

/// See the module.
#[derive(Debug)]
pub struct Lookup {
    /// Which group is asked.
    pub choose: Box<dyn Choose>,
    /// The upstreams that are asked without the outbound.
    pub direct: Arc<Upstreams>,
    /// Those that are asked through it.
    pub proxy: Arc<Upstreams>,
    /// What is known.
    pub cache: Mutex<Cache>,
    /// Who wants to know of addresses.
    pub announcer: Announcer,
    /// What happened.
    pub counters: Arc<Counters>,
    /// How long things may take.
    pub timing: Timing,
    /// What is being asked for.
    pub under_way: Mutex<HashMap<Key, Coming>>,
}

/// A question on its way through.
#[derive(Clone, Debug)]
pub struct Course {
    name: String,
    key: Key,
}

/// What is there without waiting.
#[derive(Debug)]
pub enum Instantly {
    /// It is decided.
    Done(Outcome),
    /// Somebody has to be asked. With what there is if that takes long.
    Ask(Outcome),
}

impl Lookup {
    /// Where a question goes.
    #[must_use]
    pub fn course(&self, query: &Query) -> Course {
        let name = query.question.text();
        let key = Key::of(query, self.choose.group(&name));
        Course { name, key }
    }

    /// What the cache says.
    pub fn instantly(&self, course: &Course) -> Instantly {
        let found = self.cache().get(&course.key, Instant::now());
        match found {
            Found::Fresh(kept) => {
                Counters::add(&self.counters.cache_hits);
                if !kept.announced.load(Relaxed) {
                    self.announce(course, &kept);
                }
                Instantly::Done(Some(kept))
            }
            Found::Failed => {
                Counters::add(&self.counters.cache_hits);
                Instantly::Done(None)
            }
            Found::Waiting(kept) => Instantly::Done(self.stale(course, kept)),
            Found::Stale(kept) => Instantly::Ask(Some(kept)),
            Found::Nothing => Instantly::Ask(None),
        }
    }

    /// Waits for what was [asked](Self::ask). `stale` is given out if that takes long or fails.
    pub async fn wait(&self, course: &Course, mut coming: Coming, stale: Outcome) -> Outcome {
        let outcome = async {
            let outcome = coming.wait_for(Option::is_some).await;
            outcome.ok().and_then(|outcome| outcome.clone()).flatten()
        };
        let Some(kept) = stale else {
            return outcome.await;
        };
        match timeout(self.timing.patience, outcome).await {
            Ok(Some(fresh)) => Some(fresh),
            // The question goes on in the background.
            Ok(None) | Err(_) => self.stale(course, kept),
        }
    }

    /// Too much is under way to ask for this too: what is stale must do.
    pub fn refuse(&self, course: &Course, stale: Outcome) -> Outcome {
        Counters::add(&self.counters.limited);
        stale.and_then(|kept| self.stale(course, kept))
    }

    /// A snapshot of the counters.
    #[must_use]
    pub fn stats(&self) -> DnsStats {
        let (cached, cached_bytes) = self.cache().size();
        DnsStats {
            cached: cached as u64,
            cached_bytes: cached_bytes as u64,
            ..self.counters.snapshot()
        }
    }

    /// Asks the group, or joins those who do already. None: too many are under way.
    pub fn ask(self: &Arc<Self>, query: &Query, course: &Course) -> Option<Coming> {
        let mut under_way = self.under_way();
        if let Some(coming) = under_way.get(&course.key) {
            Counters::add(&self.counters.coalesced);
            return Some(coming.clone());
        }
        if under_way.len() >= MOST_UNDER_WAY {
            return None;
        }
        let (told, coming) = watch::channel(None);
        under_way.insert(course.key.clone(), coming.clone());
        let ending = Ending {
            lookup: Arc::clone(self),
            key: course.key.clone(),
        };
        let course = course.clone();
        let ask = Ask {
            question: query.question.clone(),
            dnssec_ok: query.dnssec_ok(),
            checking_disabled: query.checking_disabled(),
        };
        // By itself, so that a client that goes away takes the answer from no other.
        tokio::spawn(async move {
            let outcome = ending.lookup.fetch(&course, &ask).await;
            // Questions that come from here on find it in the cache.
            drop(ending);
            told.send_replace(Some(outcome));
        });
        Some(coming)
    }

    async fn fetch(&self, course: &Course, ask: &Ask) -> Outcome {
        let (upstreams, counter) = match course.key.group {
            Group::Direct => (&self.direct, &self.counters.direct),
            Group::Proxy => (&self.proxy, &self.counters.proxy),
        };
        Counters::add(counter);
        let answer = upstreams.ask(ask).await;
        let now = Instant::now();
        let (evicted, outcome) = match answer {
            Ok(response) if matches!(response.code, code::NO_ERROR | code::NX_DOMAIN) => {
                let kept = Kept::new(response);
                if let Some(heard) = self.announce(course, &kept) {
                    // Whoever gets this answer connects at once, and his way should be settled by then.
                    let _ = timeout(self.timing.hearing, heard).await;
                }
                let evicted = self.cache().put(course.key.clone(), kept.clone(), now);
                (evicted, Some(kept))
            }
            other => {
                Counters::add(&self.counters.failures);
                let evicted = self.cache().put_failure(course.key.clone(), now);
                // What the upstream says is said: it may be REFUSED. Codes with more bits are between neighbours.
                let told = other.ok().filter(|response| response.code <= 15);
                (evicted, told.map(Kept::new))
            }
        };
        self.counters.evicted.fetch_add(evicted, Relaxed);
        outcome
    }

    fn stale(&self, course: &Course, kept: Kept) -> Outcome {
        Counters::add(&self.counters.stale);
        self.announce(course, &kept);
        Some(kept)
    }

    fn announce(&self, course: &Course, kept: &Kept) -> Option<Heard> {
        if kept.response.addresses.is_empty() {
            kept.announced.store(true, Relaxed);
            return None;
        }
        let addresses = kept.response.addresses.iter();
        let learned = Learned {
            name: course.name.clone(),
            group: course.key.group,
            addresses: addresses.map(|(ip, ttl)| (*ip, kept.ttl(*ttl))).collect(),
        };
        let heard = self.announcer.announce(learned, &self.counters);
        kept.announced.store(heard.is_some(), Relaxed);
        heard
    }

    /// What is kept. No code that can panic runs under the lock.
    pub fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn under_way(&self) -> MutexGuard<'_, HashMap<Key, Coming>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a question from the list of those under way, whatever becomes of it.
struct Ending {
    lookup: Arc<Lookup>,
    key: Key,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.lookup.under_way().remove(&self.key);
    }
}
