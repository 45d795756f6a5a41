//! One device socket and its upstream socket for one way: every peer that the device socket reaches by this way is
//! reached from the same port, and any peer may answer (endpoint-independent mapping and filtering, RFC 4787).

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UdpSocket;
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::key::Key;
use super::waiting::Waiting;
use super::{Receiver, Scratch, UdpRelay, with_scratch};
use crate::data::outbound::{DialError, Server, wire};
use crate::data::record::{Outcome, Record, Shared};
use crate::data::stream::Stream;
use crate::data::way::Way;
use crate::net::mmsg::{BATCH, Outgoing, Prefix, Received};

/// How long an association that failed stays, so that a busy device does not make us knock at a dead server
/// with every datagram.
const HOLD_DOWN: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Association {
    /// What it is known by: the device, and which of its ways.
    pub key: Key,
    /// The way that it takes.
    pub way: Arc<Way>,
    receiver: Arc<Receiver>,
    upstream: Upstream,
    up: AtomicU64,
    down: AtomicU64,
    task: OnceLock<AbortHandle>,
    record: Mutex<Record>,
}

/// The way to the peers.
#[derive(Debug)]
pub enum Upstream {
    /// This socket.
    Direct(UdpSocket),
    /// The relay of a SOCKS5 server.
    Socks5 {
        /// Connected to the relay, once there is one.
        socket: OnceLock<UdpSocket>,
        /// What came while the server is being asked for it.
        waiting: Mutex<Waiting>,
    },
    /// There is none: what is sent is dropped.
    Nowhere,
}

impl Upstream {
    /// A relay that is still to be asked for.
    pub fn socks5() -> Self {
        Self::Socks5 {
            socket: OnceLock::new(),
            waiting: Mutex::default(),
        }
    }
}

impl Association {
    /// An association that takes this way.
    pub fn new(
        key: Key,
        way: Arc<Way>,
        receiver: &Arc<Receiver>,
        record: Record,
        upstream: Upstream,
    ) -> Self {
        Self {
            key,
            way,
            receiver: Arc::clone(receiver),
            upstream,
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            task: OnceLock::new(),
            record: Mutex::new(record),
        }
    }

    /// Starts the task that carries answers back. With a server it asks that one for a relay first.
    pub fn start(self: &Arc<Self>, relay: &Arc<UdpRelay>, server: Option<Server>) {
        let association = Arc::clone(self);
        let relay = Arc::clone(relay);
        let task = match (server, &self.upstream) {
            (Some(server), _) => tokio::spawn(association.answer_by(relay, server)),
            (None, Upstream::Nowhere) => tokio::spawn(association.hold_down(relay)),
            (None, _) => tokio::spawn(association.answer_directly(relay)),
        };
        // Set once, here.
        let _ = self.task.set(task.abort_handle());
    }

    /// Ends it. The last who holds it drops the record.
    pub fn close(&self, outcome: Outcome) {
        self.end(outcome);
        if let Some(task) = self.task.get() {
            task.abort();
        }
    }

    /// Sends a device's datagrams to their destinations.
    pub fn send<'a>(
        &self,
        scratch: &mut crate::net::mmsg::SendBatch,
        datagrams: impl Iterator<Item = (SocketAddr, &'a [u8])> + Clone,
        shared: &Shared,
    ) {
        let report = match &self.upstream {
            Upstream::Direct(socket) => scratch.send(
                socket,
                datagrams.map(|(destination, payload)| Outgoing {
                    to: Some(destination),
                    from: None,
                    prefix: Prefix::default(),
                    payload,
                }),
            ),
            Upstream::Socks5 { socket, waiting } => {
                if let Some(socket) = socket.get() {
                    scratch.send(socket, datagrams.map(wrap))
                } else {
                    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
                    match socket.get() {
                        // It came while we waited for the lock.
                        Some(socket) => scratch.send(socket, datagrams.map(wrap)),
                        None => waiting.put(datagrams),
                    }
                }
            }
            Upstream::Nowhere => return,
        };
        shared.counters.count_sent(&report);
        let bytes = report.bytes as u64;
        self.up.fetch_add(bytes, Relaxed);
        shared.counters.up.fetch_add(bytes, Relaxed);
    }

    /// Takes what the device sends for a while, so that a busy one does not make a new association of every datagram.
    async fn hold_down(self: Arc<Self>, relay: Arc<UdpRelay>) {
        sleep(HOLD_DOWN).await;
        relay.forget(&self);
    }

    async fn answer_directly(self: Arc<Self>, relay: Arc<UdpRelay>) {
        let Upstream::Direct(socket) = &self.upstream else {
            return;
        };
        while socket.readable().await.is_ok() {
            self.answer(socket, &relay, false);
        }
    }

