//! One question by datagram, and its answer.

use std::io;
use std::iter;
use std::net::SocketAddr;
use std::ops::ControlFlow;

use super::upstream::{self, Datagram, Taker};
use super::with_scratch;
use crate::data::outbound::{DialError, Dialer, Peer};
use crate::data::way::Way;
use crate::net::mmsg::SendBatch;

/// Sends one datagram by an outbound, just as an association does, and gives the first that comes back from `to`. It
/// waits for that without a limit of its own, and sends nothing twice.
///
/// # Errors
/// What failed, on which machine. [`DialError::Unsupported`] of an outbound without datagrams.
pub async fn ask(
    dialer: &Dialer,
    way: &Way,
    to: SocketAddr,
    payload: &[u8],
) -> Result<Vec<u8>, DialError> {
    let (sender, answers) = upstream::reach(dialer, way, to).await?;
    let report = with_scratch(|scratch| sender.send(&mut scratch.send, iter::once((to, payload))));
    if report.sent == 0 {
        let source = io::Error::other("the datagram was refused");
        return Err(DialError::Connect { peer: to, source });
    }
    let mut first = First {
        from: to,
        answer: None,
    };
    answers.carry(way, &mut first).await?;
    first.answer.ok_or_else(|| DialError::Handshake {
        server: Peer {
            kind: "server of the outbound",
            at: way.outbound.to_string(),
        },
        step: "waiting for a datagram",
        source: io::ErrorKind::UnexpectedEof.into(),
    })
}

/// Takes the first answer of a peer.
struct First {
    from: SocketAddr,
    answer: Option<Vec<u8>>,
}

impl Taker for First {
    fn take(
        &mut self,
        answers: &[Option<Datagram<'_>>],
        _batch: &mut SendBatch,
    ) -> ControlFlow<()> {
        let is_from = |peer: &SocketAddr| {
            (peer.ip(), peer.port()) == (self.from.ip().to_canonical(), self.from.port())
        };
        let mut all = answers.iter().flatten();
        match all.find(|(peer, _)| is_from(peer)) {
            Some((_, payload)) => {
                self.answer = Some(payload.to_vec());
                ControlFlow::Break(())
            }
            None => ControlFlow::Continue(()),
        }
    }
}
