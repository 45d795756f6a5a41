//! Connections to a server that speak TLS already, for those to come: what a device asks for next then waits for one
//! round trip to the server instead of three.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::Way;
use crate::data::outbound::{Dialer, Peer};
use crate::data::record::Shared;
use crate::data::stream::Stream;

/// The most of them that a server has, ready or on their way. Each is made because one was used, so a proxy that does
/// nothing has none.
const MOST: usize = 4;
/// How long one may wait for its use. Servers close what is silent for longer, some after 30 s.
const LIFETIME: Duration = Duration::from_secs(10);

/// The spare connections of an outbound.
#[derive(Debug, Default)]
pub struct Spares {
    ready: Mutex<VecDeque<Spare>>,
    /// How many are on their way.
    making: AtomicUsize,
    /// How many were asked for since some were last made.
    asked: AtomicUsize,
    wanted: Notify,
}

#[derive(Debug)]
struct Spare {
    stream: Stream,
    made: Instant,
    peer: Peer,
}

impl Spares {
    /// One that still lives, and whom it is to. Whether there is one or not, another is made for the next.
    pub async fn take(&self) -> Option<(Stream, Peer)> {
        self.asked.fetch_add(1, Relaxed);
        self.wanted.notify_one();
        loop {
            let Spare {
                mut stream,
                made,
                peer,
            } = self.ready().pop_front()?;
            if made.elapsed() < LIFETIME && lives(&mut stream).await {
                return Some((stream, peer));
            }
        }
    }

    fn put(&self, (stream, peer): (Stream, Peer)) {
        let made = Instant::now();
        self.ready().push_back(Spare { stream, made, peer });
    }

    fn expire(&self) {
        self.ready().retain(|spare| spare.made.elapsed() < LIFETIME);
    }

    /// When the first of them expires.
    fn expires(&self) -> Option<Instant> {
        self.ready().front().map(|spare| spare.made + LIFETIME)
    }

    /// How many are to be made now. They count as on their way from here on.
    fn take_wanted(&self) -> usize {
        let room = MOST.saturating_sub(self.ready().len() + self.making.load(Relaxed));
        let wanted = self.asked.swap(0, Relaxed).min(room);
        self.making.fetch_add(wanted, Relaxed);
        wanted
    }

    fn ready(&self) -> MutexGuard<'_, VecDeque<Spare>> {
        // No code that can panic runs under the lock.
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has the server said nothing, and not hung up? It has no reason to speak first.
async fn lives(stream: &mut Stream) -> bool {
    let mut byte = [0];
    poll_fn(|context| {
        let mut buffer = ReadBuf::new(&mut byte);
        // TLS reads what the server says of itself (session tickets) on this occasion.
        let read = Pin::new(&mut *stream).poll_read(context, &mut buffer);
        Poll::Ready(read.is_pending())
    })
    .await
}

impl Way {
    /// A connection to the server that speaks TLS already, and whom it is to. From the first call on they are made.
    pub(in crate::data) async fn spare(&self) -> Option<(Stream, Peer)> {
        self.spares.as_ref()?.take().await
    }

    /// Waits until another spare connection is wanted.
    async fn wants_spare(self: &Arc<Self>) -> Arc<Self> {
        match &self.spares {
            Some(spares) => spares.wanted.notified().await,
            None => std::future::pending().await,
        }
        Arc::clone(self)
    }
}

/// Makes spare connections where they are wanted, and ends those that are too old, for ever.
pub async fn keep(shared: Arc<Shared>, dialer: Dialer) {
    let mut replaced = shared.replacements();
    let mut making = JoinSet::new();
    loop {
        let router = shared.router();
        let ways = router.ways().iter();
        let wanted = select_all(ways.map(|way| Box::pin(way.wants_spare())));
        let all = router.ways().iter().filter_map(|way| way.spares.as_ref());
        let expires = all.clone().filter_map(Spares::expires).min();
        let expired = async {
            match expires {
                Some(expires) => sleep_until(expires).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            (way, ..) = wanted => {
                let count = way.spares.as_ref().map_or(0, Spares::take_wanted);
                for _ in 0..count {
                    let (way, dialer) = (Arc::clone(&way), dialer.clone());
                    making.spawn(async move { make(&way, &dialer).await });
                }
            }
            Some(_) = making.join_next() => {}
            () = expired => all.for_each(Spares::expire),
            _ = replaced.changed() => {}
        }
    }
}

async fn make(way: &Way, dialer: &Dialer) {
    let Some(spares) = &way.spares else { return };
    // What fails here fails for the next device, too, and is told then.
    let made = dialer.prepare(way).await;
    spares.making.fetch_sub(1, Relaxed);
    if let Ok(made) = made {
        spares.put(made);
    }
}

#[cfg(test)]
mod tests;
