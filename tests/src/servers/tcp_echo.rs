//! A TCP echo.

use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};

use crate::Namespace;

#[derive(Debug, Default)]
struct Shared {
    ending: AtomicBool,
    clients: Mutex<Vec<SocketAddr>>,
    streams: Mutex<Vec<TcpStream>>,
}

/// Sends back what it gets, at every address of the namespace, both families. When the client ends its
/// direction, the echo ends its own after the last byte.
#[derive(Debug)]
pub struct TcpEcho {
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
    thread: Option<thread::JoinHandle<()>>,
}

impl TcpEcho {
    /// What a server says that speaks first.
    pub const BANNER: &[u8] = b"220 lab ESMTP\r\n";

    /// Starts it at `port`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(ns: &Namespace, port: u16) -> Result<Self> {
        Self::start_with(ns, port, b"")
    }

    /// Starts one that says [`BANNER`](Self::BANNER) to each client, as servers of SMTP and SSH do, before it
    /// listens to it.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start_speaking(ns: &Namespace, port: u16) -> Result<Self> {
        Self::start_with(ns, port, Self::BANNER)
    }

    fn start_with(ns: &Namespace, port: u16, banner: &'static [u8]) -> Result<Self> {
        let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        let listener = ns
            .enter(|| TcpListener::bind(address))?
            .with_context(|| format!("listening at TCP port {port} in {}", ns.name()))?;
        let listener = Arc::new(listener);
        let shared = Arc::new(Shared::default());
        let (accepting, state) = (Arc::clone(&listener), Arc::clone(&shared));
        let thread = thread::spawn(move || accept(&accepting, &state, banner));
        Ok(Self {
            shared,
            listener,
            thread: Some(thread),
        })
    }

    /// The address and port of each client, in the order of their coming.
    #[must_use]
    pub fn clients(&self) -> Vec<SocketAddr> {
        self.shared
            .clients
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for TcpEcho {
    fn drop(&mut self) {
        self.shared.ending.store(true, Ordering::SeqCst);
        // Shutting a listener down wakes accept(2) with an error.
        nix::sys::socket::shutdown(
            std::os::fd::AsRawFd::as_raw_fd(&*self.listener),
            nix::sys::socket::Shutdown::Both,
        )
        .ok();
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
        let streams = self
            .shared
            .streams
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for stream in streams.iter() {
            stream.shutdown(Shutdown::Both).ok();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>, banner: &'static [u8]) {
    loop {
        match listener.accept() {
            Ok((stream, client)) => {
                let client = SocketAddr::new(client.ip().to_canonical(), client.port());
                lock(&shared.clients).push(client);
                if let Ok(copy) = stream.try_clone() {
                    lock(&shared.streams).push(copy);
                }
                let shared = Arc::clone(shared);
                thread::spawn(move || {
                    // A client that goes away is no concern of the server.
                    echo(&stream, banner).ok();
                    let peer = stream.peer_addr().ok();
                    lock(&shared.streams).retain(|other| other.peer_addr().ok() != peer);
                });
            }
            Err(_) if shared.ending.load(Ordering::SeqCst) => return,
            Err(_) => {}
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn echo(mut stream: &TcpStream, banner: &[u8]) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(banner)?;
    let mut buffer = vec![0; 65_536];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&buffer[..read])?;
    }
}
