//! A SOCKS5 server's relay for datagrams (RFC 1928 section 7).

use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::net::UdpSocket;

use super::{Datagram, Sender, Taker, connect, receive_each};
use crate::data::outbound::{DialError, Dialer, Server, wire};
use crate::data::stream::Stream;
use crate::data::way::Way;
use crate::net::mmsg::{Outgoing, Received, SendBatch, SendReport};

pub(super) async fn reach(
    dialer: &Dialer,
    way: &Way,
    server: &Server,
) -> Result<(Sender, super::Answers), DialError> {
    let (control, address) = dialer.associate(way, server).await?;
    let socket = Arc::new(connect(dialer, way, address)?);
    let sender = Sender::Socks5(Arc::clone(&socket));
    Ok((sender, super::Answers::Socks5(Answers { socket, control })))
}

pub(super) fn send<'a>(
    socket: &UdpSocket,
    batch: &mut SendBatch,
    datagrams: impl Iterator<Item = Datagram<'a>>,
) -> SendReport {
    let outgoing = datagrams.map(|(peer, payload)| Outgoing {
        to: None,
        from: None,
        prefix: wire::datagram_header(peer),
        payload,
        overhead: 0,
    });
    batch.send(socket, outgoing)
}

/// What comes from the relay.
#[derive(Debug)]
pub struct Answers {
    socket: Arc<UdpSocket>,
    /// The relay lives as long as this connection.
    control: Stream,
}

impl Answers {
    pub(super) async fn carry(mut self, taker: &mut impl Taker) {
        let mut words = [0; 64];
        loop {
            tokio::select! {
                readable = self.socket.readable() => {
                    if readable.is_err() || receive_each(&self.socket, taker, unwrap, |_| {}).is_break() {
                        return;
                    }
                }
                // The server has nothing to say here; all that counts is the end.
                read = self.control.read(&mut words) => match read {
                    Ok(1..) => {}
                    Ok(0) | Err(_) => return,
                },
            }
        }
    }
}

fn unwrap(received: Received<'_>) -> Option<Datagram<'_>> {
    let (peer, start) = wire::parse_datagram(received.payload).ok()?;
    Some((peer?, &received.payload[start..]))
}