    async fn answer_by(self: Arc<Self>, relay: Arc<UdpRelay>, server: Server) {
        // In a box, so that its size is not part of every idle association.
        let associated = Box::pin(self.associate(&relay, &server)).await;
        let outcome = match (associated, &self.upstream) {
            (Ok(mut control), Upstream::Socks5 { socket, .. }) => {
                if let Some(socket) = socket.get() {
                    self.answer_until_control_ends(socket, &mut control, &relay)
                        .await;
                }
                Outcome::UpstreamReset
            }
            (Ok(_), _) => Outcome::Failed,
            (Err(error), _) => {
                tracing::debug!(client = %self.key.client, %error, "an association got no relay");
                let outcome = error.outcome();
                self.end(outcome);
                sleep(HOLD_DOWN).await;
                outcome
            }
        };
        self.end(outcome);
        relay.forget(&self);
    }

    /// Gets a relay from the server and sends it what waited.
    async fn associate(&self, relay: &UdpRelay, server: &Server) -> Result<Stream, DialError> {
        let dialer = &relay.hands.dialer;
        let (control, address) = dialer.associate(&self.way, server).await?;
        let socket = dialer.factory.udp_outgoing(address, self.way.binding())?;
        let failed = |source| DialError::Connect {
            peer: address,
            source,
        };
        socket.connect(address).map_err(failed)?;
        let connected = UdpSocket::from_std(socket).map_err(failed)?;
        if let Upstream::Socks5 { socket, waiting } = &self.upstream {
            // Under the lock, so that what waited goes before what comes now.
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = std::mem::take(&mut *waiting);
            let report =
                with_scratch(|scratch| scratch.send.send(&connected, waited.iter().map(wrap)));
            relay.hands.shared.counters.count_sent(&report);
            relay
                .hands
                .shared
                .counters
                .up
                .fetch_add(report.bytes as u64, Relaxed);
            self.up.fetch_add(report.bytes as u64, Relaxed);
            let _ = socket.set(connected);
        }
        Ok(control)
    }

    async fn answer_until_control_ends(
        &self,
        socket: &UdpSocket,
        control: &mut Stream,
        relay: &Arc<UdpRelay>,
    ) {
        let mut words = [0; 64];
        loop {
            tokio::select! {
                readable = socket.readable() => match readable {
                    Ok(()) => self.answer(socket, relay, true),
                    Err(_) => return,
                },
                // The server has nothing to say here; all that counts is the end.
                read = control.read(&mut words) => match read {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return,
                },
            }
        }
    }

    /// Carries one batch of answers back to the device.
    fn answer(&self, socket: &UdpSocket, relay: &UdpRelay, wrapped: bool) {
        let report = with_scratch(|Scratch { recv, send }| {
            let mut count = 0;
            // ICMP errors of a connected socket end here: the association goes on.
            let _ = socket.try_io(Interest::READABLE, || {
                count = recv.recv(socket)?;
                // A batch that is not full has emptied the socket. On connected sockets it may also have met
                // an error, with datagrams behind it.
                if count < BATCH && !wrapped {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            if count == 0 {
                return None;
            }
            let answers = (0..count).filter_map(|index| {
                let answer = recv.get(index).and_then(|one| self.unwrap(one, wrapped));
                if answer.is_none() {
                    relay
                        .hands
                        .shared
                        .counters
                        .datagrams_dropped
                        .fetch_add(1, Relaxed);
                }
                answer
            });
            let report = send.send(&self.receiver.socket, answers);
            let peer = |index| self.unwrap(recv.get(index)?, wrapped)?.from;
            relay.used(&self.key, (0..count).filter_map(peer));
            Some(report)
        });
        let Some(report) = report else { return };
        let counters = &relay.hands.shared.counters;
        counters.count_sent(&report);
        counters.down.fetch_add(report.bytes as u64, Relaxed);
        self.down.fetch_add(report.bytes as u64, Relaxed);
    }

    /// The reply to the device. None for what it could not receive.
    fn unwrap<'a>(&self, received: Received<'a>, wrapped: bool) -> Option<Outgoing<'a>> {
        let (peer, payload) = if wrapped {
            let (peer, start) = wire::parse_datagram(received.payload).ok()?;
            (peer?, &received.payload[start..])
        } else {
            (received.peer, received.payload)
        };
        (peer.is_ipv4() == self.key.client.is_ipv4() && peer.port() != 0).then_some(Outgoing {
            to: Some(self.key.client),
            from: Some(peer),
            prefix: Prefix::default(),
            payload,
        })
    }

    fn end(&self, outcome: Outcome) {
        let mut record = self.record();
        // The first reason is the reason.
        if record.outcome == Outcome::Drained {
            record.outcome = outcome;
        }
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Association {
    fn drop(&mut self) {
        let (up, down) = (*self.up.get_mut(), *self.down.get_mut());
        let mut record = self.record();
        record.up = up;
        record.down = down;
    }
}

/// A datagram for the relay, in SOCKS5's wrapping.
fn wrap((destination, payload): (SocketAddr, &[u8])) -> Outgoing<'_> {
    Outgoing {
        to: None,
        from: None,
        prefix: wire::datagram_header(destination),
        payload,
    }
}
