//! Counters of the resolver, and a snapshot of them.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;

macro_rules! counters {
    ($($(#[$words:meta])* $name:ident),* $(,)?) => {
        /// Live counters, written by all tasks.
        #[derive(Debug, Default)]
        pub struct Counters {
            $($(#[$words])* pub $name: AtomicU64,)*
        }

        /// What the resolver did so far.
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
        pub struct DnsStats {
            $($(#[$words])* pub $name: u64,)*
            /// Entries of the cache.
            pub cached: u64,
            /// Bytes that they take, about.
            pub cached_bytes: u64,
        }

        impl Counters {
            /// A snapshot, without what the cache knows.
            #[must_use]
            pub fn snapshot(&self) -> DnsStats {
                DnsStats {
                    $($name: self.$name.load(Relaxed),)*
                    ..DnsStats::default()
                }
            }
        }
    };
}

counters! {
    /// Questions of clients, those included that were not fit.
    queries,
    /// Answered out of the cache.
    cache_hits,
    /// Answered with what was over its time, because the upstreams were slow or failed.
    stale,
    /// Waited for the answer to an equal question that was under way.
    coalesced,
    /// Questions to the direct group.
    direct,
    /// Questions to the proxy group.
    proxy,
    /// Questions that no upstream of the group answered.
    failures,
    /// Times that one upstream failed, whether or not another one answered.
    upstream_failures,
    /// Datagrams and messages that did not fit the question, so may be forged. Ignored.
    forged,
    /// Answers of upstreams that could not be read.
    malformed_answers,
    /// Questions that were malformed.
    malformed,
    /// Questions that were refused: the client, or all together, had too many under way.
    limited,
    /// UDP answers that were cut off, so that the client asks again over TCP.
    truncated,
    /// Entries of the cache that made room for others.
    evicted,
    /// Announcements of addresses that nobody took in time; each is tried again when its answer is given out again.
    events_dropped,
}

impl Counters {
    /// One more.
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }
}
