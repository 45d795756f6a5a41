//! What a device sees of new traffic.

use std::{
    fmt::{self, Display, Formatter},
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};

use super::{SILENCE, SSH, Scene, TCP, UDP};
use crate::{
    Family, Namespace,
    probe::at,
    traffic::{echo_line, open_udp},
    wait::{SOON, patient},
};

/// What becomes of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It is answered, and the server saw another address or port than the client's own.
    Proxied,
    /// It is answered, and the server saw the client.
    Direct,
    /// The connection is made, and nobody answers on it.
    Held,
    /// It is reset or refused.
    Refused,
    /// Nothing comes back.
    Nothing,
}

impl Seen {
    /// For the table.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Proxied => "proxied",
            Self::Direct => "direct",
            Self::Held => "waits",
            Self::Refused => "reset",
            Self::Nothing => "no answer",
        }
    }

    /// How long to wait for it.
    fn limit(self) -> Duration {
        patient(match self {
            Self::Proxied | Self::Direct | Self::Refused => SOON,
            // Whether it came out all the same is asked of the capture.
            Self::Held | Self::Nothing => SILENCE,
        })
    }
}

/// What all attempts of a kind see, by either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sight {
    /// TCP of the device.
    pub tcp: Seen,
    /// Its UDP: whole datagrams and fragments.
    pub udp: Seen,
    /// TCP of the gateway itself. None: it is not asked for.
    pub own: Option<Seen>,
}

impl Sight {
    /// Everything of the device fares alike; of the gateway nothing is asked.
    #[must_use]
    pub const fn device(seen: Seen) -> Self {
        Self {
            tcp: seen,
            udp: seen,
            own: None,
        }
    }

    /// The same of device and gateway.
    #[must_use]
    pub const fn all(seen: Seen) -> Self {
        Self::device(seen).and_own(seen)
    }

    /// Whose proxy is stopped: its sockets are there, and nobody reads them.
    #[must_use]
    pub const fn held() -> Self {
        Self {
            tcp: Seen::Held,
            udp: Seen::Nothing,
            own: Some(Seen::Held),
        }
    }

    /// With this for the gateway.
    #[must_use]
    pub const fn and_own(mut self, own: Seen) -> Self {
        self.own = Some(own);
        self
    }

    /// Does any of it go past the proxy?
    #[must_use]
    pub fn device_goes_direct(&self) -> bool {
        self.tcp == Seen::Direct || self.udp == Seen::Direct
    }

    /// Does anything new leave with the gateway's address?
    #[must_use]
    pub fn gateway_sends(&self) -> bool {
        let own = self.own;
        self.tcp == Seen::Proxied
            || self.udp == Seen::Proxied
            || matches!(own, Some(Seen::Proxied | Seen::Direct))
    }
}

impl Display for Sight {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let (tcp, udp) = (self.tcp.word(), self.udp.word());
        if tcp == udp {
            f.write_str(tcp)?;
        } else {
            write!(f, "TCP {tcp}, UDP {udp}")?;
        }
        match self.own {
            Some(own) if own != self.tcp => write!(f, " (gateway: {})", own.word()),
            _ => Ok(()),
        }
    }
}

/// The connections that wait, after all was seen as expected.
#[derive(Debug)]
pub struct Look {
    held: Vec<TcpStream>,
}

impl Look {
    /// Those that waited are answered now.
    ///
    /// # Errors
    /// When one is not.
    pub fn answered(self) -> Result<()> {
        for mut stream in self.held {
            stream.set_read_timeout(Some(patient(2 * SOON)))?;
            let mut back = [0; HELLO.len()];
            stream
                .read_exact(&mut back)
                .context("a connection that waited")?;
            ensure!(&back == HELLO, "{back:?}");
        }
        Ok(())
    }
}

const HELLO: &[u8; 5] = b"hello";
/// A datagram that goes in one packet, and one that goes in several.
const SIZES: [usize; 2] = [100, 3_000];

impl Scene {
    /// Tries all that a device may do, and wants it to fare as expected. The gateway's own addresses answer whatever
    /// happens.
    ///
    /// # Errors
    /// What fared otherwise.
    pub fn look(&self, expected: Sight) -> Result<Look> {
        thread::scope(|scope| {
            let ssh = scope.spawn(|| self.gateway_answers());
            let look = self.look_out(expected);
            let ssh = ssh.join().unwrap_or_else(panicked);
            let look = look?;
            ssh.context("the gateway's own addresses")?;
            Ok(look)
        })
    }

