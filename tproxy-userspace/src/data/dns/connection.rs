//! Clients that ask by TCP (RFC 7766).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::server::{Over, Server};

/// Questions of one connection that are under way at once. The next ones wait in the kernel's buffer.
const MOST_UNDER_WAY: usize = 32;
/// A connection without a question, or whose client takes no answer, ends (RFC 7766 section 6.2.3: seconds).
const IDLE: Duration = Duration::from_secs(30);

/// Answers the questions of a connection, each as soon as its answer is there (RFC 7766 section 7), until the client
/// ends it and has its answers, breaks the framing, or idles.
///
/// # Errors
/// When the connection breaks.
pub async fn serve<S>(server: &Server, stream: S, client: SocketAddr) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (input, mut output) = tokio::io::split(stream);
    // Reading is a task of its own in so far as a half-read question must survive that an answer comes.
    let (arrived, mut questions) = mpsc::channel(1);
    let reading = async move {
        let mut input = BufReader::new(input);
        loop {
            let question = timeout(IDLE, read(&mut input)).await;
            let Ok(Ok(question)) = question else {
                // The end of the stream, of the patience, or of the framing.
                return;
            };
            if arrived.send(question).await.is_err() {
                return;
            }
        }
    };
    let answering = async {
        let mut under_way = FuturesUnordered::new();
        let mut open = true;
        while open || !under_way.is_empty() {
            tokio::select! {
                question = questions.recv(), if open && under_way.len() < MOST_UNDER_WAY => match question {
                    None => open = false,
                    Some(question) => under_way.push(async move {
                        let question: Vec<u8> = question;
                        server.answer(&question, Over::Tcp, client).await
                    }),
                },
                Some(answer) = under_way.next(), if !under_way.is_empty() => {
                    // A message that gets no answer on a datagram ends a connection: it is not DNS.
                    let Some(answer) = answer else {
                        return Ok(());
                    };
                    timeout(IDLE, write(&mut output, &answer)).await??;
                }
            }
        }
        output.shutdown().await
    };
    let mut answering = std::pin::pin!(answering);
    tokio::select! {
        // The reader ends first where the client says so; what it asked is still answered.
        () = reading => answering.await,
        ended = &mut answering => ended,
    }
}

async fn read(input: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let length = input.read_u16().await?;
    let mut question = vec![0; length.into()];
    input.read_exact(&mut question).await?;
    Ok(question)
}

async fn write(output: &mut (impl AsyncWrite + Unpin), answer: &[u8]) -> io::Result<()> {
    let mut framed = Vec::with_capacity(2 + answer.len());
    framed.extend((answer.len() as u16).to_be_bytes());
    framed.extend_from_slice(answer);
    output.write_all(&framed).await?;
    output.flush().await
}
