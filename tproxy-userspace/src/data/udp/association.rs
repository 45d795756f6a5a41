//! One device socket and its upstream socket: every peer of that device socket is reached from the same
//! port, and any peer may answer (endpoint-independent mapping and filtering, RFC 4787).

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::{Receiver, Scratch, UdpRelay, with_scratch};
use crate::data::outbound::{DialError, Socks5Server, wire};
use crate::data::record::{Outcome, Record, Shared};
use crate::data::way::Way;
use crate::net::mmsg::{BATCH, Outgoing, Prefix, Received, SendReport};

/// Datagrams that wait while the SOCKS5 server is being asked for a relay.
const WAITING: usize = 64;
/// Their payload, in bytes.
const WAITING_BYTES: usize = 128 << 10;
/// How long an association that failed stays, so that a busy device does not make us knock at a dead server
/// with every datagram.
const HOLD_DOWN: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Association {
    /// The device.
    pub client: SocketAddr,
    receiver: Arc<Receiver>,
    upstream: Upstream,
    up: AtomicU64,
    down: AtomicU64,
    task: OnceLock<AbortHandle>,
    record: Mutex<Record>,
}

/// The way to the peers.
#[derive(Debug)]
enum Upstream {
    Direct(UdpSocket),
    Socks5 {
        /// Connected to the relay, once there is one.
        socket: OnceLock<UdpSocket>,
        waiting: Mutex<Waiting>,
    },
}

#[derive(Debug, Default)]
struct Waiting {
    datagrams: Vec<(SocketAddr, Box<[u8]>)>,
    bytes: usize,
}

impl Association {
    /// An association that sends from `socket`.
    pub fn direct(receiver: &Arc<Receiver>, record: Record, socket: UdpSocket) -> Self {
        Self::new(receiver, record, Upstream::Direct(socket))
    }

    /// An association whose relay is still to be asked for.
    pub fn socks5(receiver: &Arc<Receiver>, record: Record) -> Self {
        let upstream = Upstream::Socks5 {
            socket: OnceLock::new(),
            waiting: Mutex::default(),
        };
        Self::new(receiver, record, upstream)
    }

    fn new(receiver: &Arc<Receiver>, record: Record, upstream: Upstream) -> Self {
        Self {
            client: record.client(),
            receiver: Arc::clone(receiver),
            upstream,
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            task: OnceLock::new(),
            record: Mutex::new(record),
        }
    }

    /// Starts the task that carries answers back. With a server it asks that one for a relay first.
    pub fn start(
        self: &Arc<Self>,
        relay: &Arc<UdpRelay>,
        server: Option<(Arc<Way>, Socks5Server)>,
    ) {
        let association = Arc::clone(self);
        let relay = Arc::clone(relay);
        let task = match server {
            None => tokio::spawn(association.answer_directly(relay)),
            Some((way, server)) => tokio::spawn(association.answer_by(relay, way, server)),
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
        };
        shared.counters.count_sent(&report);
        let bytes = report.bytes as u64;
        self.up.fetch_add(bytes, Relaxed);
        shared.counters.up.fetch_add(bytes, Relaxed);
    }

    async fn answer_directly(self: Arc<Self>, relay: Arc<UdpRelay>) {
        let Upstream::Direct(socket) = &self.upstream else {
            return;
        };
        while socket.readable().await.is_ok() {
            self.answer(socket, &relay, false);
        }
    }

    async fn answer_by(self: Arc<Self>, relay: Arc<UdpRelay>, way: Arc<Way>, server: Socks5Server) {
        // In a box, so that its size is not part of every idle association.
        let associated = Box::pin(self.associate(&relay, &way, &server)).await;
        let outcome = match (associated, &self.upstream) {
            (Ok(control), Upstream::Socks5 { socket, .. }) => {
                if let Some(socket) = socket.get() {
                    self.answer_until_control_ends(socket, &control, &relay)
                        .await;
                }
                Outcome::UpstreamReset
            }
            (Ok(_), Upstream::Direct(_)) => Outcome::Failed,
            (Err(error), _) => {
                tracing::debug!(client = %self.client, %error, "an association got no relay");
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
    async fn associate(
        &self,
        relay: &UdpRelay,
        way: &Way,
        server: &Socks5Server,
    ) -> Result<TcpStream, DialError> {
        let (control, address) = relay.hands.dialer.associate(way, server).await?;
        let socket = relay.hands.dialer.factory.udp_outgoing(address)?;
        let failed = |source| DialError::Connect {
            peer: address,
            source,
        };
        socket.connect(address).map_err(failed)?;
        let connected = UdpSocket::from_std(socket).map_err(failed)?;
        if let Upstream::Socks5 { socket, waiting } = &self.upstream {
            // Under the lock, so that what waited goes before what comes now.
            let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = std::mem::take(&mut *waiting).datagrams;
            let report = with_scratch(|scratch| {
                let waited = waited.iter().map(|(peer, payload)| (*peer, &**payload));
                scratch.send.send(&connected, waited.map(wrap))
            });
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
        control: &TcpStream,
        relay: &Arc<UdpRelay>,
    ) {
        loop {
            tokio::select! {
                readable = socket.readable() => match readable {
                    Ok(()) => self.answer(socket, relay, true),
                    Err(_) => return,
                },
                readable = control.readable() => {
                    // The server has nothing to say here; all that counts is the end.
                    match readable.and_then(|()| control.try_read(&mut [0; 64])) {
                        Ok(0) => return,
                        Err(error) if error.kind() != io::ErrorKind::WouldBlock => return,
                        _ => {}
                    }
                }
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
            Some(send.send(&self.receiver.socket, answers))
        });
        let Some(report) = report else { return };
        let counters = &relay.hands.shared.counters;
        counters.count_sent(&report);
        counters.down.fetch_add(report.bytes as u64, Relaxed);
        self.down.fetch_add(report.bytes as u64, Relaxed);
        relay.used(&self.client);
    }

    /// The reply to the device. None for what it could not receive.
    fn unwrap<'a>(&self, received: Received<'a>, wrapped: bool) -> Option<Outgoing<'a>> {
        let (peer, payload) = if wrapped {
            let (peer, start) = wire::parse_datagram(received.payload).ok()?;
            (peer?, &received.payload[start..])
        } else {
            (received.peer, received.payload)
        };
        (peer.is_ipv4() == self.client.is_ipv4() && peer.port() != 0).then_some(Outgoing {
            to: Some(self.client),
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

    fn record(&self) -> MutexGuard<'_, Record> {
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

impl Waiting {
    /// Keeps what there is room for; the rest counts as blocked.
    fn put<'a>(&mut self, datagrams: impl Iterator<Item = (SocketAddr, &'a [u8])>) -> SendReport {
        let mut report = SendReport::default();
        for (destination, payload) in datagrams {
            if self.datagrams.len() < WAITING && self.bytes + payload.len() <= WAITING_BYTES {
                self.bytes += payload.len();
                self.datagrams.push((destination, payload.into()));
            } else {
                report.blocked += 1;
            }
        }
        report
    }
}
