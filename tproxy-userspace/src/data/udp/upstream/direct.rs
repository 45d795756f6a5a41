//! The peers themselves.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::UdpSocket;

use super::{Datagram, Taker, receive_each};
use crate::data::outbound::{DialError, Dialer};
use crate::data::way::Way;
use crate::net::mmsg::{Outgoing, Prefix, Received, RecvBatch, SendBatch, SendReport};

/// A socket that can reach peers of the same family as `first`.
///
/// # Errors
/// When there is none to be had.
pub fn open(dialer: &Dialer, way: &Way, first: SocketAddr) -> Result<Arc<UdpSocket>, DialError> {
    let socket = dialer.factory.udp_outgoing(first, way.binding())?;
    let socket = UdpSocket::from_std(socket);
    let failed = |source| DialError::Connect {
        peer: first,
        source,
    };
    socket.map(Arc::new).map_err(failed)
}

/// Sends to the peers themselves.
pub fn send<'a>(
    socket: &UdpSocket,
    batch: &mut SendBatch,
    datagrams: impl Iterator<Item = Datagram<'a>>,
) -> SendReport {
    let outgoing = datagrams.map(|(peer, payload)| Outgoing {
        to: Some(peer),
        from: None,
        prefix: Prefix::default(),
        payload,
        overhead: 0,
    });
    batch.send(socket, outgoing)
}

/// Brings what they answer. `taken` is told when all of a batch have been taken.
pub async fn carry(socket: &UdpSocket, taker: &mut impl Taker, taken: impl Fn(&RecvBatch) + Send) {
    while socket.readable().await.is_ok() {
        if receive_each(socket, taker, plain, &taken).is_break() {
            return;
        }
    }
}

fn plain(received: Received<'_>) -> Option<Datagram<'_>> {
    Some((received.peer, received.payload))
}
