//! A TCP server for thousands of connections at a time.

use std::{
    collections::HashMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::Namespace;

/// What it answers.
const BYTE: &[u8] = &[1];
/// How often it looks at its stop flag when nothing happens.
const TICK_MS: u8 = 50;

/// Answers whatever comes together with a byte, any number of connections on one thread.
#[derive(Debug)]
pub struct OneByte {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl OneByte {
    /// Starts it at `port` of all addresses.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(ns: &Namespace, port: u16) -> Result<Self> {
        let address = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        let listen = || -> std::io::Result<Socket> {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
            socket.set_reuse_address(true)?;
            socket.set_nonblocking(true)?;
            socket.bind(&address.into())?;
            socket.listen(4096)?;
            Ok(socket)
        };
        let listener = ns
            .enter(listen)?
            .with_context(|| format!("listening at TCP port {port} in {}", ns.name()))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || serve(&listener.into(), &stopped));
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for OneByte {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(Err(error))) => eprintln!("the connection server failed: {error:#}"),
            Some(Err(_)) => eprintln!("the connection server panicked"),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

fn serve(listener: &TcpListener, stop: &AtomicBool) -> Result<()> {
    const LISTENER: u64 = 0;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    let mut open: HashMap<u64, TcpStream> = HashMap::new();
    let mut number = LISTENER;
    let mut events = [EpollEvent::empty(); 256];
    while !stop.load(Ordering::Relaxed) {
        let ready = match epoll.wait(&mut events, EpollTimeout::from(TICK_MS)) {
            Ok(ready) => &events[..ready],
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("waiting for sockets"),
        };
        for event in ready {
            if event.data() != LISTENER {
                if let Some(stream) = open.get_mut(&event.data())
                    && !answer(stream)
                {
                    open.remove(&event.data());
                }
                continue;
            }
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(true)?;
                        number += 1;
                        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, number))?;
                        open.insert(number, stream);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    // Reset before it was accepted.
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error).context("accepting"),
                }
            }
        }
    }
    Ok(())
}

/// Is the connection still to be kept?
fn answer(stream: &mut TcpStream) -> bool {
    match stream.read(&mut [0; 512]) {
        Ok(0) => false,
        Ok(_) => stream.write_all(BYTE).is_ok(),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}
