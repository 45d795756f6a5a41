//! Telling others which addresses names stand for.

use std::net::IpAddr;

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::split::Group;
use super::stats::Counters;

/// Announcements that wait for their reader; more are dropped and counted.
pub const QUEUE: usize = 1024;

/// A name was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    /// The name that was asked for, as [`Choose`](super::Choose) gets it. Aliases lead from it to the addresses.
    pub name: String,
    /// Whose answer it is.
    pub group: Group,
    /// Each address with the seconds for which it holds.
    pub addresses: Vec<(IpAddr, u32)>,
}

/// Where announcements go.
#[derive(Debug)]
pub struct Announcer {
    queue: mpsc::Sender<Learned>,
}

impl Announcer {
    /// An announcer and its reader.
    #[must_use]
    pub fn new(capacity: usize) -> (Self, mpsc::Receiver<Learned>) {
        let (queue, reader) = mpsc::channel(capacity);
        (Self { queue }, reader)
    }

    /// Announces, without waiting. False if there was no room, so that it should be tried again.
    pub fn announce(&self, learned: Learned, counters: &Counters) -> bool {
        match self.queue.try_send(learned) {
            // Nobody wants to know any more.
            Ok(()) | Err(TrySendError::Closed(_)) => true,
            Err(TrySendError::Full(_)) => {
                Counters::add(&counters.events_dropped);
                false
            }
        }
    }
}
