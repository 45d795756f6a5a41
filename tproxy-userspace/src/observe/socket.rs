//! The client's side of the control API: what the commands ask the running proxy, by HTTP on a Unix socket that is for
//! root alone.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::policy::rule::Protocol;

/// The largest answer that is read, in bytes: some hundred thousand flows.
const MAX_ANSWER: u64 = 256 << 20;
/// The largest head of an answer, in bytes.
const MAX_HEAD: usize = 16 * 1024;
/// How much of an answer is read at once, in bytes.
const READ_SIZE: usize = 256 << 10;
/// What stands for itself in a URL.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// What can be asked of a proxy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum Request {
    /// What it does now.
    Status,
    /// What the rules say of something that is steered.
    Explain {
        /// TCP or UDP.
        protocol: Protocol,
        /// The device.
        source: SocketAddr,
        /// Where it wants to go.
        destination: SocketAddr,
        /// The name that it asks for, if there is one.
        name: Option<String>,
    },
    /// The addresses that devices get for a name.
    LookUp {
        /// The name.
        name: String,
    },
    /// Take this member of a group from now on.
    Select {
        /// The group's name.
        group: String,
        /// The member's.
        member: String,
    },
    /// Put this configuration into force.
    Apply {
        /// Its text.
        text: String,
        /// The file that it is from.
        path: PathBuf,
        /// Take it back after so many seconds, unless it is confirmed. None: it holds.
        confirm_seconds: Option<u64>,
    },
    /// The configuration that is on trial holds from now on.
    Confirm,
    /// The flows that live.
    Flows,
    /// End these flows.
    Kill {
        /// Their numbers.
        flows: Vec<u64>,
    },
    /// Who sent and got how much.
    Account,
    /// Read the configuration anew and put it into force, as SIGHUP does.
    Reload,
    /// Which events the log tells, and from now on these if a filter is given.
    Log {
        /// A level, or directives of `tracing`.
        filter: Option<String>,
    },
    /// Give up these links when the connections have ended.
    Detach {
        /// Their names.
        links: Vec<String>,
    },
}

impl Request {
    /// Method, path and body.
    fn http(&self) -> (Method, String, Option<Value>) {
        let get = |path: &str| (Method::GET, path.to_owned(), None);
        match self {
            Self::Status => get("/v1/status"),
            Self::Explain {
                protocol,
                source,
                destination,
                name,
            } => {
                let protocol = match protocol {
                    Protocol::Tcp => "tcp",
                    Protocol::Udp => "udp",
                };
                let mut path = format!(
                    "/v1/explain?protocol={protocol}&source={}&destination={}",
                    escaped(&source.to_string()),
                    escaped(&destination.to_string())
                );
                if let Some(name) = name {
                    path.push_str(&format!("&name={}", escaped(name)));
                }
                (Method::GET, path, None)
            }
            Self::LookUp { name } => get(&format!("/v1/lookup?name={}", escaped(name))),
            Self::Select { group, member } => (
                Method::PUT,
                format!("/v1/groups/{}", escaped(group)),
                Some(json!({ "member": member })),
            ),
            Self::Apply {
                text,
                path,
                confirm_seconds,
            } => (
                Method::POST,
                "/v1/apply".to_owned(),
                Some(json!({ "text": text, "path": path, "confirm_seconds": confirm_seconds })),
            ),
            Self::Confirm => (Method::POST, "/v1/confirm".to_owned(), None),
            Self::Flows => get("/v1/flows"),
            Self::Kill { flows } => (
                Method::DELETE,
                "/v1/flows".to_owned(),
                Some(json!({ "flows": flows })),
            ),
            Self::Account => get("/v1/account"),
            Self::Reload => (Method::POST, "/v1/reload".to_owned(), None),
            Self::Log { filter: None } => get("/v1/log"),
            Self::Log { filter } => (
                Method::PUT,
                "/v1/log".to_owned(),
                Some(json!({ "filter": filter })),
            ),
            Self::Detach { links } => (
                Method::POST,
                "/v1/detach".to_owned(),
                Some(json!({ "links": links })),
            ),
        }
    }
}