    /// The same, and the gateway's own addresses are not asked for.
    ///
    /// # Errors
    /// As [`Scene::look`].
    pub fn look_out(&self, expected: Sight) -> Result<Look> {
        let (device, gateway) = (&self.lab.device, &self.lab.gateway);
        let mut held = Vec::new();
        thread::scope(|scope| -> Result<()> {
            let tcp = Family::BOTH
                .map(|family| scope.spawn(move || self.tcp(device, family, expected.tcp)));
            let udp = Family::BOTH
                .map(|family| scope.spawn(move || self.udp(device, family, expected.udp)));
            let own = expected
                .own
                .map(|own| scope.spawn(move || self.tcp(gateway, Family::V4, own)));
            let join = |what: &str, wanted: Seen, seen: Seen| -> Result<()> {
                ensure!(seen == wanted, "{what}: {seen:?}, not {wanted:?}");
                Ok(())
            };
            // All are joined before any is judged.
            let tcp = tcp.map(|thread| thread.join().unwrap_or_else(panicked));
            let udp = udp.map(|thread| thread.join().unwrap_or_else(panicked));
            let own = own.map(|thread| thread.join().unwrap_or_else(panicked));
            for (family, seen) in Family::BOTH.into_iter().zip(tcp) {
                let (seen, stream) = seen?;
                join(
                    &format!("TCP of the device by {family:?}"),
                    expected.tcp,
                    seen,
                )?;
                held.extend(stream);
            }
            for (family, seen) in Family::BOTH.into_iter().zip(udp) {
                join(
                    &format!("UDP of the device by {family:?}"),
                    expected.udp,
                    seen?,
                )?;
            }
            if let Some((own, wanted)) = own.zip(expected.own) {
                let (seen, stream) = own?;
                join("TCP of the gateway", wanted, seen)?;
                held.extend(stream);
            }
            Ok(())
        })?;
        Ok(Look { held })
    }

    /// As SSH would be: to every address of the gateway, answered by the gateway itself.
    fn gateway_answers(&self) -> Result<()> {
        for family in Family::BOTH {
            for address in [family.gateway_lan(), family.gateway_wan()] {
                echo_line(&self.lab.device, at(address, SSH))?;
            }
        }
        Ok(())
    }

    fn tcp(
        &self,
        from: &Namespace,
        family: Family,
        expected: Seen,
    ) -> Result<(Seen, Option<TcpStream>)> {
        let target = at(family.far(1), TCP);
        let limit = expected.limit();
        // That it is made must be waited for where it is expected to wait.
        let making = match expected {
            Seen::Nothing => limit,
            _ => patient(SOON),
        };
        let attempt = from.enter(|| TcpStream::connect_timeout(&target, making))?;
        let mut stream = match attempt {
            Ok(stream) => stream,
            Err(error) => return Ok((unmade(error.kind())?, None)),
        };
        stream.set_read_timeout(Some(limit))?;
        let mut back = [0; HELLO.len()];
        let answer = stream
            .write_all(HELLO)
            .and_then(|()| stream.read_exact(&mut back));
        match answer {
            Ok(()) => Ok((answered(&self.tcp.clients(), stream.local_addr()?), None)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok((Seen::Held, Some(stream))),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok((Seen::Refused, None)),
            Err(error) => Ok((unmade(error.kind())?, None)),
        }
    }

    fn udp(&self, from: &Namespace, family: Family, expected: Seen) -> Result<Seen> {
        let target = at(family.far(1), UDP);
        let socket = open_udp(from, family)?;
        let local = socket.local_addr()?.port();
        socket.set_read_timeout(Some(patient(SILENCE)))?;
        let deadline = Instant::now() + expected.limit();
        let mut missing = SIZES.to_vec();
        let mut buffer = vec![0; 4_000];
        loop {
            for size in &missing {
                // What an earlier one came to is told by the next call.
                let sent = socket.send_to(&vec![7; *size], target);
                if let Err(error) = sent
                    && unmade(error.kind())? == Seen::Refused
                {
                    return Ok(Seen::Refused);
                }
            }
            while !missing.is_empty() {
                match socket.recv_from(&mut buffer) {
                    Ok((length, from)) if from == target => missing.retain(|size| *size != length),
                    Ok((_, from)) => return Err(anyhow!("an answer of {from}, not {target}")),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return unmade(error.kind()),
                }
            }
            if missing.is_empty() {
                let clients: Vec<_> = self.udp.clients().into_keys().collect();
                return Ok(answered(&clients, at(family.device(), local)));
            }
            if Instant::now() > deadline {
                // A part of it is as good as nothing.
                return Ok(Seen::Nothing);
            }
        }
    }
}

/// Whom the servers saw.
fn answered(clients: &[SocketAddr], own: SocketAddr) -> Seen {
    if clients.contains(&own) {
        Seen::Direct
    } else {
        Seen::Proxied
    }
}

fn unmade(error: ErrorKind) -> Result<Seen> {
    match error {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Ok(Seen::Nothing),
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::BrokenPipe
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable => Ok(Seen::Refused),
        other => Err(anyhow!("an attempt ended with {other}")),
    }
}

fn panicked<T>(panic: Box<dyn std::any::Any + Send>) -> T {
    std::panic::resume_unwind(panic)
}
