//! Speaking TLS to the server of an outbound.

use tokio::time::Instant;

use super::{DialError, Dialer, Outbound, Peer, trojan};
use crate::data::stream::{Stream, Wrapped};
use crate::data::tls::Connector;
use crate::data::way::Way;

/// A connection that speaks TLS.
#[derive(Debug)]
pub struct Secured {
    /// It.
    pub stream: Stream,
    /// Whom it is to.
    pub peer: Peer,
    /// It was made before it was wanted, so its server may have hung up by now.
    pub is_spare: bool,
}

/// Speaks TLS to a server from here on. `help` is what to do about a certificate for somebody else.
///
/// # Errors
/// [`DialError::Tls`].
pub async fn secure(
    stream: Stream,
    connector: &Connector,
    server: &Peer,
    help: &'static str,
) -> Result<Stream, DialError> {
    let Wrapped { duplex, socket, .. } = stream.into_wrapped();
    let encrypted = connector.connect(duplex).await;
    let encrypted = encrypted.map_err(|source| DialError::Tls {
        server: server.clone(),
        source,
        help,
    })?;
    Ok(Stream::Wrapped(Wrapped {
        duplex: Box::new(encrypted),
        socket,
        opens_with_payload: false,
    }))
}

impl Dialer {
    /// Connects to the server of an outbound that speaks TLS, or takes a connection that is ready.
    pub(super) async fn secured(&self, way: &Way, deadline: Instant) -> Result<Secured, DialError> {
        match way.spare().await {
            Some((stream, peer)) => Ok(Secured {
                stream,
                peer,
                is_spare: true,
            }),
            None => self.secure_new(way, deadline).await,
        }
    }

    /// The same without those that are ready.
    pub(super) async fn secure_new(
        &self,
        way: &Way,
        deadline: Instant,
    ) -> Result<Secured, DialError> {
        let (stream, at) = self.reach(way, deadline).await?;
        let (kind, help) = match &*way.outbound {
            Outbound::Trojan(_) => (trojan::KIND, trojan::CERTIFICATE),
            _ => (
                "HTTPS proxy",
                "a certificate must be for the host in the outbound's URL",
            ),
        };
        let peer = Peer { kind, at };
        let stream = secure(stream, way.tls(), &peer, help).await?;
        Ok(Secured {
            stream,
            peer,
            is_spare: false,
        })
    }

    /// Makes a connection for later.
    ///
    /// # Errors
    /// What failed, on which machine.
    pub(in crate::data) async fn prepare(&self, way: &Way) -> Result<(Stream, Peer), DialError> {
        let deadline = Instant::now() + self.limit;
        let making = self.secure_new(way, deadline);
        let made = self.within(deadline, &way.outbound, false, making).await?;
        Ok((made.stream, made.peer))
    }
}
