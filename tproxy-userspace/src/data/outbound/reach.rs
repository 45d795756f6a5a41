//! Reaching the server of an outbound.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until};

use super::{DialError, Dialer};
use crate::data::stream::Stream;
use crate::data::way::Way;

/// An address that has not answered by then gets company (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);

impl Dialer {
    /// Connects to the outbound's server, and tells where that is.
    pub(super) async fn reach(
        &self,
        way: &Way,
        deadline: Instant,
    ) -> Result<(Stream, String), DialError> {
        let mut failure = DialError::Timeout {
            peer: way.outbound.to_string(),
            limit: self.limit,
        };
        let mut candidates = way.candidates();
        candidates.retain(|address| {
            let is_loop = self.guard.is_listener(*address);
            if is_loop {
                failure = DialError::Loop {
                    what: "the server",
                    outbound: way.outbound.to_string(),
                    address: *address,
                };
            }
            !is_loop
        });
        match self.race(candidates, deadline).await {
            Ok((stream, address)) => {
                way.worked(address);
                return Ok((Stream::Plain(stream), address.to_string()));
            }
            // A loop is told of first: only a person can end it.
            Err(Some(error)) if !matches!(failure, DialError::Loop { .. }) => failure = error,
            Err(_) => {}
        }
        way.failed();
        Err(failure)
    }

    /// Connects to one of these addresses. Each that does not answer at once gets company by the next one; the first
    /// that answers is it. All of them get their turn, however short the time is. None: there is no address.
    async fn race(
        &self,
        addresses: Vec<SocketAddr>,
        deadline: Instant,
    ) -> Result<(TcpStream, SocketAddr), Option<DialError>> {
        let left = deadline.saturating_duration_since(Instant::now());
        let stagger = STAGGER.min(left / (addresses.len().max(1) as u32));
        let mut waiting = addresses.into_iter();
        let mut racing = FuturesUnordered::new();
        let mut failure = None;
        loop {
            let Some(address) = waiting.next() else {
                // Nobody is left to keep company.
                while let Some(result) = racing.next().await {
                    match result {
                        Ok(won) => return Ok(won),
                        Err(error) => failure = Some(error),
                    }
                }
                return Err(failure);
            };
            racing.push(async move {
                let connecting = self.tcp(address);
                let stream = self.within(deadline, &address, connecting).await?;
                Ok((stream, address))
            });
            let next = Instant::now() + stagger;
            tokio::select! {
                biased;
                // Who has failed makes room for the next one at once.
                Some(result) = racing.next() => match result {
                    Ok(won) => return Ok(won),
                    Err(error) => failure = Some(error),
                },
                () = sleep_until(next) => {}
            }
        }
    }

    pub(super) async fn tcp(&self, peer: SocketAddr) -> Result<TcpStream, DialError> {
        let socket = self.factory.tcp_outgoing(peer, self.keepalive)?;
        TcpSocket::from_std_stream(socket)
            .connect(peer)
            .await
            .map_err(|source| DialError::Connect { peer, source })
    }
}
