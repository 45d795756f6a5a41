//! A Trojan server: datagrams on a stream.

use std::cell::RefCell;
use std::future::{pending, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Datagram, Sender, Taker};
use crate::data::outbound::trojan::{
    KIND, LONGEST_PAYLOAD, Malformed, Parsed, TrojanServer, parse_datagram, put_datagram,
};
use crate::data::outbound::{DialError, Dialer, Peer};
use crate::data::record::Protocol;
use crate::data::stream::Stream;
use crate::data::udp::with_scratch;
use crate::data::way::Way;
use crate::net::mmsg::{BATCH, SendReport};

/// How many bytes may wait for the stream. As many again are on their way.
const ROOM: usize = 128 << 10;
/// The most bytes around a payload: its sender as a name, the length, the end of line.
const LONGEST_FRAME: usize = 1 + 1 + 255 + 2 + 2 + 2;
/// A server that ends a stream so soon and without a word knows another password.
const SOON: Duration = Duration::from_secs(10);

thread_local! {
    /// What is read goes here. Only the beginning of a datagram whose end is not there stays with its stream.
    static BYTES: RefCell<Box<[u8]>> =
        RefCell::new(vec![0; (64 << 10) + LONGEST_FRAME + LONGEST_PAYLOAD].into());
}

pub(super) async fn reach(
    dialer: &Dialer,
    way: &Way,
    server: &TrojanServer,
    first: SocketAddr,
) -> Result<(Sender, super::Answers), DialError> {
    let stream = dialer.datagrams(way, server, first).await?;
    let outbox = Arc::new(Outbox::default());
    let sender = Sender::Trojan(Arc::clone(&outbox));
    let answers = Answers {
        stream,
        outbox: Outlet(outbox),
        server: Peer {
            kind: KIND,
            at: format!("{}:{}", server.host, server.port),
        },
    };
    Ok((sender, super::Answers::Trojan(answers)))
}

/// What waits for the stream.
#[derive(Debug, Default)]
pub struct Outbox {
    queue: Mutex<Queue>,
    /// There is something in it.
    filled: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    bytes: Vec<u8>,
    /// Nobody takes anything out of it any more.
    closed: bool,
}

impl Outbox {
    /// Keeps what there is room for; the rest counts as blocked.
    pub(super) fn put<'a>(&self, datagrams: impl Iterator<Item = Datagram<'a>>) -> SendReport {
        let mut report = SendReport::default();
        let mut queue = self.queue();
        for (peer, payload) in datagrams {
            if queue.closed || queue.bytes.len() + LONGEST_FRAME + payload.len() > ROOM {
                report.blocked += 1;
            } else if put_datagram(peer, payload, &mut queue.bytes) {
                report.sent += 1;
                report.bytes += payload.len();
            } else {
                report.refused += 1;
            }
        }
        drop(queue);
        if report.sent > 0 {
            self.filled.notify_one();
        }
        report
    }

    /// Waits for something and takes it.
    async fn take(&self) -> Vec<u8> {
        loop {
            let bytes = std::mem::take(&mut self.queue().bytes);
            if !bytes.is_empty() {
                return bytes;
            }
            self.filled.notified().await;
        }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the outbox when the stream goes.
#[derive(Debug)]
struct Outlet(Arc<Outbox>);

impl Drop for Outlet {
    fn drop(&mut self) {
        *self.0.queue() = Queue {
            bytes: Vec::new(),
            closed: true,
        };
    }
}

/// The stream.
#[derive(Debug)]
pub struct Answers {
    stream: Stream,
    outbox: Outlet,
    server: Peer,
}

/// How reading ended.
#[derive(Debug)]
enum End {
    /// The taker has enough.
    Enough,
    /// The stream ended.
    Stream,
    /// It was reset, or TLS broke.
    Broken(io::Error),
    /// What it sent is none of the protocol.
    Malformed(Malformed),
}

impl Answers {
    /// Writes what is in the outbox and reads answers until the stream ends.
    pub(super) async fn carry(self, way: &Way, taker: &mut impl Taker) -> Result<(), DialError> {
        let opened = Instant::now();
        let (reading, writing) = tokio::io::split(self.stream);
        let mut reader = Reader {
            stream: reading,
            kept: Vec::new(),
            way,
            heard: false,
        };
        let end = tokio::select! {
            end = poll_fn(|context| reader.poll(context, taker)) => end,
            never = write(&self.outbox.0, writing) => never,
        };
        let is_cut = |error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof;
        let silent = !reader.heard && opened.elapsed() < SOON;
        let reason = match end {
            End::Malformed(Malformed::AddressType(b'H')) if !reader.heard => {
                "answers as a web server does; check the password"
            }
            End::Stream if silent => "hung up on the first datagrams; check the password",
            End::Broken(error) if silent && is_cut(&error) => {
                "hung up on the first datagrams; check the password"
            }
            End::Malformed(reason) => {
                let error = DialError::Protocol {
                    server: self.server,
                    step: "relaying datagrams",
                    reason: reason.to_string(),
                };
                way.report(Protocol::Udp, Some(&error));
                return Err(error);
            }
            End::Enough | End::Stream | End::Broken(_) => return Ok(()),
        };
        let error = DialError::Auth {
            server: self.server,
            reason: reason.to_owned(),
        };
        way.report(Protocol::Udp, Some(&error));
        Err(error)
    }
}

/// Writes for ever. If it cannot any more, reading tells why.
async fn write<T>(outbox: &Outbox, mut stream: impl AsyncWrite + Unpin) -> T {
    loop {
        let bytes = outbox.take().await;
        if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
            return pending().await;
        }
    }
}

