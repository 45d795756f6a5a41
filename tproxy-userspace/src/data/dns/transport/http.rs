//! Messages as the bodies of HTTP/2 requests (RFC 8484).

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Ask, Failure};
use crate::data::dns::wire::{LARGEST, Response};

/// The type of questions and answers (RFC 8484 section 6).
const MESSAGE: &str = "application/dns-message";

/// A connection on which many requests are under way at once.
#[derive(Debug)]
pub struct Http {
    requests: SendRequest<Bytes>,
    url: Arc<str>,
    connection: tokio::task::JoinHandle<()>,
}

impl Http {
    /// Greets the server. `url` is where the questions are posted.
    pub async fn start<S>(stream: S, url: &Arc<str>) -> Result<Self, Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, connection) = h2::client::handshake(stream).await?;
        let connection = tokio::spawn(async move {
            // Whoever has a request under way learns of the error by it.
            let _ = connection.await;
        });
        Ok(Self {
            requests,
            url: Arc::clone(url),
            connection,
        })
    }

    /// It takes no more questions.
    pub fn is_closed(&self) -> bool {
        self.connection.is_finished()
    }

    /// Asks, and waits for as long as it takes.
    pub async fn ask(&self, ask: &Ask) -> Result<Response, Failure> {
        let request = Request::builder()
            .method(Method::POST)
            .uri(&*self.url)
            .header(header::CONTENT_TYPE, MESSAGE)
            .header(header::ACCEPT, MESSAGE);
        // Number 0: HTTP tells the answers apart (RFC 8484 section 4.1).
        let message = ask.encode(0, true);
        let request = request
            .header(header::CONTENT_LENGTH, message.len())
            .body(())
            .expect("the URL was checked when it was read");
        let mut requests = self.requests.clone().ready().await?;
        let (response, mut body) = requests.send_request(request, false)?;
        body.send_data(message.into(), true)?;
        let response = response.await?;
        if response.status() != StatusCode::OK {
            return Err(Failure::Status(response.status().as_u16()));
        }
        let mut body = response.into_body();
        let mut message = Vec::new();
        while let Some(part) = body.data().await {
            let part = part?;
            if message.len() + part.len() > LARGEST {
                return Err(Failure::Malformed);
            }
            message.extend_from_slice(&part);
            body.flow_control().release_capacity(part.len())?;
        }
        Ok(Response::parse(message, 0, &ask.question)?)
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        // Requests that are under way hold clones and would keep it open.
        self.connection.abort();
    }
}
