//! Datagrams that cannot go on yet.

use std::net::SocketAddr;

use crate::net::mmsg::SendReport;

/// Datagrams that may wait in one place.
const MOST: usize = 64;
/// Their payload, in bytes.
const MOST_BYTES: usize = 128 << 10;

/// Datagrams with their destinations, in the order in which they came.
#[derive(Debug, Default)]
pub struct Waiting {
    datagrams: Vec<(SocketAddr, Box<[u8]>)>,
    bytes: usize,
}

impl Waiting {
    /// Is there room for a payload of so many bytes?
    #[must_use]
    pub fn has_room(&self, bytes: usize) -> bool {
        self.datagrams.len() < MOST && self.bytes + bytes <= MOST_BYTES
    }

    /// Keeps what there is room for; the rest counts as blocked.
    pub fn put<'a>(
        &mut self,
        datagrams: impl Iterator<Item = (SocketAddr, &'a [u8])>,
    ) -> SendReport {
        let mut report = SendReport::default();
        for (destination, payload) in datagrams {
            if self.has_room(payload.len()) {
                self.bytes += payload.len();
                self.datagrams.push((destination, payload.into()));
            } else {
                report.blocked += 1;
            }
        }
        report
    }

    /// All that wait.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &[u8])> + Clone {
        self.datagrams.iter().map(|(to, payload)| (*to, &**payload))
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    /// Their payload in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}
