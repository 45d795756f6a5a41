//! Answers that are kept.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::Instant;

use super::split::Group;
use super::wire::{Query, Response, code};

/// No answer is kept for longer (RFC 8767 section 4 asks for a limit of days).
const LONGEST: u32 = 86_400;
/// Nor is an absence (RFC 2308 section 5).
const LONGEST_NEGATIVE: u32 = 3 * 3600;
/// For how long a failure is remembered (RFC 9520 section 3.2: at least 1 s, at most 5 min).
const FAILURE: Duration = Duration::from_secs(5);
/// After a refresh that failed, what is stale is given out for so long before the next (RFC 8767 section 5).
const PAUSE: Duration = Duration::from_secs(30);
/// The TTL of what is stale, in seconds (RFC 8767 section 4).
pub const STALE_TTL: u32 = 30;
/// Bytes for each entry that is allowed. Few answers are larger, so it binds only if somebody sees to that.
const BYTES_PER_ENTRY: usize = 2048;

/// What answers are kept under. Two groups may have different answers for a name, so a name that changes its group
/// does not get those of the other one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// Whose answer it is.
    pub group: Group,
    name: Box<[u8]>,
    kind: u16,
    class: u16,
    dnssec_ok: bool,
    checking_disabled: bool,
}

impl Key {
    /// The key of a question.
    #[must_use]
    pub fn of(query: &Query, group: Group) -> Self {
        Self {
            group,
            name: query.question.lower(),
            kind: query.question.kind,
            class: query.question.class,
            dnssec_ok: query.dnssec_ok(),
            checking_disabled: query.checking_disabled(),
        }
    }
}

/// What is given out.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The answer as it came.
    pub response: Arc<Response>,
    /// Its addresses were announced.
    pub announced: Arc<AtomicBool>,
    age: Age,
}

#[derive(Clone, Copy, Debug)]
enum Age {
    Seconds(u32),
    Stale,
}

impl Kept {
    /// An answer that has just come.
    #[must_use]
    pub fn new(response: Response) -> Self {
        Self {
            response: Arc::new(response),
            announced: Arc::default(),
            age: Age::Seconds(0),
        }
    }

    /// What is left of a TTL.
    #[must_use]
    pub fn ttl(&self, ttl: u32) -> u32 {
        match self.age {
            Age::Seconds(seconds) => ttl.min(LONGEST).saturating_sub(seconds),
            Age::Stale => STALE_TTL,
        }
    }
}

/// What the cache knows.
#[derive(Clone, Debug)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// An answer that holds.
    Fresh(Kept),
    /// An answer whose time is over. It is to be asked for anew.
    Stale(Kept),
    /// An answer whose time is over. A refresh failed not long ago.
    Waiting(Kept),
    /// Nobody had an answer not long ago.
    Failed,
}

/// Answers and failures, at most so many; the longest unused makes room, or one that is nearly so.
#[derive(Debug)]
pub struct Cache {
    entries: HashMap<Arc<Key>, Entry>,
    /// The keys in the order of use, but for uses that followed close on each other.
    order: BTreeMap<u64, Arc<Key>>,
    uses: u64,
    bytes: usize,
    capacity: usize,
    stale: Duration,
}

#[derive(Debug)]
struct Entry {
    used: u64,
    size: usize,
    value: Value,
}

#[derive(Debug)]
enum Value {
    Answer {
        kept: Kept,
        since: Instant,
        /// The answer holds until then.
        until: Instant,
        /// It is of use until then.
        stale_until: Instant,
        /// A refresh is not tried before.
        retry: Option<Instant>,
    },
    Failure {
        until: Instant,
    },
}

impl Cache {
    /// A cache of at most `capacity` entries; 0 keeps nothing. Positive answers are of use for `stale` after their
    /// time is over.
    #[must_use]
    pub fn new(capacity: usize, stale: Duration) -> Self {
        Self {
            entries: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            bytes: 0,
            capacity,
            stale,
        }
    }

