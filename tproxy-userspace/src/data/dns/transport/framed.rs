//! Messages one after the other on a connection (RFC 7766, and RFC 7858 over TLS).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, split};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::{Ask, Failure};
use crate::data::dns::stats::Counters;
use crate::data::dns::wire::{Mismatch, Question, Response};

/// Questions that wait to be written. More wait outside.
const QUEUE: usize = 16;

/// A connection on which many questions are under way at once; answers come in any order.
#[derive(Debug)]
pub struct Framed {
    waiting: Arc<Waiting>,
    out: mpsc::Sender<Vec<u8>>,
    pad: bool,
}

#[derive(Debug, Default)]
struct Waiting(Mutex<HashMap<u16, Waiter>>);

#[derive(Debug)]
struct Waiter {
    question: Question,
    /// Taken by the answer. The number stays in use until its question is done with.
    answer: Option<oneshot::Sender<Result<Response, Failure>>>,
}

impl Waiting {
    fn lock(&self) -> MutexGuard<'_, HashMap<u16, Waiter>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A number that is in use. Dropping it takes the question back.
struct Turn<'w> {
    waiting: &'w Waiting,
    id: u16,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.waiting.lock().remove(&self.id);
    }
}

impl Framed {
    /// Starts to read and write. A connection with nothing to read for `idle` ends.
    pub fn start<S>(stream: S, pad: bool, idle: Duration, counters: Arc<Counters>) -> Self
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let waiting = Arc::new(Waiting::default());
        let (out, questions) = mpsc::channel(QUEUE);
        let shared = Arc::clone(&waiting);
        tokio::spawn(async move {
            let (input, output) = split(stream);
            tokio::select! {
                () = read(input, &shared, idle, &counters) => {}
                () = write(output, questions) => {}
            }
            // Whoever waits learns that nothing will come.
            shared.lock().clear();
        });
        Self { waiting, out, pad }
    }

    /// It takes no more questions.
    pub fn is_closed(&self) -> bool {
        self.out.is_closed()
    }

    /// Asks, and waits for as long as it takes.
    pub async fn ask(&self, ask: &Ask) -> Result<Response, Failure> {
        let (answer, answered) = oneshot::channel();
        let waiter = Waiter {
            question: ask.question.clone(),
            answer: Some(answer),
        };
        let turn = self.enter(waiter);
        let message = ask.encode(turn.id, self.pad);
        let mut framed = Vec::with_capacity(2 + message.len());
        // One write for both: RFC 7766 section 8.
        framed.extend((message.len() as u16).to_be_bytes());
        framed.extend(message);
        self.out.send(framed).await.map_err(|_| Failure::Closed)?;
        // The task may have ended between the two, and cleared all but this.
        if self.is_closed() {
            return Err(Failure::Closed);
        }
        answered.await.unwrap_or(Err(Failure::Closed))
    }

    fn enter(&self, waiter: Waiter) -> Turn<'_> {
        let mut waiting = self.waiting.lock();
        loop {
            // Far fewer than all numbers are in use: see the limit on questions under way.
            let id = rand::random();
            if let Entry::Vacant(free) = waiting.entry(id) {
                free.insert(waiter);
                return Turn {
                    waiting: &self.waiting,
                    id,
                };
            }
        }
    }
}

async fn read(input: impl AsyncRead, waiting: &Waiting, idle: Duration, counters: &Counters) {
    let mut input = std::pin::pin!(BufReader::new(input));
    loop {
        let message = async {
            let length = input.read_u16().await?;
            let mut message = vec![0; length.into()];
            input.read_exact(&mut message).await.map(|_| message)
        };
        let Ok(Ok(message)) = timeout(idle, message).await else {
            return;
        };
        let Some(id) = message.first_chunk().map(|id| u16::from_be_bytes(*id)) else {
            Counters::add(&counters.malformed_answers);
            return;
        };
        let mut waiting = waiting.lock();
        let Some(waiter) = waiting.get_mut(&id) else {
            // Late, or of nobody's question.
            continue;
        };
        match Response::parse(message, id, &waiter.question) {
            Err(Mismatch::Foreign) => Counters::add(&counters.forged),
            parsed => {
                if let Some(answer) = waiter.answer.take() {
                    // It is no matter if nobody waits any more.
                    let _ = answer.send(parsed.map_err(Failure::from));
                }
            }
        }
    }
}

async fn write(mut output: impl AsyncWrite + Unpin, mut questions: mpsc::Receiver<Vec<u8>>) {
    while let Some(question) = questions.recv().await {
        let written = async {
            output.write_all(&question).await?;
            output.flush().await
        };
        if written.await.is_err() {
            return;
        }
    }
}
