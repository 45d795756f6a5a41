//! Single ends of connections, for tests that say exactly what happens at each end, and what the
//! program under test says of them.

use std::{
    collections::BTreeMap,
    fs::{self, Permissions},
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd, AsRawFd},
        unix::fs::PermissionsExt,
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

use crate::{
    Lab, Namespace, Tproxy,
    wait::{SOON, patient, until},
};

/// How a peer ended its direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// FIN: no more is to come, and nothing is missing.
    Fin,
    /// RST.
    Reset,
}

/// Reads to the end of the peer's direction: the bytes, and how it ended.
///
/// # Errors
/// When the end does not come within the stream's read timeout.
pub fn read_to_end(mut stream: &TcpStream) -> Result<(Vec<u8>, End)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 65_536];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok((bytes, End::Fin)),
            Ok(read) => bytes.extend_from_slice(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {
                return Ok((bytes, End::Reset));
            }
            Err(error) => {
                let got = bytes.len();
                return Err(error).with_context(|| format!("waiting for the end, {got} bytes in"));
            }
        }
    }
}

/// Connects and reads to the end. A connection that is reset during its handshake counts like one
/// that is reset after it.
///
/// # Errors
/// When it is neither answered within 5 s nor ended within 10 s.
pub fn fate(ns: &Namespace, target: SocketAddr) -> Result<(Vec<u8>, End)> {
    fate_after(ns, target, b"")
}

/// The same of a connection that says something first.
fn fate_after(ns: &Namespace, target: SocketAddr, payload: &[u8]) -> Result<(Vec<u8>, End)> {
    let connecting =
        ns.enter(|| TcpStream::connect_timeout(&target, patient(Duration::from_secs(5))))?;
    let said = connecting.and_then(|mut stream| {
        stream.set_read_timeout(Some(patient(SOON)))?;
        stream.write_all(payload)?;
        Ok(stream)
    });
    match said {
        Ok(stream) => {
            read_to_end(&stream).with_context(|| format!("on the connection to {target}"))
        }
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
            ) =>
        {
            Ok((Vec::new(), End::Reset))
        }
        Err(error) => Err(error).with_context(|| format!("connecting to {target}")),
    }
}

/// Wants RST soon after a device's connection was made.
///
/// # Errors
/// When it ends otherwise, or not within 2 s.
pub fn is_reset_at_once(lab: &Lab, target: SocketAddr) -> Result<()> {
    is_reset_after(lab, target, b"")
}

/// Wants RST soon after a device's connection was made that says this first.
///
/// # Errors
/// As [`is_reset_at_once`].
pub fn is_reset_after(lab: &Lab, target: SocketAddr, payload: &[u8]) -> Result<()> {
    let start = Instant::now();
    let fate = fate_after(&lab.device, target, payload)?;
    ensure!(fate == (Vec::new(), End::Reset), "{target}: {fate:?}");
    let elapsed = start.elapsed();
    ensure!(
        elapsed < patient(Duration::from_secs(2)),
        "{target}: {elapsed:?}"
    );
    Ok(())
}

/// Ends a connection with RST.
///
/// # Errors
/// When the socket refuses the option.
pub fn reset(stream: TcpStream) -> Result<()> {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&stream.as_fd(), sockopt::Linger, &at_once)?;
    drop(stream);
    Ok(())
}

/// A listener whose connections the test itself serves.
#[derive(Debug)]
pub struct Acceptor {
    listener: TcpListener,
    address: SocketAddr,
}

impl Acceptor {
    /// Listens.
    ///
    /// # Errors
    /// When the address or port is not to be had.
    pub fn listen(ns: &Namespace, address: SocketAddr) -> Result<Self> {
        let listener = ns
            .enter(|| TcpListener::bind(address))?
            .with_context(|| format!("listening at {address} in {}", ns.name()))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next connection; reads and writes on it fail after 10 s.
    ///
    /// # Errors
    /// When none comes in 10 s.
    pub fn accept(&self) -> Result<(TcpStream, SocketAddr)> {
        let what = format!("a connection to {}", self.address);
        let (stream, client) = until(&what, SOON, || self.try_accept())?;
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patient(SOON)))?;
        stream.set_write_timeout(Some(patient(SOON)))?;
        stream.set_nodelay(true)?;
        Ok((stream, client))
    }

    /// The next connection if it is there already.
    ///
    /// # Errors
    /// When accepting fails.
    pub fn try_accept(&self) -> Result<Option<(TcpStream, SocketAddr)>> {
        match self.listener.accept() {
            Ok(accepted) => Ok(Some(accepted)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).with_context(|| format!("accepting at {}", self.address)),
        }
    }
}

