//! A Shadowsocks server (SIP007, SIP022): each device socket is one session.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;

use tokio::net::UdpSocket;

use super::{Datagram, Taker, connect, receive};
use crate::data::outbound::shadowsocks::{
    self, PacketFault, PacketOpener, PacketSealer, ShadowsocksServer,
};
use crate::data::outbound::{DialError, Dialer, Peer};
use crate::data::record::Protocol;
use crate::data::way::Way;
use crate::net::mmsg::{BATCH, Outgoing, Prefix, Received, SendBatch, SendReport, in_batches};

/// How much memory a thread keeps for the next batch. One of the largest datagrams takes eight times that.
const KEPT: usize = 256 << 10;

thread_local! {
    static BYTES: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Encrypts or decrypts a batch into a buffer of this thread. Nothing stays in it.
fn with_bytes<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    BYTES.with_borrow_mut(|bytes| {
        let result = work(bytes);
        bytes.clear();
        bytes.shrink_to(KEPT);
        result
    })
}

/// Nothing is asked of the server, so what is reached is a socket and a session. By the first of the server's addresses
/// that there is a route to: whether it answers shows only when a peer does.
pub(super) fn reach(
    dialer: &Dialer,
    way: &Way,
    server: &ShadowsocksServer,
) -> Result<(super::Sender, super::Answers), DialError> {
    let mut failure = DialError::Timeout {
        peer: way.outbound.to_string(),
        limit: dialer.limit,
        connected: false,
    };
    for address in way.candidates() {
        if dialer.guard.is_receiver(address) {
            failure = DialError::Loop {
                what: "the server",
                outbound: way.outbound.to_string(),
                address,
            };
            continue;
        }
        match connect(dialer, way, address) {
            Ok(socket) => {
                let (sealer, opener) = shadowsocks::session(&server.keys);
                let socket = Arc::new(socket);
                let sender = Sender {
                    socket: Arc::clone(&socket),
                    sealer,
                };
                let answers = Answers {
                    socket,
                    opener,
                    server: address,
                    known: false,
                };
                return Ok((
                    super::Sender::Shadowsocks(Box::new(sender)),
                    super::Answers::Shadowsocks(Box::new(answers)),
                ));
            }
            // A loop is told of first: only a person can end it.
            Err(error) if !matches!(failure, DialError::Loop { .. }) => failure = error,
            Err(_) => {}
        }
    }
    way.failed();
    Err(failure)
}

/// Encrypts and sends.
#[derive(Debug)]
pub struct Sender {
    /// Connected to the server.
    socket: Arc<UdpSocket>,
    sealer: PacketSealer,
}

impl Sender {
    pub(super) fn send<'a>(
        &self,
        batch: &mut SendBatch,
        mut datagrams: impl Iterator<Item = Datagram<'a>>,
    ) -> SendReport {
        with_bytes(|bytes| {
            let mut report = SendReport::default();
            loop {
                bytes.clear();
                let mut sealed = [const { (0..0, 0) }; BATCH];
                let mut count = 0;
                for (place, (peer, payload)) in sealed.iter_mut().zip(&mut datagrams) {
                    let start = bytes.len();
                    self.sealer.seal(peer, payload, bytes);
                    let overhead = bytes.len() - start - payload.len();
                    *place = (start..bytes.len(), overhead);
                    count += 1;
                }
                let outgoing = sealed[..count].iter().map(|(place, overhead)| Outgoing {
                    to: None,
                    from: None,
                    prefix: Prefix::default(),
                    payload: &bytes[place.clone()],
                    overhead: *overhead,
                });
                report.add(batch.send(&*self.socket, outgoing));
                if count < BATCH {
                    return report;
                }
            }
        })
    }
}

/// Receives and decrypts.
#[derive(Debug)]
pub struct Answers {
    /// Connected to the server.
    socket: Arc<UdpSocket>,
    opener: PacketOpener,
    server: SocketAddr,
    /// It is known, and told, whether the server and this side understand each other.
    known: bool,
}

impl Answers {
    pub(super) async fn carry(mut self, way: &Way, taker: &mut impl Taker) {
        let socket = Arc::clone(&self.socket);
        while socket.readable().await.is_ok() {
            let flow = receive(&socket, |recv, send| {
                in_batches(recv.datagrams(), |batch, count| {
                    with_bytes(|bytes| self.open(&batch[..count], bytes, way, taker, send))
                })
            });
            if flow.is_break() {
                return;
            }
        }
    }

    fn open(
        &mut self,
        batch: &[Option<Received<'_>>],
        bytes: &mut Vec<u8>,
        way: &Way,
        taker: &mut impl Taker,
        send: &mut SendBatch,
    ) -> ControlFlow<()> {
        let mut opened = [const { None }; BATCH];
        for (received, place) in batch.iter().zip(&mut opened) {
            let Some(received) = received else {
                continue;
            };
            let result = self.opener.open(received.payload, bytes);
            if matches!(result, Err(PacketFault::Sessions)) {
                // A server that was restarted twice. It takes a new session at once, this one only in a minute.
                return ControlFlow::Break(());
            }
            if !self.known {
                self.tell(way, &result);
            }
            if let Ok((Some(peer), payload)) = result {
                *place = Some((peer, payload));
            }
        }
        let mut answers = [None; BATCH];
        for (answer, place) in answers.iter_mut().zip(&opened) {
            let place = place.as_ref();
            *answer = place.map(|(peer, payload)| (*peer, &bytes[payload.clone()]));
        }
        taker.take(&answers[..batch.len()], send)
    }

    /// Tells what the first answer says of the server.
    fn tell<T>(&mut self, way: &Way, result: &Result<T, PacketFault>) {
        match result {
            Ok(_) => {
                way.worked(self.server);
                way.report(Protocol::Udp, None);
            }
            // Only the server itself can have said so.
            Err(fault @ PacketFault::Clock(_)) => {
                let kind = shadowsocks::KIND;
                let at = self.server.to_string();
                way.report(
                    Protocol::Udp,
                    Some(&DialError::Protocol {
                        server: Peer { kind, at },
                        step: "relaying datagrams",
                        reason: fault.to_string(),
                    }),
                );
            }
            Err(_) => return,
        }
        self.known = true;
    }
}
