//! The client side of HTTP's CONNECT, with and without TLS to the proxy.

use std::io;

use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::connect::{self, Malformed};
use super::{Credentials, DialError, Dialer, Peer, Server, Target};
use crate::data::stream::Stream;
use crate::data::way::Way;

/// Connects to `target` through the server, which is spoken to by TLS if the outbound says so.
pub(super) async fn connect(
    dialer: &Dialer,
    way: &Way,
    server: &Server,
    target: Target<'_>,
    deadline: Instant,
) -> Result<Stream, DialError> {
    let credentials = server.credentials.as_ref();
    let (mut stream, peer) = if way.outbound.speaks_tls() {
        let mut secured = dialer.secured(way, deadline).await?;
        if secured.is_spare {
            let asked = ask(&mut secured.stream, secured.peer, credentials, target).await;
            // A spare one may be gone: nothing was asked for then.
            match asked {
                Ok(()) => return Ok(secured.stream.answered()),
                Err(DialError::Handshake { .. }) => {
                    secured = dialer.secure_new(way, deadline).await?;
                }
                Err(error) => return Err(error),
            }
        }
        (secured.stream, secured.peer)
    } else {
        let (stream, at) = dialer.reach(way, deadline).await?;
        let kind = "HTTP proxy";
        (stream, Peer { kind, at })
    };
    ask(&mut stream, peer, credentials, target).await?;
    Ok(stream.answered())
}

/// Why there is no reply.
enum Silence {
    Broken(io::Error),
    Malformed(Malformed),
}

impl From<io::Error> for Silence {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

/// Asks for a connection. Then the stream carries the target's bytes.
async fn ask(
    stream: &mut Stream,
    server: Peer,
    credentials: Option<&Credentials>,
    target: Target<'_>,
) -> Result<(), DialError> {
    let step = "waiting for its reply";
    let request = connect::request(&target.to_string(), credentials);
    let reply = async {
        stream.write_all(request.as_bytes()).await?;
        stream.flush().await?;
        let parse = |bytes: &[u8]| connect::parse(bytes).map_err(Silence::Malformed);
        stream.read_head(parse).await
    }
    .await;
    let reply = match reply {
        Ok(reply) => reply,
        Err(Silence::Broken(source)) => {
            return Err(DialError::Handshake {
                server,
                step,
                source,
            });
        }
        Err(Silence::Malformed(reason)) => {
            return Err(DialError::Protocol {
                server,
                step,
                reason: reason.to_string(),
            });
        }
    };
    if reply.is_success() {
        return Ok(());
    }
    let other_method = || {
        let methods = &reply.methods;
        let basic = |method: &String| method.eq_ignore_ascii_case("basic");
        !methods.is_empty() && !methods.iter().any(basic)
    };
    Err(match (reply.status, credentials) {
        (401 | 407, _) if other_method() => DialError::Auth {
            server,
            reason: format!(
                "wants the authentication method {}; only Basic is supported",
                reply.methods.join(" or ")
            ),
        },
        (401 | 407, None) => DialError::Auth {
            server,
            reason:
                "wants a user and password; write them in front of its host: USER:PASSWORD@HOST"
                    .to_owned(),
        },
        // 401 is what tinyproxy says of a password that is wrong.
        (401 | 407, Some(credentials)) => DialError::Auth {
            server,
            reason: format!(
                "refused the user \"{}\"; check user and password",
                credentials.user.escape_ascii()
            ),
        },
        _ => DialError::Refused {
            server,
            request: format!("a connection to {target}"),
            reason: reply.line(),
        },
    })
}
