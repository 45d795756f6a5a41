//! UDP: echoes of given sizes, and many peers of one socket.

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use crate::{Family, Namespace, wait::patient};

/// An unconnected UDP socket in `ns` with large buffers.
///
/// # Errors
/// When it cannot be made.
pub fn open_udp(ns: &Namespace, family: Family) -> Result<UdpSocket> {
    let address: IpAddr = match family {
        Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = ns
        .enter(|| UdpSocket::bind((address, 0)))?
        .with_context(|| format!("opening a UDP socket in {}", ns.name()))?;
    setsockopt(&socket, sockopt::RcvBufForce, &(4 << 20))?;
    setsockopt(&socket, sockopt::SndBufForce, &(4 << 20))?;
    Ok(socket)
}

/// Sends a datagram of each size to an echo and wants it back whole, from where it was sent to. A lost datagram
/// is sent again, five times at most.
///
/// # Errors
/// Names the size that did not come back, or came back changed or from elsewhere.
pub fn echo_sizes(ns: &Namespace, target: SocketAddr, sizes: &[usize]) -> Result<()> {
    let socket = open_udp(ns, Family::of(target.ip()))?;
    let mut buffer = vec![0; 65_536];
    // Sizes that were sent more than once: a second answer may still come.
    let mut repeated: Vec<usize> = Vec::new();
    for &size in sizes {
        let sent = pattern(size);
        let mut answer = None;
        let mut times = 0;
        while answer.is_none() && times < 5 {
            times += 1;
            socket
                .send_to(&sent, target)
                .with_context(|| format!("sending {size} bytes to {target}"))?;
            let deadline = Instant::now() + patient(Duration::from_secs(1));
            while let Some((length, from)) = receive(&socket, &mut buffer, deadline)
                .with_context(|| format!("waiting for {size} bytes from {target}"))?
            {
                let late = length != size
                    && from == target
                    && repeated.contains(&length)
                    && buffer[..length] == pattern(length);
                if !late {
                    answer = Some((length, from));
                    break;
                }
            }
        }
        let (length, from) =
            answer.with_context(|| format!("{size} bytes to {target} never came back"))?;
        ensure!(
            from == target,
            "{size} bytes were sent to {target} and came back from {from}"
        );
        ensure!(
            buffer[..length] == sent,
            "{size} bytes came back from {target} as {length}, or changed"
        );
        if times > 1 {
            repeated.push(size);
        }
    }
    Ok(())
}

/// Bytes that differ from size to size.
fn pattern(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index * 7 + size) as u8).collect()
}

/// The next datagram, or `None` when none has come by `deadline`.
fn receive(
    socket: &UdpSocket,
    buffer: &mut [u8],
    deadline: Instant,
) -> io::Result<Option<(usize, SocketAddr)>> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.recv_from(buffer) {
            Ok(got) => return Ok(Some(got)),
            // signal(7): a machine that was suspended interrupts a receive that has a timeout.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// How one socket fared with many peers.
#[derive(Clone, Debug)]
pub struct Peers {
    /// How many were asked.
    pub asked: usize,
    /// How many answered, from their own address and port.
    pub answered: usize,
    /// Answers that came from elsewhere: whom we asked, who answered.
    pub wrong: Vec<(SocketAddr, SocketAddr)>,
    /// Questions that had to be asked again.
    pub resent: usize,
    /// From the first question to the last answer.
    pub elapsed: Duration,
}

/// Asks every port of every address from one socket, `window` of them at a time.
///
/// # Errors
/// When the socket fails. Missing and wrong answers are in the result.
pub fn peers(
    ns: &Namespace,
    addresses: &[IpAddr],
    ports: RangeInclusive<u16>,
    window: usize,
) -> Result<Peers> {
    let first = addresses.first().context("no addresses to ask")?;
    let socket = open_udp(ns, Family::of(*first))?;
    let targets: Vec<SocketAddr> = ports
        .flat_map(|port| addresses.iter().map(move |ip| SocketAddr::new(*ip, port)))
        .collect();
    let start = Instant::now();
    let mut report = Peers {
        asked: targets.len(),
        answered: 0,
        wrong: Vec::new(),
        resent: 0,
        elapsed: Duration::ZERO,
    };
    let mut answered = vec![false; targets.len()];
    // Index, when last asked, how often.
    let mut open: VecDeque<(usize, Instant, u32)> = VecDeque::new();
    let mut next = 0;
    let ask = |index: usize| -> Result<()> {
        let question = (index as u64).to_be_bytes();
        socket
            .send_to(&question, targets[index])
            .with_context(|| format!("asking {}", targets[index]))?;
        Ok(())
    };
    loop {
        while next < targets.len() && open.len() < window {
            ask(next)?;
            open.push_back((next, Instant::now(), 1));
            next += 1;
        }
        open.retain(|(index, _, times)| !answered[*index] && *times <= 5);
        if open.is_empty() && next == targets.len() {
            break;
        }
        if open.len() < window && next < targets.len() {
            continue;
        }
        for (index, asked, times) in &mut open {
            if asked.elapsed() > patient(Duration::from_secs(1)) {
                *times += 1;
                *asked = Instant::now();
                report.resent += 1;
                ask(*index)?;
            }
        }
        let mut answer = [0; 16];
        let soon = Instant::now() + Duration::from_millis(50);
        match receive(&socket, &mut answer, soon).context("waiting for answers")? {
            Some((8, from)) => {
                let mut number = [0; 8];
                number.copy_from_slice(&answer[..8]);
                let index = usize::try_from(u64::from_be_bytes(number))?;
                let target = *targets
                    .get(index)
                    .with_context(|| format!("{from} answered to question {index}"))?;
                if from != target {
                    report.wrong.push((target, from));
                } else if !answered[index] {
                    answered[index] = true;
                    report.answered += 1;
                    report.elapsed = start.elapsed();
                }
            }
            Some((length, from)) => {
                ensure!(length == 8, "{from} answered with {length} bytes, not 8");
            }
            None => {}
        }
    }
    Ok(report)
}