/// A UDP socket at one address; receiving fails after a second.
///
/// # Errors
/// When the address or port is not to be had.
pub fn udp_at(ns: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    let socket = ns
        .enter(|| UdpSocket::bind(address))?
        .with_context(|| format!("binding UDP {address} in {}", ns.name()))?;
    socket.set_read_timeout(Some(patient(Duration::from_secs(1))))?;
    Ok(socket)
}

/// Sends `payload` until `receiver` has it, three times at most; gives whom it came from.
///
/// # Errors
/// When it does not arrive, or something else does.
pub fn carry(
    sender: &UdpSocket,
    to: SocketAddr,
    receiver: &UdpSocket,
    payload: &[u8],
) -> Result<SocketAddr> {
    let mut buffer = [0; 2048];
    for _ in 0..3 {
        sender
            .send_to(payload, to)
            .with_context(|| format!("sending to {to}"))?;
        match receiver.recv_from(&mut buffer) {
            Ok((length, from)) => {
                ensure!(
                    &buffer[..length] == payload,
                    "{from} sent {:?} instead of {:?}",
                    String::from_utf8_lossy(&buffer[..length]),
                    String::from_utf8_lossy(payload)
                );
                return Ok(from);
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).with_context(|| format!("receiving from {to}")),
        }
    }
    anyhow::bail!(
        "{:?} sent to {to} never arrived at {:?} (file {})",
        String::from_utf8_lossy(payload),
        receiver.local_addr(),
        receiver.as_raw_fd()
    )
}