struct Reader<'w, S> {
    stream: S,
    /// The beginning of a datagram.
    kept: Vec<u8>,
    way: &'w Way,
    /// An answer came.
    heard: bool,
}

impl<S: AsyncRead + Unpin> Reader<'_, S> {
    /// Reads to the end.
    fn poll(&mut self, context: &mut Context<'_>, taker: &mut impl Taker) -> Poll<End> {
        loop {
            let flow =
                BYTES.with_borrow_mut(|bytes| self.poll_some(context, &mut bytes[..], taker));
            if let ControlFlow::Break(end) = ready!(flow) {
                return Poll::Ready(end);
            }
        }
    }

    /// Reads once and hands on what is whole.
    fn poll_some(
        &mut self,
        context: &mut Context<'_>,
        bytes: &mut [u8],
        taker: &mut impl Taker,
    ) -> Poll<ControlFlow<End>> {
        let kept = self.kept.len();
        bytes[..kept].copy_from_slice(&self.kept);
        let mut into = ReadBuf::new(&mut bytes[kept..]);
        if let Err(error) = ready!(Pin::new(&mut self.stream).poll_read(context, &mut into)) {
            return Poll::Ready(ControlFlow::Break(End::Broken(error)));
        }
        let read = into.filled().len();
        if read == 0 {
            return Poll::Ready(ControlFlow::Break(End::Stream));
        }
        let mut rest = &bytes[..kept + read];
        Poll::Ready(loop {
            let mut answers = [None; BATCH];
            let (count, end) = parse_batch(&mut rest, &mut answers);
            if count > 0 {
                if !std::mem::replace(&mut self.heard, true) {
                    self.way.report(Protocol::Udp, None);
                }
                let answers = &answers[..count];
                let flow = with_scratch(|scratch| taker.take(answers, &mut scratch.send));
                if flow.is_break() {
                    break ControlFlow::Break(End::Enough);
                }
            }
            if let Some(malformed) = end {
                break ControlFlow::Break(End::Malformed(malformed));
            }
            if count < BATCH {
                // Without a rest its memory is given back.
                self.kept = rest.to_vec();
                break ControlFlow::Continue(());
            }
        })
    }
}

/// Reads datagrams from the front of `rest`, as many as there are and as there is room for. Gives how many, and what is
/// wrong behind them.
fn parse_batch<'b>(
    rest: &mut &'b [u8],
    answers: &mut [Option<Datagram<'b>>; BATCH],
) -> (usize, Option<Malformed>) {
    for (count, answer) in answers.iter_mut().enumerate() {
        match parse_datagram(rest) {
            Ok(Parsed::Datagram { peer, payload }) => {
                let (whole, behind) = rest.split_at(payload.end);
                *answer = peer.map(|peer| (peer, &whole[payload]));
                *rest = behind;
            }
            Ok(Parsed::Needs(_)) => return (count, None),
            Err(malformed) => return (count, Some(malformed)),
        }
    }
    (BATCH, None)
}
