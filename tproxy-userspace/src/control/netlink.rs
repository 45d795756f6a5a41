//! One request at a time to the kernel's routing tables (rtnetlink).
//!
//! Answers are kept as bytes and decoded by who asked. The typed decoders drop a message that has
//! an attribute they cannot read, and a link that is silently missing would not be proxied.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::time::Duration;

use futures_util::StreamExt;
use rtnetlink::packet_core::{
    ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::proto::{ConnectionHandle, new_connection_with_socket};
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

use super::Error;

/// `NLM_F_DUMP_INTR`: the tables changed while they were read.
const DUMP_INTERRUPTED: u16 = 0x10;
/// `NLMSGERR_ATTR_MSG`: the kernel's own words about an error.
const EXTENDED_ACK_TEXT: u16 = 1;
/// The bytes of `struct nlmsghdr`, which precede the extended acknowledgement.
const HEADER_BYTES: usize = 16;
/// Until the rest of an abandoned dump has been read.
const BUSY: Duration = Duration::from_millis(5);
/// How often an interrupted dump is asked for again.
const DUMP_ATTEMPTS: usize = 16;

/// A refusal of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetlinkError {
    /// The error number, positive (`errno(3)`).
    pub errno: i32,
    /// What the kernel adds in words.
    pub detail: Option<String>,
}

impl fmt::Display for NetlinkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.errno).fmt(f)?;
        match &self.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for NetlinkError {}

impl NetlinkError {
    fn new(errno: i32, detail: &str) -> Self {
        Self {
            errno,
            detail: Some(detail.to_owned()),
        }
    }

    fn from_message(message: &ErrorMessage) -> Self {
        let extended = message.header.get(HEADER_BYTES..).unwrap_or_default();
        let detail = NlasIterator::new(extended)
            .filter_map(Result::ok)
            .find(|attribute| attribute.kind() == EXTENDED_ACK_TEXT)
            .map(|attribute| text(attribute.value()));
        Self {
            errno: message.raw_code().abs(),
            detail,
        }
    }
}

/// A text that ends with a zero byte.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A message either way: the payload behind the netlink header, as bytes.
#[derive(Clone, Debug)]
struct Raw {
    kind: u16,
    payload: Vec<u8>,
}

impl From<&RouteNetlinkMessage> for Raw {
    fn from(message: &RouteNetlinkMessage) -> Self {
        let mut payload = vec![0; NetlinkSerializable::buffer_len(message)];
        message.serialize(&mut payload);
        Self {
            kind: message.message_type(),
            payload,
        }
    }
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer[..self.payload.len()].copy_from_slice(&self.payload);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = Infallible;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Infallible> {
        Ok(Self {
            kind: header.message_type,
            payload: payload.to_vec(),
        })
    }
}

/// A netlink socket in the network namespace of the thread that opened it.
#[derive(Clone, Debug)]
pub struct Netlink {
    handle: ConnectionHandle<Raw>,
}

impl Netlink {
    /// Opens the socket and starts the task that serves it, which ends when the last clone is dropped.
    ///
    /// # Errors
    /// [`Error::NetlinkSocket`] when the kernel gives none.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let open = || {
            let (mut connection, handle, _unsolicited) =
                new_connection_with_socket::<Raw, TokioSocket>(NETLINK_ROUTE)?;
            // A dump whose last part says "interrupted" must be seen to be repeated.
            connection.set_forward_done(true);
            let socket = connection.socket_mut().socket_mut();
            // Filters in a dump request count only with strict checking (Linux 4.20).
            socket.set_netlink_get_strict_chk(true)?;
            socket.set_cap_ack(true)?;
            socket.set_ext_ack(true)?;
            tokio::spawn(connection);
            Ok(Self { handle })
        };
        open().map_err(|reason| Error::NetlinkSocket { reason })
    }

    /// Asks for a table and returns each entry's message, repeated until the table stood still.
    pub(super) async fn dump(
        &self,
        request: &RouteNetlinkMessage,
    ) -> Result<Vec<Vec<u8>>, NetlinkError> {
        for _ in 0..DUMP_ATTEMPTS {
            match self.exchange(request, NLM_F_DUMP).await {
                Ok((entries, false)) => return Ok(entries),
                Ok((_, true)) => {}
                // A socket gives one table at a time, and who asked for the one before may have been
                // dropped while it waited. Its answers are read all the same.
                Err(error) if error.errno == libc::EBUSY => tokio::time::sleep(BUSY).await,
                Err(error) => return Err(error),
            }
        }
        Err(NetlinkError::new(
            libc::EINTR,
            "the table changes faster than it can be read",
        ))
    }

    /// Asks for one entry and returns its message. None: the kernel says nothing.
    pub(super) async fn get(
        &self,
        request: &RouteNetlinkMessage,
    ) -> Result<Option<Vec<u8>>, NetlinkError> {
        let (entries, _) = self.exchange(request, NLM_F_ACK).await?;
        Ok(entries.into_iter().next())
    }

    /// Asks for a change; `flags` are `NLM_F_CREATE` and the like.
    pub(super) async fn change(
        &self,
        request: &RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        self.exchange(request, NLM_F_ACK | flags).await.map(drop)
    }

    async fn exchange(
        &self,
        request: &RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(Vec<Vec<u8>>, bool), NetlinkError> {
        let mut message = NetlinkMessage::new(
            NetlinkHeader::default(),
            NetlinkPayload::InnerMessage(Raw::from(request)),
        );
        message.header.flags = NLM_F_REQUEST | flags;
        let ended = || NetlinkError::new(libc::ENOTCONN, "the netlink connection has ended");
        let mut answers = self
            .handle
            .request(message, SocketAddr::new(0, 0))
            .map_err(|_| ended())?;
        let (mut entries, mut interrupted, mut done) = (Vec::new(), false, false);
        while let Some(answer) = answers.next().await {
            interrupted |= answer.header.flags & DUMP_INTERRUPTED != 0;
            match answer.payload {
                NetlinkPayload::InnerMessage(raw) => entries.push(raw.payload),
                NetlinkPayload::Error(error) if error.code.is_some() => {
                    return Err(NetlinkError::from_message(&error));
                }
                // A dump that fails half-way says so in its last part.
                NetlinkPayload::Done(end) if end.code != 0 => {
                    return Err(NetlinkError {
                        errno: end.code.abs(),
                        detail: None,
                    });
                }
                NetlinkPayload::Done(_) => done = true,
                NetlinkPayload::Overrun(_) => interrupted = true,
                _ => {}
            }
        }
        // Without this a connection that died half-way would look like a short table.
        if flags & NLM_F_DUMP == NLM_F_DUMP && !done {
            return Err(ended());
        }
        Ok((entries, interrupted))
    }
}
