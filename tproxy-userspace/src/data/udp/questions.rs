//! DNS questions: the resolver's, not an association's.

use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use tokio::sync::Semaphore;

use super::{Datagram, Receiver, Scratch, with_scratch};
use crate::data::dns::{self, Dns, Later, Now, Over};
use crate::data::record::Shared;
use crate::net::mmsg::{BATCH, Outgoing, Prefix, SendBatch};

/// Questions that may wait for upstreams at once. The resolver limits those of one client, and different ones; this
/// is for many clients with one question.
const MOST_WAITING: usize = 4096;

/// Who waits for an answer.
#[derive(Debug)]
pub struct Questions {
    room: Arc<Semaphore>,
}

/// Answers to be sent.
#[derive(Debug, Default)]
struct Answers {
    /// All of them, one behind the other.
    bytes: Vec<u8>,
    /// To which client, from the server that it asked, and which of the bytes.
    places: Vec<(SocketAddr, SocketAddr, Range<usize>)>,
}

impl Default for Questions {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(MOST_WAITING)),
        }
    }
}

impl Questions {
    /// Does nobody wait for an answer?
    pub fn is_idle(&self) -> bool {
        self.room.available_permits() == MOST_WAITING
    }

    /// Takes the questions out of a batch and answers them: those whose answers are known at once together, the others
    /// when their answers come.
    pub fn take(
        &self,
        dns: &Dns,
        datagrams: &mut [Option<Datagram<'_>>; BATCH],
        receiver: &Arc<Receiver>,
        send: &mut SendBatch,
        shared: &Arc<Shared>,
    ) {
        let mut answers = Answers::default();
        for datagram in datagrams {
            let Some((client, server, question)) =
                datagram.take_if(|(_, destination, _)| destination.port() == dns::PORT)
            else {
                continue;
            };
            let start = answers.bytes.len();
            match dns.answer_now(question, Over::Udp, client, &mut answers.bytes) {
                Now::Answered => {
                    let place = start..answers.bytes.len();
                    answers.places.push((client, server, place));
                }
                Now::Silence => {}
                Now::Later(later) => {
                    self.wait(dns.clone(), *later, (client, server), receiver, shared);
                }
            }
        }
        answers.send(receiver, send, shared);
    }

    fn wait(
        &self,
        dns: Dns,
        later: Later,
        (client, server): (SocketAddr, SocketAddr),
        receiver: &Arc<Receiver>,
        shared: &Arc<Shared>,
    ) {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            shared.counters.datagrams_dropped.fetch_add(1, Relaxed);
            return;
        };
        let (receiver, shared) = (Arc::clone(receiver), Arc::clone(shared));
        tokio::spawn(async move {
            let _place = place;
            let bytes = dns.answer_later(later).await;
            let answers = Answers {
                places: vec![(client, server, 0..bytes.len())],
                bytes,
            };
            with_scratch(|Scratch { send, .. }| answers.send(&receiver, send, &shared));
        });
    }
}

impl Answers {
    fn send(&self, receiver: &Receiver, send: &mut SendBatch, shared: &Shared) {
        if self.places.is_empty() {
            return;
        }
        let datagrams = self.places.iter().map(|(client, server, place)| Outgoing {
            to: Some(*client),
            from: Some(*server),
            prefix: Prefix::default(),
            payload: &self.bytes[place.clone()],
            overhead: 0,
        });
        let report = send.send(&receiver.socket, datagrams);
        shared.counters.count_sent(&report);
    }
}
