//! Reaching the server of an outbound: itself, by whichever of its addresses answers first, or through another outbound.

use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until};

use super::{DialError, Dialer};
use crate::data::stream::Stream;
use crate::data::way::Way;
use crate::net::Binding;

/// An address that has not answered by then gets company (RFC 8305 section 5).
const STAGGER: Duration = Duration::from_millis(250);

impl Dialer {
    /// Connects to the outbound's server, itself or through another outbound, and tells where that is.
    pub(super) async fn reach(
        &self,
        way: &Way,
        deadline: Instant,
    ) -> Result<(Stream, String), DialError> {
        if let Some((other, server)) = way.through() {
            let stream = self.open(other, server, deadline).await?;
            return Ok((stream, format!("{server} (through \"{}\")", other.name)));
        }
        let mut failure = DialError::Timeout {
            peer: way.outbound.to_string(),
            limit: self.limit,
            connected: false,
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
        match self.race(candidates, way.binding(), deadline).await {
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
        binding: &Binding,
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
                let connecting = self.tcp(address, binding);
                let stream = self.within(deadline, &address, false, connecting).await?;
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

    pub(super) async fn tcp(
        &self,
        peer: SocketAddr,
        binding: &Binding,
    ) -> Result<TcpStream, DialError> {
        let socket = self.factory.tcp_outgoing(peer, self.keepalive, binding)?;
        TcpSocket::from_std_stream(socket)
            .connect(peer)
            .await
            .map_err(|source| DialError::Connect { peer, source })
    }
}
