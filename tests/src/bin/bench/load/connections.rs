//! New TCP connections: connect, say something, one byte back, close.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use lab::{Family, Namespace, addr::FAR_COUNT, servers::OneByte};
use nix::{
    errno::Errno,
    sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout},
};
use socket2::{Domain, Socket, Type};

use super::Exchanges;
use crate::stage::Stage;

/// The least that can be said.
pub const BYTE: &[u8] = &[1];
/// A request with a name in it, as a browser without TLS sends it.
pub const REQUEST: &[u8] =
    b"GET / HTTP/1.1\r\nHost: www.bench.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n";

/// The port of the server.
pub const PORT: u16 = 8000;
/// How often a loop looks at the clock when nothing happens.
const TICK_MS: u8 = 50;
/// A connection that takes longer than this is given up and counted as lost.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where to connect to. Many addresses: ports of closed connections are not free at once.
pub fn targets(family: Family) -> Vec<SocketAddr> {
    (1..=FAR_COUNT)
        .map(|n| SocketAddr::new(family.far(n), PORT))
        .collect()
}

fn wait<'a>(epoll: &Epoll, events: &'a mut [EpollEvent]) -> Result<&'a [EpollEvent]> {
    match epoll.wait(events, EpollTimeout::from(TICK_MS)) {
        Ok(ready) => Ok(&events[..ready]),
        Err(Errno::EINTR) => Ok(&[]),
        Err(error) => Err(error).context("waiting for sockets"),
    }
}

/// One run: `at_once` connections at any moment, for `time`. `first` is what each of them says.
///
/// # Errors
/// When no connection comes about, or a socket cannot be made.
pub fn run(
    stage: &Stage,
    client: &Namespace,
    family: Family,
    at_once: usize,
    first: &[u8],
    time: Duration,
) -> Result<Exchanges> {
    let server = OneByte::start(&stage.lab.internet, PORT)?;
    let targets = targets(family);
    let exchanges = client.enter(|| Client::new(&targets, first)?.run(at_once, time))??;
    drop(server);
    if exchanges.times.is_empty() {
        bail!("none of {} connections came about", exchanges.lost);
    }
    Ok(exchanges)
}

/// A connection on its way.
struct Attempt {
    stream: TcpStream,
    started: Instant,
    connected: bool,
}

enum Step {
    Wait,
    Done,
    Failed,
}

struct Client<'a> {
    targets: &'a [SocketAddr],
    first: &'a [u8],
    epoll: Epoll,
    opened: usize,
}

impl<'a> Client<'a> {
    fn new(targets: &'a [SocketAddr], first: &'a [u8]) -> Result<Self> {
        Ok(Self {
            targets,
            first,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            opened: 0,
        })
    }

    fn run(&mut self, at_once: usize, time: Duration) -> Result<Exchanges> {
        let mut result = Exchanges::default();
        let start = Instant::now();
        let mut attempts = (0..at_once)
            .map(|slot| self.open(slot))
            .collect::<Result<Vec<_>>>()?;
        let mut events = [EpollEvent::empty(); 64];
        let mut looked = start;
        while start.elapsed() < time {
            for event in wait(&self.epoll, &mut events)? {
                let slot = usize::try_from(event.data())?;
                match self.advance(&mut attempts[slot], slot)? {
                    Step::Wait => continue,
                    Step::Done => result.times.push(attempts[slot].started.elapsed()),
                    Step::Failed => result.lost += 1,
                }
                attempts[slot] = self.open(slot)?;
            }
            if looked.elapsed() > PATIENCE / 4 {
                looked = Instant::now();
                for (slot, attempt) in attempts.iter_mut().enumerate() {
                    if attempt.started.elapsed() > PATIENCE {
                        result.lost += 1;
                        *attempt = self.open(slot)?;
                    }
                }
            }
        }
        result.elapsed = start.elapsed();
        Ok(result)
    }

    fn open(&mut self, slot: usize) -> Result<Attempt> {
        let target = self.targets[self.opened % self.targets.len()];
        self.opened += 1;
        let started = Instant::now();
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&target.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {}
            Err(error) => return Err(error).with_context(|| format!("connecting to {target}")),
        }
        let stream = TcpStream::from(socket);
        self.epoll
            .add(&stream, EpollEvent::new(EpollFlags::EPOLLOUT, slot as u64))?;
        Ok(Attempt {
            stream,
            started,
            connected: false,
        })
    }

    fn advance(&self, attempt: &mut Attempt, slot: usize) -> Result<Step> {
        if attempt.connected {
            return Ok(match attempt.stream.read(&mut [0]) {
                Ok(1) => Step::Done,
                Err(error) if error.kind() == ErrorKind::WouldBlock => Step::Wait,
                Ok(_) | Err(_) => Step::Failed,
            });
        }
        // A refused connection fails at the first write.
        if attempt.stream.write(self.first).is_err() {
            return Ok(Step::Failed);
        }
        attempt.connected = true;
        let mut readable = EpollEvent::new(EpollFlags::EPOLLIN, slot as u64);
        self.epoll.modify(&attempt.stream, &mut readable)?;
        Ok(Step::Wait)
    }
}
