//! The client side of SOCKS5: handshakes over a connection of our own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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
            let relay = relay_at(bound, own);
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

/// Where the relay is that the server has named, if it named one. `server` is where it was asked.
fn relay_at(named: Option<SocketAddr>, server: SocketAddr) -> SocketAddr {
    let mut relay = named.unwrap_or(server);
    let (ip, at) = (relay.ip().to_canonical(), server.ip().to_canonical());
    // A server behind NAT tells the address that it has there, which leads nowhere from here.
    let leads_elsewhere =
        ip.is_loopback() && !at.is_loopback() || is_private(ip) && !is_private(at);
    if ip.is_unspecified() || leads_elsewhere {
        relay.set_ip(server.ip());
    }
    relay
}

/// Does the address mean something else elsewhere?
fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            // RFC 6598, for providers' NAT.
            let is_shared = ip.octets()[0] == 100 && ip.octets()[1] & 0xc0 == 64;
            ip.is_private() || ip.is_loopback() || ip.is_link_local() || is_shared
        }
        IpAddr::V6(ip) => ip.is_unique_local() || ip.is_loopback() || ip.is_unicast_link_local(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relay_is_where_it_can_be_reached() {
        for (named, server, relay) in [
            ("0.0.0.0:7", "198.51.100.1:1080", "198.51.100.1:7"),
            ("[::]:7", "[2001:db8::1]:1080", "[2001:db8::1]:7"),
            ("203.0.113.9:7", "198.51.100.1:1080", "203.0.113.9:7"),
            // Behind NAT.
            ("172.17.0.2:7", "198.51.100.1:1080", "198.51.100.1:7"),
            ("100.64.0.2:7", "198.51.100.1:1080", "198.51.100.1:7"),
            ("[fd00::2]:7", "[2001:db8::1]:1080", "[2001:db8::1]:7"),
            ("127.0.0.1:7", "10.0.0.1:1080", "10.0.0.1:7"),
            ("127.0.0.1:7", "127.0.0.2:1080", "127.0.0.1:7"),
            // In one network with it.
            ("10.0.0.2:7", "10.0.0.1:1080", "10.0.0.2:7"),
            // Not private: 100.128 is no address of a provider's NAT.
            ("100.128.0.2:7", "198.51.100.1:1080", "100.128.0.2:7"),
        ] {
            let parse = |text: &str| text.parse::<SocketAddr>().expect("a literal");
            let found = relay_at(Some(parse(named)), parse(server));
            assert_eq!(found, parse(relay), "{named} by {server}");
        }
        let server = SocketAddr::from(([198, 51, 100, 1], 1080));
        assert_eq!(relay_at(None, server), server);
    }
}
