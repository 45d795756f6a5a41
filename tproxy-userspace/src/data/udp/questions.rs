//! DNS questions: the resolver's, not an association's.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, Waker};

use tokio::sync::Semaphore;

use super::{Datagram, Receiver, Scratch, with_scratch};
use crate::data::dns::{self, Dns, Over};
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

/// An answer to be sent: to the client, from the server that it asked.
type Answer = (SocketAddr, SocketAddr, Vec<u8>);

impl Default for Questions {
    fn default() -> Self {
        Self {
            room: Arc::new(Semaphore::new(MOST_WAITING)),
        }
    }
}

impl Questions {
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
        let mut answers: Vec<Answer> = Vec::new();
        for datagram in datagrams {
            let Some((client, server, question)) =
                datagram.take_if(|(_, destination, _)| destination.port() == dns::PORT)
            else {
                continue;
            };
            let (dns, question) = (dns.clone(), question.to_vec());
            let mut answering =
                Box::pin(async move { dns.answer(&question, Over::Udp, client).await });
            // What is in the cache, and what is not fit, is ready at the first look. Nobody has to be woken for it.
            let mut context = Context::from_waker(Waker::noop());
            match answering.as_mut().poll(&mut context) {
                Poll::Ready(answer) => {
                    answers.extend(answer.map(|answer| (client, server, answer)));
                }
                Poll::Pending => self.wait(answering, (client, server), receiver, shared),
            }
        }
        if !answers.is_empty() {
            send_answers(receiver, send, shared, &answers);
        }
    }

    fn wait(
        &self,
        answering: Pin<Box<impl Future<Output = Option<Vec<u8>>> + Send + 'static>>,
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
            if let Some(answer) = answering.await {
                with_scratch(|Scratch { send, .. }| {
                    send_answers(&receiver, send, &shared, &[(client, server, answer)]);
                });
            }
        });
    }
}

fn send_answers(receiver: &Receiver, send: &mut SendBatch, shared: &Shared, answers: &[Answer]) {
    let datagrams = answers.iter().map(|(client, server, answer)| Outgoing {
        to: Some(*client),
        from: Some(*server),
        prefix: Prefix::default(),
        payload: answer,
    });
    shared
        .counters
        .count_sent(&send.send(&receiver.socket, datagrams));
}
