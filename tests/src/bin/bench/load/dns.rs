//! DNS questions of a device: as many as are answered, so many in flight.

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsFd,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{Family, Namespace, traffic};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{setsockopt, sockopt},
};
use tproxy_userspace::net::mmsg::{Outgoing, Prefix, RecvBatch, SendBatch};

use super::Exchanges;
use crate::{
    ours::{DNS_UPSTREAM, DNS_ZONE},
    rows::{CPU_QUESTIONS, Readings},
    stage::Stage,
    ways::Way,
};

/// The port of DNS.
const PORT: u16 = 53;
/// How many names are in the cache.
const CACHED: u64 = 1_000;
/// How often a waiting end looks at clock and stop flag.
const TICK_MS: u16 = 20;
/// An answer that is not there by then is lost.
const PATIENCE: Duration = Duration::from_millis(500);
/// The TTL of all answers in seconds: longer than a bench.
const TTL: u32 = 86_400;
/// How many addresses the names stand for.
const ADDRESSES: u64 = 4_096;
/// Bytes of a header.
const HEADER: usize = 12;
/// Digits of the first label, so that all questions are of one length.
const DIGITS: usize = 10;

/// Which names are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Names {
    /// Names that were asked for before.
    Known,
    /// Each name once.
    New,
}

/// One run.
///
/// # Errors
/// When nothing is answered, or answered from where it should not be.
pub fn run(
    stage: &Stage,
    client: &Namespace,
    family: Family,
    names: Names,
    in_flight: u16,
    time: Duration,
) -> Result<Readings> {
    // Names that no run before this one has asked for.
    static NEXT: AtomicU64 = AtomicU64::new(CACHED);
    let upstream = Upstream::start(&stage.lab.internet)?;
    let socket = traffic::open_udp(client, family)?;
    socket.connect(SocketAddr::new(server(stage.way, family), PORT))?;
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))?;
    let mut client = Client::new(socket, in_flight);
    // The first answers fill the cache, and find out where all is. Nobody counts them.
    let warm = client.run(0..CACHED, Duration::from_secs(10))?;
    ensure!(
        warm.lost == 0 && warm.times.len() as u64 == CACHED,
        "of {CACHED} first questions {} were answered",
        warm.times.len()
    );
    let (asked, cpu) = (upstream.asked(), stage.program_cpu_seconds()?);
    let exchanges = match names {
        Names::Known => client.run((0..CACHED).cycle(), time)?,
        Names::New => {
            let first = NEXT.load(Relaxed);
            let exchanges = client.run(first.., time)?;
            NEXT.store(
                first + exchanges.times.len() as u64 + exchanges.lost + u64::from(in_flight),
                Relaxed,
            );
            exchanges
        }
    };
    let (asked, cpu) = (upstream.asked() - asked, stage.program_cpu_seconds()? - cpu);
    let answered = exchanges.times.len() as u64;
    if answered == 0 {
        bail!("none of {} questions was answered", exchanges.lost);
    }
    let as_meant = match names {
        Names::Known => asked == 0,
        Names::New => asked >= answered,
    };
    ensure!(
        as_meant,
        "the upstream was asked {asked} times for {answered} answers to {names:?} names"
    );
    let mut readings = exchanges.readings();
    readings.push((&CPU_QUESTIONS, cpu / answered as f64 * 1e5));
    Ok(readings)
}

/// Whom the device asks: the gateway, or a server of the world whose questions the gateway takes.
fn server(way: &Way, family: Family) -> IpAddr {
    if way.relays {
        family.far(9)
    } else {
        family.gateway_lan()
    }
}

/// A question in flight.
struct Flight {
    id: u16,
    sent: Instant,
    message: Vec<u8>,
}

struct Client {
    socket: UdpSocket,
    recv: Box<RecvBatch>,
    send: Box<SendBatch>,
    in_flight: u16,
}

impl Client {
    fn new(socket: UdpSocket, in_flight: u16) -> Self {
        // The number of a question tells its place: see `run`.
        assert!(in_flight.is_power_of_two());
        Self {
            socket,
            recv: Box::default(),
            send: Box::default(),
            in_flight,
        }
    }

    /// Asks for these names until they or the time are over.
    fn run(&mut self, mut names: impl Iterator<Item = u64>, time: Duration) -> Result<Exchanges> {
        let mut result = Exchanges::default();
        let start = Instant::now();
        let mut flights: Vec<Option<Flight>> = (0..self.in_flight)
            .map(|slot| {
                let number = names.next()?;
                Some(Flight {
                    id: slot,
                    sent: start,
                    message: question(slot, number),
                })
            })
            .collect();
        let mut due: Vec<u16> = (0..self.in_flight).collect();
        let mut looked = start;
        let mut now = start;
        while now - start < time && flights.iter().any(Option::is_some) {
            self.send_due(&mut due, &flights)?;
            wait(&self.socket)?;
            now = Instant::now();
            receive(&mut self.recv, &self.socket)?;
            for id in self
                .recv
                .datagrams()
                .filter_map(|got| answered(got?.payload))
            {
                let slot = id % self.in_flight;
                let place = &mut flights[usize::from(slot)];
                if let Some(flight) = place.take_if(|flight| flight.id == id) {
                    result.times.push(now - flight.sent);
                    *place = self.next(flight, &mut names, now);
                    due.push(slot);
                }
            }
            if now - looked > PATIENCE / 4 {
                looked = now;
                for slot in 0..self.in_flight {
                    let place = &mut flights[usize::from(slot)];
                    if let Some(flight) = place.take_if(|flight| now - flight.sent > PATIENCE) {
                        result.lost += 1;
                        *place = self.next(flight, &mut names, now);
                        due.push(slot);
                    }
                }
            }
        }
        result.elapsed = start.elapsed();
        Ok(result)
    }

