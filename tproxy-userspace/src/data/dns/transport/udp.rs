//! Messages as datagrams (RFC 1035 section 4.2.1).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, timeout, timeout_at};

use super::address::Addresses;
use super::kept::Stream;
use super::{Ask, Exchange, Failure, Timing};
use crate::data::dns::stats::Counters;
use crate::data::dns::wire::{Mismatch, OWN_SIZE, Response};
use crate::net::SocketFactory;

/// An upstream that is asked by datagrams, and by TCP for answers that are cut off.
///
/// Each question has a socket of its own, so a port of its own that the kernel chose at random, and a random
/// number: who wants to forge an answer must guess both (RFC 5452). The socket is connected: datagrams of other
/// senders never reach it, and a server that is not there is known at once, by ICMP.
#[derive(Debug)]
pub struct Udp {
    /// Where it is.
    pub addresses: Arc<Addresses>,
    /// Makes the sockets.
    pub factory: SocketFactory,
    /// The same upstream by TCP.
    pub tcp: Stream,
    /// How long things may take.
    pub timing: Timing,
    /// Counts what does not fit.
    pub counters: Arc<Counters>,
}

impl Udp {
    async fn ask(&self, ask: &Ask) -> Result<Response, Failure> {
        let deadline = Instant::now() + self.timing.limit;
        let addresses = timeout_at(deadline, self.addresses.get()).await??;
        let mut failure = Failure::Nobody;
        let mut left = addresses.len() as u32;
        for address in addresses {
            let share = deadline.saturating_duration_since(Instant::now()) / left;
            left -= 1;
            match timeout(share, self.ask_at(address, ask)).await {
                Ok(Ok(response)) => return Ok(response),
                Ok(Err(error)) => failure = error,
                Err(_) => failure = Failure::Timeout,
            }
        }
        self.addresses.doubt().await;
        Err(failure)
    }

    async fn ask_at(&self, server: SocketAddr, ask: &Ask) -> Result<Response, Failure> {
        let any = match server {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = self.factory.lookup_udp(any)?;
        socket.connect(server).map_err(Failure::io("connecting"))?;
        // One question fits into every send buffer, so nobody waits for that; being told of it would cost a wake-up.
        #[expect(
            deprecated,
            reason = "its successor is unsafe; a `UdpSocket` names one descriptor, which it owns"
        )]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE);
        let socket = socket.map_err(Failure::io("registering a socket"))?;
        let id = rand::random();
        let message = ask.encode(id, false);
        let mut wait = self.timing.resend;
        loop {
            // The same number and port again, so that an answer to either counts, and a forger has no more to hit.
            let sent = socket.get_ref().send(&message);
            sent.map_err(Failure::io("sending"))?;
            match timeout(wait, self.receive(&socket, id, ask)).await {
                Ok(Ok(None)) => return self.tcp.exchange(ask).await,
                Ok(Ok(Some(response))) => return Ok(response),
                Ok(Err(error)) => return Err(error),
                Err(_) => wait *= 2,
            }
        }
    }

    /// None: it was cut off.
    async fn receive(
        &self,
        socket: &AsyncFd<UdpSocket>,
        id: u16,
        ask: &Ask,
    ) -> Result<Option<Response>, Failure> {
        // Some servers send more than they were asked to.
        let mut buffer = vec![0; 4 * usize::from(OWN_SIZE)];
        loop {
            let receive = |socket: &UdpSocket| socket.recv(&mut buffer);
            let length = socket.async_io(Interest::READABLE, receive).await;
            let length = length.map_err(Failure::io("receiving"))?;
            match Response::parse(buffer[..length].to_vec(), id, &ask.question) {
                Ok(response) => return Ok(Some(response)),
                Err(Mismatch::Truncated) => return Ok(None),
                Err(Mismatch::Malformed) => return Err(Failure::Malformed),
                // Waiting goes on, so a forger cannot even keep the true answer away.
                Err(Mismatch::Foreign) => Counters::add(&self.counters.forged),
            }
        }
    }
}

impl Exchange for Udp {
    fn exchange<'a>(&'a self, ask: &'a Ask) -> BoxFuture<'a, Result<Response, Failure>> {
        self.ask(ask).boxed()
    }
}
