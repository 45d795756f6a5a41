//! Telling others which addresses names stand for.

use std::net::IpAddr;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

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

/// What was learned, on its way to who acts on it. The answer waits for a moment until this is dropped.
#[derive(Debug)]
pub struct Announcement {
    /// What was learned.
    pub learned: Learned,
    _told: oneshot::Sender<()>,
}

/// Ends when an [`Announcement`] was acted on.
pub type Heard = oneshot::Receiver<()>;

/// Where announcements go.
#[derive(Debug)]
pub struct Announcer {
    queue: mpsc::Sender<Announcement>,
}

impl Announcer {
    /// An announcer and its reader.
    #[must_use]
    pub fn new(capacity: usize) -> (Self, mpsc::Receiver<Announcement>) {
        let (queue, reader) = mpsc::channel(capacity);
        (Self { queue }, reader)
    }

    /// Announces, without waiting. None if there was no room, so that it should be tried again.
    pub fn announce(&self, learned: Learned, counters: &Counters) -> Option<Heard> {
        let (told, heard) = oneshot::channel();
        let announcement = Announcement {
            learned,
            _told: told,
        };
        match self.queue.try_send(announcement) {
            // If it is closed, nobody wants to know any more.
            Ok(()) | Err(TrySendError::Closed(_)) => Some(heard),
            Err(TrySendError::Full(_)) => {
                Counters::add(&counters.events_dropped);
                None
            }
        }
    }
}
