//! The ways to the peers of one device socket: what sends to them, and what brings their answers.
//!
//! Associations and health checks go by the same code.

mod direct;
mod shadowsocks;
mod socks5;
mod trojan;

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::io::Interest;
use tokio::net::UdpSocket;

pub use self::direct::{carry as carry_directly, open as open_directly, send as send_directly};
use super::waiting::Waiting;
use super::{Scratch, with_scratch};
use crate::data::outbound::{DialError, Dialer, Outbound};
use crate::data::way::Way;
use crate::net::mmsg::{BATCH, RecvBatch, SendBatch, SendReport, in_batches};

/// Peer and payload.
pub type Datagram<'a> = (SocketAddr, &'a [u8]);

/// The way to the peers of an association.
#[derive(Debug)]
pub enum Upstream {
    /// This socket.
    Direct(Arc<UdpSocket>),
    /// By a server.
    Relay(Relay),
    /// There is none: what is sent is dropped.
    Nowhere,
}

/// A relay that is reached, or is still to be.
#[derive(Debug, Default)]
pub struct Relay {
    /// There once it is reached.
    sender: OnceLock<Sender>,
    /// What came before.
    waiting: Mutex<Waiting>,
}

impl Relay {
    /// Sends what can be sent already, and keeps what cannot.
    pub fn send<'a>(
        &self,
        batch: &mut SendBatch,
        datagrams: impl Iterator<Item = Datagram<'a>>,
    ) -> SendReport {
        if let Some(sender) = self.sender.get() {
            return sender.send(batch, datagrams);
        }
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        match self.sender.get() {
            // It came while we waited for the lock.
            Some(sender) => sender.send(batch, datagrams),
            None => waiting.put(datagrams),
        }
    }

    /// From now on all goes by this one, first of all what waited.
    pub fn reached(&self, sender: Sender) -> SendReport {
        // Under the lock, so that what waited goes before what comes now.
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = std::mem::take(&mut *waiting);
        let report = with_scratch(|scratch| sender.send(&mut scratch.send, waited.iter()));
        let _ = self.sender.set(sender);
        report
    }
}

/// What sends datagrams to any peer.
#[derive(Debug)]
pub enum Sender {
    /// A socket that is not connected.
    Direct(Arc<UdpSocket>),
    /// One that is connected to a SOCKS5 server's relay.
    Socks5(Arc<UdpSocket>),
    /// A Shadowsocks server.
    Shadowsocks(Box<shadowsocks::Sender>),
    /// A Trojan server.
    Trojan(Arc<trojan::Outbox>),
}

impl Sender {
    /// Sends datagrams in order, without waiting.
    pub fn send<'a>(
        &self,
        batch: &mut SendBatch,
        datagrams: impl Iterator<Item = Datagram<'a>>,
    ) -> SendReport {
        match self {
            Self::Direct(socket) => direct::send(socket, batch, datagrams),
            Self::Socks5(socket) => socks5::send(socket, batch, datagrams),
            Self::Shadowsocks(sender) => sender.send(batch, datagrams),
            Self::Trojan(outbox) => outbox.put(datagrams),
        }
    }
}

/// What brings the answers. It is all that keeps the relay alive.
#[derive(Debug)]
pub enum Answers {
    /// Of a socket that is not connected.
    Direct(Arc<UdpSocket>),
    /// Of a SOCKS5 server's relay.
    Socks5(socks5::Answers),
    /// Of a Shadowsocks server.
    Shadowsocks(Box<shadowsocks::Answers>),
    /// Of a Trojan server.
    Trojan(trojan::Answers),
}

impl Answers {
    /// Brings the answers until it is told to stop or the upstream side ends.
    ///
    /// # Errors
    /// When the upstream side ends because something is wrong.
    pub async fn carry(self, way: &Way, taker: &mut impl Taker) -> Result<(), DialError> {
        match self {
            Self::Direct(socket) => {
                direct::carry(&socket, taker, |_| {}).await;
                Ok(())
            }
            Self::Socks5(answers) => {
                answers.carry(taker).await;
                Ok(())
            }
            Self::Shadowsocks(answers) => {
                answers.carry(way, taker).await;
                Ok(())
            }
            // In a box, so that its size is not part of every idle association.
            Self::Trojan(answers) => Box::pin(answers.carry(way, taker)).await,
        }
    }
}

/// Who takes answers.
pub trait Taker: Send {
    /// Takes at most [`BATCH`] of them, of which `None` is one that cannot be read. `batch` is free to send by.
    fn take(&mut self, answers: &[Option<Datagram<'_>>], batch: &mut SendBatch) -> ControlFlow<()>;
}

/// Is there a server that carries datagrams by this way?
pub fn has_relay(way: &Way) -> bool {
    way.outbound.server().is_some() && way.carries_datagrams()
}

/// Gets what datagrams go by. `first` is the first peer, which the others are of the same family as.
///
/// # Errors
/// What failed, on which machine.
pub async fn reach(
    dialer: &Dialer,
    way: &Way,
    first: SocketAddr,
) -> Result<(Sender, Answers), DialError> {
    match &*way.outbound {
        Outbound::Direct => {
            let socket = direct::open(dialer, way, first)?;
            Ok((Sender::Direct(Arc::clone(&socket)), Answers::Direct(socket)))
        }
        Outbound::Block => Err(DialError::Blocked),
        Outbound::Socks5(server) if has_relay(way) => socks5::reach(dialer, way, server).await,
        Outbound::Shadowsocks(server) if has_relay(way) => shadowsocks::reach(dialer, way, server),
        Outbound::Trojan(server) => trojan::reach(dialer, way, server, first).await,
        _ => Err(DialError::Unsupported {
            outbound: way.outbound.to_string(),
            what: "datagrams",
        }),
    }
}

/// A socket of ours that is connected to a server's.
fn connect(dialer: &Dialer, way: &Way, server: SocketAddr) -> Result<UdpSocket, DialError> {
    let socket = dialer.factory.udp_outgoing(server, way.binding())?;
    let failed = |source| DialError::Connect {
        peer: server,
        source,
    };
    socket.connect(server).map_err(failed)?;
    UdpSocket::from_std(socket).map_err(failed)
}

/// Receives what waits, if there is something.
pub fn receive(
    socket: &UdpSocket,
    read: impl FnOnce(&RecvBatch, &mut SendBatch) -> ControlFlow<()>,
) -> ControlFlow<()> {
    with_scratch(|Scratch { recv, send }| {
        let mut count = 0;
        // ICMP errors of a connected socket end here: the association goes on.
        let _ = socket.try_io(Interest::READABLE, || {
            count = recv.recv(socket)?;
            // A batch that is not full has emptied the socket, which spares the call that would say so. Or it has met an
            // ICMP error, with datagrams behind that: then the error has woken us once more, as each of them does.
            if count < BATCH {
                return Err(std::io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match count {
            0 => ControlFlow::Continue(()),
            _ => read(recv, send),
        }
    })
}

/// The same for datagrams that are read where they lie. `taken` is told when all of a batch have been taken.
fn receive_each(
    socket: &UdpSocket,
    taker: &mut impl Taker,
    read: impl Fn(crate::net::mmsg::Received<'_>) -> Option<Datagram<'_>>,
    taken: impl FnOnce(&RecvBatch),
) -> ControlFlow<()> {
    receive(socket, |recv, send| {
        let answers = recv.datagrams().map(|one| one.and_then(&read));
        in_batches(answers, |batch, count| taker.take(&batch[..count], send))?;
        taken(recv);
        ControlFlow::Continue(())
    })
}
