//! The control socket: a Unix socket, for root alone. A request is one line
//! of JSON, and so is the answer.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc};
use tokio::task::AbortHandle;

use crate::policy::rule::Protocol;

/// The longest request that is read, in bytes.
const MAX_REQUEST: u64 = 4 << 20;
/// How long a client may take for its request.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// Requests that wait for their answers; who comes then waits before that.
const QUEUE: usize = 16;

/// How much of an answer is read at once, in bytes.
const READ_SIZE: usize = 256 << 10;

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
    /// Give up these links when the connections have ended.
    Detach {
        /// Their names.
        links: Vec<String>,
    },
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

/// The listening side.
#[derive(Debug)]
pub struct Server {
    asked: Mutex<mpsc::Receiver<Asked>>,
    accepting: AbortHandle,
    path: PathBuf,
}

/// One request, to be answered.
#[derive(Debug)]
pub struct Asked {
    /// What is asked.
    pub request: Request,
    stream: UnixStream,
}

impl Server {
    /// Listens at this path. What a killed proxy left there is replaced: only the holder of the
    /// proxy's lock may call this.
    ///
    /// # Errors
    /// [`Error::Bind`].
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn bind(path: &Path) -> Result<Self, Error> {
        let path = path.to_owned();
        let bind = || {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        };
        match bind() {
            Ok(listener) => {
                let (queue, asked) = mpsc::channel(QUEUE);
                Ok(Self {
                    asked: Mutex::new(asked),
                    accepting: tokio::spawn(accept(listener, queue)).abort_handle(),
                    path,
                })
            }
            Err(source) => Err(Error::Bind { path, source }),
        }
    }

    /// The next request that can be understood. Others are answered here. Nothing is lost when the future is
    /// dropped.
    pub async fn next(&self) -> Asked {
        match self.asked.lock().await.recv().await {
            Some(asked) => asked,
            // The runtime ends, and with it who waits here.
            None => std::future::pending().await,
        }
    }
}

/// Reads requests, each in a task of its own: a client that is slow keeps no other waiting.
async fn accept(listener: UnixListener, queue: mpsc::Sender<Asked>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: they come back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let queue = queue.clone();
        tokio::spawn(async move {
            match tokio::time::timeout(REQUEST_TIME, read_request(stream)).await {
                // With the server gone there is nobody to answer.
                Ok(Ok(asked)) => drop(queue.send(asked).await),
                Ok(Err(error)) => tracing::debug!("control socket: {error}"),
                Err(_) => tracing::debug!("control socket: a client sent no request"),
            }
        });
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
        let _ = fs::remove_file(&self.path);
    }
}

async fn read_request(stream: UnixStream) -> io::Result<Asked> {
    let mut reader = tokio::io::BufReader::new(stream).take(MAX_REQUEST);
    let mut line = String::new();
    reader.read_line(&mut line).await?;
    let mut stream = reader.into_inner().into_inner();
    match serde_json::from_str(&line) {
        Ok(request) => Ok(Asked { request, stream }),
        Err(error) => {
            let answer = serde_json::json!({ "error": format!("not a request: {error}") });
            stream.write_all(format!("{answer}\n").as_bytes()).await?;
            Err(io::Error::new(io::ErrorKind::InvalidData, error))
        }
    }
}

impl Asked {
    /// Answers. Whoever asked may have gone, which is no concern of the proxy.
    pub async fn answer(mut self, answer: &impl Serialize) {
        let text = serde_json::to_string(answer);
        let text = text.unwrap_or_else(|error| {
            serde_json::json!({ "error": format!("the answer cannot be written: {error}") })
                .to_string()
        });
        let _ = self.stream.write_all(format!("{text}\n").as_bytes()).await;
    }
}

/// Asks the proxy that listens at this path and waits for the answer.
///
/// # Errors
/// [`Error::Ask`].
pub fn ask(path: &Path, request: &Request, patience: Duration) -> Result<serde_json::Value, Error> {
    let text = ask_text(path, request, patience)?;
    serde_json::from_str(&text).map_err(|source| Error::Ask {
        path: path.to_owned(),
        source: source.into(),
    })
}

/// The same, with the answer as it came: for who reads a long one straight into what it is of.
///
/// # Errors
/// [`Error::Ask`].
pub fn ask_text(path: &Path, request: &Request, patience: Duration) -> Result<String, Error> {
    let ask = || {
        let mut stream = BlockingStream::connect(path)?;
        stream.set_read_timeout(Some(patience))?;
        stream.write_all(format!("{}\n", serde_json::to_string(request)?).as_bytes())?;
        let mut line = String::new();
        // An answer may be megabytes: as many at once as a Unix socket holds.
        BufReader::with_capacity(READ_SIZE, stream).read_line(&mut line)?;
        Ok(line)
    };
    ask().map_err(|source| Error::Ask {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_is_answered_and_nonsense_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let server = Server::bind(&path).unwrap();
        let asked_path = path.clone();
        let client = tokio::task::spawn_blocking(move || {
            let mut nonsense = BlockingStream::connect(&asked_path).unwrap();
            nonsense.write_all(b"{\"verb\":\"dance\"}\n").unwrap();
            let mut refusal = String::new();
            BufReader::new(nonsense).read_line(&mut refusal).unwrap();
            let answer = ask(&asked_path, &Request::Status, Duration::from_secs(5)).unwrap();
            (refusal, answer)
        });
        let asked = server.next().await;
        assert_eq!(asked.request, Request::Status);
        asked.answer(&serde_json::json!({ "well": true })).await;
        let (refusal, answer) = client.await.unwrap();
        assert!(refusal.contains("not a request"), "{refusal}");
        assert_eq!(answer["well"], true);
        drop(server);
        assert!(!path.exists());
    }
    /// Who waits for requests waits for other things as well, and those may come in the middle of one.
    #[tokio::test]
    async fn a_request_is_not_lost_with_the_future_that_waits_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let server = Server::bind(&path).unwrap();
        let mut client = UnixStream::connect(&path).await.unwrap();
        for _ in 0..10 {
            let waiting = tokio::time::timeout(Duration::ZERO, server.next()).await;
            assert!(waiting.is_err());
        }
        client.write_all(b"{\"verb\":\"status\"}\n").await.unwrap();
        let asked = server.next().await;
        asked.answer(&serde_json::json!({ "well": true })).await;
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("well"), "{answer}");
    }
}