fn escaped(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

/// Why asking failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket could not be made.
    #[error("making the control socket {} failed: {source}", .path.display())]
    Bind {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The proxy did not answer.
    #[error("asking the proxy through {} failed: {source}", .path.display())]
    Ask {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Asks the proxy that listens at this path and waits for the answer. What it refuses is an answer with the key
/// "error".
///
/// # Errors
/// [`Error::Ask`].
pub fn ask(path: &Path, request: &Request, patience: Duration) -> Result<Value, Error> {
    let bytes = ask_bytes(path, request, patience)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Ask {
        path: path.to_owned(),
        source: source.into(),
    })
}

/// The same, with the answer as it came: for who reads a long one straight into what it is of.
///
/// # Errors
/// [`Error::Ask`].
pub fn ask_bytes(path: &Path, request: &Request, patience: Duration) -> Result<Vec<u8>, Error> {
    exchange(path, request, patience).map_err(|source| Error::Ask {
        path: path.to_owned(),
        source,
    })
}

fn exchange(path: &Path, request: &Request, patience: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + patience;
    let (method, target, body) = request.http();
    let body = body.map(|body| body.to_string()).unwrap_or_default();
    let mut stream = UnixStream::connect(path)?;
    stream.set_write_timeout(Some(patience))?;
    write!(
        stream,
        "{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = Vec::new();
    let mut head = None;
    let mut buffer = vec![0; READ_SIZE];
    loop {
        if head.is_none() {
            head = end_of_head(&answer)?;
        }
        if let Some((start, length)) = head
            && answer.len() - start >= length
        {
            answer.truncate(start + length);
            answer.drain(..start);
            return Ok(answer);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => answer.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Where the body begins and how long it is. None: the head is not there yet.
fn end_of_head(bytes: &[u8]) -> io::Result<Option<(usize, usize)>> {
    let invalid = |what: &'static str| io::Error::new(io::ErrorKind::InvalidData, what);
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes);
    let start = match parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
        httparse::Status::Complete(start) => start,
        httparse::Status::Partial if bytes.len() > MAX_HEAD => {
            return Err(invalid("the answer's head is too long"));
        }
        httparse::Status::Partial => return Ok(None),
    };
    let mut headers = response.headers.iter();
    let length = headers
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| std::str::from_utf8(header.value).ok()?.parse::<u64>().ok())
        .filter(|length| *length <= MAX_ANSWER)
        .ok_or_else(|| invalid("the answer has no usable length"))?;
    let length = usize::try_from(length).map_err(|_| invalid("the answer is too long"))?;
    Ok(Some((start, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_a_route() {
        let explain = Request::Explain {
            protocol: Protocol::Udp,
            source: "[2001:db8::1]:5".parse().unwrap(),
            destination: "192.0.2.1:443".parse().unwrap(),
            name: Some("a&b=c".to_owned()),
        };
        let (method, path, body) = explain.http();
        assert_eq!(method, Method::GET);
        assert_eq!(
            path,
            "/v1/explain?protocol=udp&source=%5B2001%3Adb8%3A%3A1%5D%3A5&destination=192.0.2.1%3A443&name=a%26b%3Dc"
        );
        assert!(body.is_none());
        let group = "a/../b c".to_owned();
        let select = Request::Select {
            group,
            member: "m".to_owned(),
        };
        assert_eq!(select.http().1, "/v1/groups/a%2F..%2Fb%20c");
    }

    #[test]
    fn an_answer_is_read_by_its_length() {
        let head = |text: &str| end_of_head(text.as_bytes());
        let whole = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
        assert_eq!(head(whole).unwrap(), Some((whole.len() - 2, 2)));
        assert_eq!(head("HTTP/1.1 200 OK\r\ncontent-le").unwrap(), None);
        for bad in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
        ] {
            head(bad).unwrap_err();
        }
        head(&format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(MAX_HEAD))).unwrap_err();
    }
}