    /// The question that follows one, in its place.
    fn next(
        &self,
        before: Flight,
        names: &mut impl Iterator<Item = u64>,
        now: Instant,
    ) -> Option<Flight> {
        let id = before.id.wrapping_add(self.in_flight);
        let number = names.next()?;
        let mut message = before.message;
        message[..2].copy_from_slice(&id.to_be_bytes());
        put_number(&mut message, number);
        Some(Flight {
            id,
            sent: now,
            message,
        })
    }

    fn send_due(&mut self, due: &mut Vec<u16>, flights: &[Option<Flight>]) -> Result<()> {
        let flights = due
            .drain(..)
            .filter_map(|slot| flights[usize::from(slot)].as_ref());
        let report = self.send.send(
            &self.socket,
            flights.map(|flight| Outgoing {
                to: None,
                from: None,
                prefix: Prefix::default(),
                payload: &flight.message,
                overhead: 0,
            }),
        );
        ensure!(report.refused == 0, "the kernel refused a question");
        Ok(())
    }
}

/// A question as a device's resolver asks it: recursion, EDNS with 1,232 bytes.
fn question(id: u16, number: u64) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    for field in [id, 0x0100, 1, 0, 0, 1] {
        message.extend(field.to_be_bytes());
    }
    message.push(DIGITS as u8);
    message.extend([b'0'; DIGITS]);
    for label in DNS_ZONE.split('.') {
        message.push(label.len() as u8);
        message.extend(label.as_bytes());
    }
    message.push(0);
    // Type A, class IN; the OPT record.
    message.extend([0, 1, 0, 1]);
    message.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
    put_number(&mut message, number);
    message
}

fn put_number(message: &mut [u8], mut number: u64) {
    for digit in message[HEADER + 1..][..DIGITS].iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn number(label: &[u8]) -> u64 {
    label
        .iter()
        .filter(|byte| byte.is_ascii_digit())
        .fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// The number of the question that this answers with at least one record.
fn answered(message: &[u8]) -> Option<u16> {
    let field = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let (flags, answers) = (field(2)?, field(6)?);
    (flags & 0x800f == 0x8000 && answers > 0)
        .then(|| field(0))
        .flatten()
}

/// Waits until something can be read, or for a tick.
fn wait(socket: &impl AsFd) -> Result<()> {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    match poll(&mut asked, PollTimeout::from(TICK_MS)) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error).context("waiting for datagrams"),
    }
}

/// Receives what came, if anything.
fn receive(batch: &mut RecvBatch, socket: &UdpSocket) -> Result<()> {
    use std::io::ErrorKind::{ConnectionRefused, WouldBlock};
    match batch.recv(socket) {
        Ok(_) => Ok(()),
        // What ICMP tells is a loss like others.
        Err(error) if matches!(error.kind(), WouldBlock | ConnectionRefused) => Ok(()),
        Err(error) => Err(error).context("receiving datagrams"),
    }
}

/// A server that knows every name, and costs so little that it is not what is measured.
struct Upstream {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Upstream {
    fn start(ns: &Namespace) -> Result<Self> {
        let address = SocketAddr::new(DNS_UPSTREAM.into(), PORT);
        let socket = ns
            .enter(|| UdpSocket::bind(address))?
            .with_context(|| format!("opening UDP {address} in {}", ns.name()))?;
        setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))?;
        let (stop, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&asked));
        let thread = thread::spawn(move || serve(&socket, &stopped, &counted));
        Ok(Self {
            stop,
            asked,
            thread: Some(thread),
        })
    }

    /// How often it was asked.
    fn asked(&self) -> u64 {
        self.asked.load(Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        match self.thread.take().map(thread::JoinHandle::join) {
            Some(Ok(Err(error))) => eprintln!("the DNS server failed: {error:#}"),
            Some(Err(_)) => eprintln!("the DNS server panicked"),
            Some(Ok(Ok(()))) | None => {}
        }
    }
}

fn serve(socket: &UdpSocket, stop: &AtomicBool, asked: &AtomicU64) -> Result<()> {
    let (mut recv, mut send) = (Box::<RecvBatch>::default(), Box::<SendBatch>::default());
    let mut answers: Vec<(SocketAddr, Vec<u8>)> = Vec::new();
    while !stop.load(Relaxed) {
        wait(socket)?;
        receive(&mut recv, socket)?;
        answers.clear();
        answers.extend(
            recv.datagrams()
                .flatten()
                .filter_map(|question| Some((question.peer, answer(question.payload)?))),
        );
        asked.fetch_add(answers.len() as u64, Relaxed);
        let answers = answers.iter().map(|(client, answer)| Outgoing {
            to: Some(*client),
            from: None,
            prefix: Prefix::default(),
            payload: answer,
            overhead: 0,
        });
        send.send(socket, answers);
    }
    Ok(())
}

/// An address that follows from the number in the name.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    let mut end = HEADER;
    while let length @ 1.. = usize::from(*question.get(end)?) {
        end += 1 + length;
    }
    let asked = question.get(..end + 5)?;
    let number = (number(&question[HEADER + 1..end]) % ADDRESSES) as u16;
    let mut answer = Vec::with_capacity(asked.len() + 16);
    answer.extend(&asked[..2]);
    // An answer, recursion wanted and there; one question, one record.
    answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
    answer.extend(&asked[HEADER..]);
    answer.extend([0xc0, HEADER as u8, 0, 1, 0, 1]);
    answer.extend(TTL.to_be_bytes());
    answer.extend([0, 4, 198, 19]);
    answer.extend(number.to_be_bytes());
    Some(answer)
}
