//! An upstream on loopback whose every answer a test decides.

use hickory_resolver::proto::op::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinHandle;

use super::*;

/// What a server sends for a question.
pub enum Reply {
    /// From where the question went.
    Here(Vec<u8>),
    /// From another socket.
    Elsewhere(Vec<u8>),
    /// Ends the connection.
    Close,
}

/// What a server has for each question.
pub type Answers = Arc<dyn Fn(&Message, Over) -> Vec<Reply> + Send + Sync>;

/// UDP and TCP on the same port.
pub struct TestServer {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<(Over, String)>>>,
    connections: Arc<AtomicUsize>,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for TestServer {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl TestServer {
    /// A server that has this address for every name.
    pub async fn with(address: &'static str) -> Self {
        Self::start(move |question, _| {
            let answer = addresses(question, &[address], 300);
            vec![Reply::Here(answer.to_vec().expect("well formed"))]
        })
        .await
    }

    pub async fn start(
        answers: impl Fn(&Message, Over) -> Vec<Reply> + Send + Sync + 'static,
    ) -> Self {
        let (udp, tcp, address) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
            let address = udp.local_addr().expect("bound");
            // Another program may have that port.
            if let Ok(tcp) = TcpListener::bind(address).await {
                break (udp, tcp, address);
            }
        };
        let answers: Answers = Arc::new(answers);
        let asked: Arc<Mutex<Vec<(Over, String)>>> = Arc::default();
        let connections = Arc::new(AtomicUsize::new(0));
        let log = |over| {
            let asked = Arc::clone(&asked);
            move |question: &Message| {
                let about = question.queries[0].name().to_ascii();
                asked.lock().expect("no panic").push((over, about));
            }
        };
        let tasks = [
            tokio::spawn(by_udp(udp, Arc::clone(&answers), log(Over::Udp))),
            tokio::spawn(by_tcp(
                tcp,
                answers,
                log(Over::Tcp),
                Arc::clone(&connections),
            )),
        ];
        Self {
            address,
            asked,
            connections,
            tasks,
        }
    }

    /// As an upstream is written.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    /// How it was asked, for which names.
    pub fn asked(&self) -> Vec<(Over, String)> {
        self.asked.lock().expect("no panic").clone()
    }

    pub fn connections(&self) -> usize {
        self.connections.load(SeqCst)
    }
}

async fn by_udp(socket: UdpSocket, answers: Answers, log: impl Fn(&Message)) {
    let elsewhere = UdpSocket::bind("127.0.0.1:0").await.expect("loopback");
    let mut buffer = [0; 4096];
    loop {
        // An error is the ICMP of a client that is gone.
        let Ok((length, client)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let question = Message::from_vec(&buffer[..length]).expect("a question");
        log(&question);
        for reply in answers(&question, Over::Udp) {
            let _ = match reply {
                Reply::Here(bytes) => socket.send_to(&bytes, client).await,
                Reply::Elsewhere(bytes) => elsewhere.send_to(&bytes, client).await,
                Reply::Close => Ok(0),
            };
        }
    }
}

async fn by_tcp(
    listener: TcpListener,
    answers: Answers,
    log: impl Fn(&Message) + Clone + Send + 'static,
    connections: Arc<AtomicUsize>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        connections.fetch_add(1, SeqCst);
        tokio::spawn(framed(stream, Arc::clone(&answers), log.clone()));
    }
}

/// Answers on a connection, encrypted or not.
pub async fn framed<S>(mut stream: S, answers: Answers, log: impl Fn(&Message))
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    while let Ok(length) = stream.read_u16().await {
        let mut question = vec![0; length.into()];
        stream.read_exact(&mut question).await.expect("a question");
        let question = Message::from_vec(&question).expect("a question");
        log(&question);
        for reply in answers(&question, Over::Tcp) {
            match reply {
                Reply::Here(bytes) | Reply::Elsewhere(bytes) => {
                    let mut framed = (bytes.len() as u16).to_be_bytes().to_vec();
                    framed.extend(bytes);
                    stream.write_all(&framed).await.expect("open");
                    stream.flush().await.expect("open");
                }
                Reply::Close => return,
            }
        }
    }
}