    /// What is known now.
    pub fn get(&mut self, key: &Key, now: Instant) -> Found {
        let Some(entry) = self.entries.get_mut(key) else {
            return Found::Nothing;
        };
        let found = match &entry.value {
            Value::Failure { until } if now < *until => Found::Failed,
            Value::Answer {
                kept, since, until, ..
            } if now < *until => Found::Fresh(Kept {
                age: Age::Seconds((now - *since).as_secs() as u32),
                ..kept.clone()
            }),
            Value::Answer {
                kept,
                stale_until,
                retry,
                ..
            } if now < *stale_until => {
                let kept = Kept {
                    age: Age::Stale,
                    ..kept.clone()
                };
                if retry.is_some_and(|retry| now < retry) {
                    Found::Waiting(kept)
                } else {
                    Found::Stale(kept)
                }
            }
            _ => Found::Nothing,
        };
        if matches!(found, Found::Nothing) {
            self.remove(key);
            return found;
        }
        // One that was used lately is far from making room. It keeps its place, which spares the work for names that
        // are asked for again and again.
        let is_recent = self.uses - entry.used < self.capacity as u64 / 4;
        if !is_recent && let Some(key) = self.order.remove(&entry.used) {
            self.uses += 1;
            entry.used = self.uses;
            self.order.insert(self.uses, key);
        }
        found
    }

    /// Keeps an answer, if it may be kept at all. Returns how many entries made room.
    pub fn put(&mut self, key: Key, kept: Kept, now: Instant) -> u64 {
        let Some((ttl, is_positive)) = lifetime(&kept.response) else {
            self.remove(&key);
            return 0;
        };
        let until = now + Duration::from_secs(ttl.into());
        // An absence that is over may have become a presence, so it is never stale.
        let stale = if is_positive {
            self.stale
        } else {
            Duration::ZERO
        };
        let value = Value::Answer {
            kept,
            since: now,
            until,
            stale_until: until + stale,
            retry: None,
        };
        self.insert(key, value)
    }

    /// Remembers that nobody had an answer. What is stale stays of use. Returns how many entries made room.
    pub fn put_failure(&mut self, key: Key, now: Instant) -> u64 {
        if let Some(Entry {
            value: Value::Answer {
                stale_until, retry, ..
            },
            ..
        }) = self.entries.get_mut(&key)
            && now < *stale_until
        {
            *retry = Some(now + PAUSE);
            return 0;
        }
        let until = now + FAILURE;
        self.insert(key, Value::Failure { until })
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
        self.bytes = 0;
    }

    /// How many entries there are, and how many bytes they take, about.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }

    fn insert(&mut self, key: Key, value: Value) -> u64 {
        self.remove(&key);
        let answer = match &value {
            Value::Answer { kept, .. } => kept.response.size(),
            Value::Failure { .. } => 0,
        };
        let size = answer + key.name.len() + size_of::<Key>() + size_of::<Entry>();
        let most = self.capacity.saturating_mul(BYTES_PER_ENTRY);
        if self.capacity == 0 || size > most {
            return 0;
        }
        let mut evicted = 0;
        while self.entries.len() >= self.capacity || self.bytes + size > most {
            let Some((_, oldest)) = self.order.pop_first() else {
                break;
            };
            self.remove(&oldest);
            evicted += 1;
        }
        self.uses += 1;
        self.bytes += size;
        let key = Arc::new(key);
        self.order.insert(self.uses, Arc::clone(&key));
        let used = self.uses;
        self.entries.insert(key, Entry { used, size, value });
        evicted
    }

    fn remove(&mut self, key: &Key) {
        if let Some(entry) = self.entries.remove(key) {
            self.order.remove(&entry.used);
            self.bytes -= entry.size;
        }
    }
}

/// For how many seconds an answer holds, and whether it has what was asked. None: it must not be kept.
fn lifetime(response: &Response) -> Option<(u32, bool)> {
    let negative = || {
        response
            .negative_ttl
            .map(|ttl| (ttl.min(LONGEST_NEGATIVE), false))
    };
    let (ttl, is_positive) = match response.code {
        code::NO_ERROR if response.is_positive => (response.ttl.min(LONGEST), true),
        code::NO_ERROR | code::NX_DOMAIN => negative()?,
        _ => return None,
    };
    (ttl > 0).then_some((ttl, is_positive))
}
