//! The client side of SOCKS5: handshakes over a connection of our own.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::wire::{self, Command, LONGEST_REPLY, Malformed, Method, Reply};
use super::{DialError, Dialer, Peer, Server, Target};
use crate::data::record::Protocol;
use crate::data::stream::Stream;
use crate::data::way::Way;

/// Connects to `target` through the server.
pub(super) async fn connect(
    dialer: &Dialer,
    way: &Way,
    server: &Server,
    target: Target<'_>,
    deadline: Instant,
) -> Result<Stream, DialError> {
    let mut session = Session::open(dialer, way, deadline).await?;
    session.authenticate(server).await?;
    session.ask(Command::Connect, target).await?;
    Ok(session.stream.answered())
}

impl Dialer {
    /// Asks the server for a datagram relay. The relay lives as long as the connection that comes back
    /// beside its address.
    ///
    /// # Errors
    /// What failed, on which machine.
    pub async fn associate(
        &self,
        way: &Way,
        server: &Server,
    ) -> Result<(Stream, SocketAddr), DialError> {
        let deadline = Instant::now() + self.limit;
        let associating = async {
            let mut session = Session::open(self, way, deadline).await?;
            session.authenticate(server).await?;
            let own = session.stream.socket().peer_addr();
            let own = own.map_err(session.broke_off("looking at its address"))?;
            // Which port the datagrams will come from is not known yet (RFC 1928 section 4).
            let any = match own {
                SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
                SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            };
            let bound = session.ask(Command::UdpAssociate, any.into()).await?;
            let mut relay = bound.unwrap_or(own);
            if relay.ip().is_unspecified() {
                relay.set_ip(own.ip());
            }
            if self.guard.is_receiver(relay) {
                return Err(DialError::Loop {
                    what: "the relay for datagrams that the SOCKS5 server named",
                    outbound: way.outbound.to_string(),
                    address: relay,
                });
            }
            Ok((session.stream, relay))
        };
        let associated = self.within(deadline, server, true, associating).await;
        way.report(Protocol::Udp, associated.as_ref().err());
        associated
    }
}

/// A connection to the server whose handshake is under way.
struct Session {
    stream: Stream,
    server: Peer,
}

impl Session {
    async fn open(dialer: &Dialer, way: &Way, deadline: Instant) -> Result<Self, DialError> {
        let (stream, at) = dialer.reach(way, deadline).await?;
        let kind = "SOCKS5 server";
        Ok(Self {
            stream,
            server: Peer { kind, at },
        })
    }

    async fn authenticate(&mut self, server: &Server) -> Result<(), DialError> {
        let step = "choosing an authentication method";
        let with_password = server.credentials.is_some();
        let answer = self.exchange(step, wire::greeting(with_password)).await?;
        let method = wire::parse_method(answer, with_password)
            .map_err(self.malformed(step))?
            .ok_or_else(|| DialError::Auth {
                server: self.server.clone(),
                reason: format!(
                    "takes none of the authentication methods; {}",
                    if with_password {
                        "it accepts no user and password"
                    } else {
                        "it wants a user and password: socks5://USER:PASSWORD@HOST:PORT"
                    }
                ),
            })?;
        if let (Method::UserPassword, Some(credentials)) = (method, &server.credentials) {
            let step = "checking the user and password";
            let message = wire::credentials(&credentials.user, &credentials.password);
            let answer = self.exchange(step, &message).await?;
            if !wire::parse_auth(answer).map_err(self.malformed(step))? {
                return Err(DialError::Auth {
                    server: self.server.clone(),
                    reason: format!(
                        "refused the user \"{}\"; check user and password",
                        credentials.user.escape_ascii()
                    ),
                });
            }
        }
        Ok(())
    }

    /// Sends a request and returns where the server did what was asked, unless it says so by name.
    async fn ask(
        &mut self,
        command: Command,
        target: Target<'_>,
    ) -> Result<Option<SocketAddr>, DialError> {
        let step = "waiting for its reply";
        let sent = async {
            let request = wire::request(command, target);
            self.stream.write_all(&request).await?;
            self.stream.flush().await
        }
        .await;
        sent.map_err(self.broke_off(step))?;
        let mut bytes = [0; LONGEST_REPLY];
        let mut read = 0;
        loop {
            match wire::parse_reply(&bytes[..read]).map_err(self.malformed(step))? {
                Reply::Needs(more) => {
                    let part = &mut bytes[read..read + more];
                    let got = self.stream.read_exact(part).await;
                    got.map_err(self.broke_off(step))?;
                    read += more;
                }
                Reply::Done(bound) => return Ok(bound),
                Reply::Refused(refusal) => {
                    return Err(DialError::Refused {
                        server: self.server.clone(),
                        request: match command {
                            Command::Connect => format!("a connection to {target}"),
                            Command::UdpAssociate => "to relay datagrams".to_owned(),
                        },
                        reason: refusal.to_string(),
                    });
                }
            }
        }
    }

    /// Sends a message and reads the two bytes that answer it.
    async fn exchange(&mut self, step: &'static str, message: &[u8]) -> Result<[u8; 2], DialError> {
        let mut answer = [0; 2];
        let exchanged = async {
            self.stream.write_all(message).await?;
            self.stream.flush().await?;
            self.stream.read_exact(&mut answer).await
        }
        .await;
        exchanged.map_err(self.broke_off(step))?;
        Ok(answer)
    }

    fn broke_off(&self, step: &'static str) -> impl Fn(io::Error) -> DialError + use<> {
        let server = self.server.clone();
        move |source| DialError::Handshake {
            server: server.clone(),
            step,
            source,
        }
    }

    fn malformed(&self, step: &'static str) -> impl Fn(Malformed) -> DialError + use<> {
        let server = self.server.clone();
        move |reason| DialError::Protocol {
            server: server.clone(),
            step,
            reason: reason.to_string(),
        }
    }
}