/// Datagrams that full receive buffers of sockets in `ns` threw away so far, both families.
///
/// # Errors
/// When the namespace cannot be entered or the kernel does not count them.
pub fn overflowed_datagrams(ns: &Namespace) -> Result<u64> {
    let read = |file: &str| {
        let path = format!("/proc/thread-self/net/{file}");
        fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    };
    let (v4, v6) = ns.enter(|| anyhow::Ok((read("snmp")?, read("snmp6")?)))??;
    // snmp has a line of names and one of numbers, snmp6 a line for each.
    let mut udp = v4.lines().filter(|line| line.starts_with("Udp:"));
    let (names, numbers) = (udp.next(), udp.next());
    let v4 = names
        .zip(numbers)
        .and_then(|(names, numbers)| {
            let place = names.split(' ').position(|name| name == "RcvbufErrors")?;
            numbers.split(' ').nth(place)?.parse::<u64>().ok()
        })
        .context("no RcvbufErrors for UDP in /proc/net/snmp")?;
    let v6 = v6
        .lines()
        .find_map(|line| line.strip_prefix("Udp6RcvbufErrors"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .context("no Udp6RcvbufErrors in /proc/net/snmp6")?;
    Ok(v4 + v6)
}

impl Tproxy {
    /// Its open sockets. Unlike all open files they do not count the pipes that the proxy keeps for
    /// the next connection.
    ///
    /// # Errors
    /// When it is gone.
    pub fn open_sockets(&self) -> Result<usize> {
        let path = format!("/proc/{}/fd", self.process().pid());
        Ok(fs::read_dir(&path)
            .with_context(|| format!("reading {path}"))?
            .filter_map(|entry| fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| {
                target
                    .as_os_str()
                    .as_encoded_bytes()
                    .starts_with(b"socket:")
            })
            .count())
    }

    /// What it has open now, to be compared after some work by [`Tproxy::back_to`].
    ///
    /// # Errors
    /// When it is gone.
    pub fn open_now(&self) -> Result<(usize, usize)> {
        Ok((self.open_files()?, self.open_sockets()?))
    }

    /// Waits until it has exactly as many sockets open as `before`, and as many files but for the 64
    /// pipes that it keeps at most.
    ///
    /// # Errors
    /// When it has not after 20 s: spare connections live for 10 s.
    pub fn back_to(&self, before: (usize, usize)) -> Result<()> {
        let most = before.0 + 2 * 64;
        let what = format!("{} sockets and at most {most} files", before.1);
        until(&what, 2 * SOON, || {
            let (files, sockets) = self.open_now()?;
            Ok((files <= most && sockets == before.1).then_some(()))
        })
        .with_context(|| format!("files and sockets now: {:?}", self.open_now()))
    }
}

impl Lab {
    /// Runs the program under test with a configuration. `text` gets the LAN link in front, so it
    /// must begin with tables or with keys of `[lan]`.
    ///
    /// # Errors
    /// As [`Lab::tproxy`].
    pub fn tproxy_configured(&self, text: &str) -> Result<Tproxy> {
        let text = format!("[lan]\ninterfaces = [\"{}\"]\n{text}", self.lan());
        self.tproxy(&["run", "-c", &self.write(&text)?])
    }

    /// Writes a configuration to the lab's own file of it, for root alone as it may hold passwords; gives its path.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, config: &str) -> Result<String> {
        let path = self.dir().join("config.toml");
        let write = || {
            fs::write(&path, config)?;
            fs::set_permissions(&path, Permissions::from_mode(0o600))
        };
        write().with_context(|| format!("writing {}", path.display()))?;
        Ok(path.to_string_lossy().into_owned())
    }

    /// What the running proxy says of its traffic in `status --json`.
    ///
    /// # Errors
    /// When the command fails or the proxy does not answer it.
    pub fn proxy_traffic(&self) -> Result<Value> {
        let status: Value = self.tproxy_run(&["status", "--json"])?.ok()?.json()?;
        let traffic = &status["proxy"]["detail"]["traffic"];
        ensure!(traffic.is_object(), "the proxy says nothing: {status}");
        Ok(traffic.clone())
    }

    /// One number of [`Lab::proxy_traffic`], by JSON pointer (`/failures/proxy_auth`). What is not
    /// there has not happened: 0.
    ///
    /// # Errors
    /// As [`Lab::proxy_traffic`].
    pub fn proxy_count(&self, pointer: &str) -> Result<u64> {
        let traffic = self.proxy_traffic()?;
        Ok(traffic
            .pointer(pointer)
            .and_then(Value::as_u64)
            .unwrap_or_default())
    }

    /// Waits until one number of the proxy has this value.
    ///
    /// # Errors
    /// When it has another one after 10 s.
    pub fn await_proxy_count(&self, pointer: &str, wanted: u64) -> Result<()> {
        let what = format!("{pointer} = {wanted} in the proxy's status");
        until(&what, SOON, || {
            Ok((self.proxy_count(pointer)? == wanted).then_some(()))
        })
        .with_context(|| format!("it says {:?}", self.proxy_traffic()))
    }

    /// All counters that are not 0, by reason.
    ///
    /// # Errors
    /// As [`Lab::counters`].
    pub fn counted(&self) -> Result<BTreeMap<String, u64>> {
        Ok(self
            .counters()?
            .into_iter()
            .filter(|counter| counter.packets > 0)
            .map(|counter| (counter.reason, counter.packets))
            .collect())
    }

    /// Wants that nothing from the LAN went by another way than the proxy, by the counters: no packet
    /// passed or was dropped that policy sends to the proxy.
    ///
    /// # Errors
    /// Names the counters that say otherwise.
    pub fn all_proxied(&self) -> Result<BTreeMap<String, u64>> {
        // Not `tcp_gone`: what comes after a connection's end is still delivered to the gateway alone.
        const ELSEWHERE: [&str; 11] = [
            "down_passed",
            "down_dropped",
            "direct_connection",
            "direct_fragment",
            "bypassed",
            "private_range",
            "foreign_source",
            "malformed_ip",
            "malformed_transport",
            "long_extension_chain",
            "lone_fragment",
        ];
        let counted = self.counted()?;
        let wrong: Vec<_> = counted
            .iter()
            .filter(|(reason, _)| ELSEWHERE.contains(&reason.as_str()))
            .collect();
        ensure!(wrong.is_empty(), "packets went elsewhere: {wrong:?}");
        Ok(counted)
    }
}

/// An address of a family with a port.
#[must_use]
pub const fn at(address: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(address, port)
}
