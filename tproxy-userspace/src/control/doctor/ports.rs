//! Who listens on the ports that the configuration needs.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;

use nix::unistd::User;

use super::{Facts, Finding, Subject};
use crate::config::IdOrName;

/// A port that the configuration needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The key of the configuration.
    pub key: &'static str,
    /// Where.
    pub address: SocketAddr,
    /// UDP, else TCP.
    pub udp: bool,
}

/// A socket that listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Where.
    pub address: SocketAddr,
    /// UDP, else TCP.
    pub udp: bool,
    /// The process, if it can be seen.
    pub process: Option<Process>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// Whose it is, by name where there is one.
    pub user: String,
    /// Does the configuration exempt that user?
    pub exempt: bool,
}

/// What is known of ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Those that the configuration needs.
    pub wanted: Vec<Wanted>,
    /// What listens on one of these, or is a DNS server.
    pub listening: Vec<Listening>,
    /// What could not be read, and why.
    pub unseen: Option<String>,
    /// The DNS servers that the configuration asks, if the gateway's own traffic is proxied.
    pub dns_servers: Vec<SocketAddr>,
    /// The process of the proxy that runs here.
    pub proxy: Option<u32>,
}

/// Looks for sockets on the ports that are wanted, and for the DNS servers that are asked.
pub(super) fn gather(subject: &Subject, proxy: Option<u32>) -> Ports {
    let mut found = Ports {
        wanted: subject.ports.clone(),
        dns_servers: subject.dns_servers.clone(),
        proxy,
        ..Ports::default()
    };
    if found.wanted.is_empty() && found.dns_servers.is_empty() {
        return found;
    }
    let mut sockets = Vec::new();
    for (file, udp) in [
        ("tcp", false),
        ("tcp6", false),
        ("udp", true),
        ("udp6", true),
    ] {
        match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(text) => sockets.extend(text.lines().skip(1).filter_map(|line| socket(line, udp))),
            // A kernel without IPv6.
            Err(_) if file.ends_with('6') => {}
            Err(error) => found.unseen = Some(format!("/proc/net/{file}: {error}")),
        }
    }
    let concerns = |address: &SocketAddr, udp: bool| {
        found
            .wanted
            .iter()
            .any(|wanted| wanted.udp == udp && meet(wanted.address, *address))
            || found
                .dns_servers
                .iter()
                .any(|server| meet(*server, *address))
    };
    sockets.retain(|(listening, _)| concerns(&listening.address, listening.udp));
    let inodes: Vec<u64> = sockets.iter().map(|(_, inode)| *inode).collect();
    let owners = owners(&inodes, &subject.exempt_users);
    found.listening = sockets
        .into_iter()
        .map(|(listening, inode)| Listening {
            process: owners.get(&inode).cloned(),
            ..listening
        })
        .collect();
    found
}

/// Do two sockets with these addresses stand in each other's way?
fn meet(one: SocketAddr, other: SocketAddr) -> bool {
    let any = |address: IpAddr| address.is_unspecified();
    // A socket on [::] takes IPv4 too, unless it has been told not to, which cannot be seen.
    let both = |address: IpAddr| address == IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    one.port() == other.port()
        && (one.ip() == other.ip()
            || both(one.ip())
            || both(other.ip())
            || one.is_ipv4() == other.is_ipv4() && (any(one.ip()) || any(other.ip())))
}

/// A line of `/proc/net/tcp` and its likes (`proc_net_tcp.rst` of the kernel's documentation): a socket that
/// listens, with its inode.
fn socket(line: &str, udp: bool) -> Option<(Listening, u64)> {
    /// `TCP_LISTEN`; a UDP socket without a peer is in the state of a closed one.
    const LISTEN: &str = "0A";
    const UNCONNECTED: &str = "07";
    let mut words = line.split_ascii_whitespace();
    let local = words.nth(1)?;
    let state = words.nth(1)?;
    let inode = words.nth(5)?.parse().ok()?;
    if state != if udp { UNCONNECTED } else { LISTEN } {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    // Words of 32 bits in the order of the machine, though the bytes are those of the network.
    let mut bytes = Vec::new();
    for at in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(at..at + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        16 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
        _ => return None,
    };
    let address = SocketAddr::new(ip, port);
    Some((
        Listening {
            address,
            udp,
            process: None,
        },
        inode,
    ))
}

/// The processes that hold these sockets, as far as this process may see that.
fn owners(inodes: &[u64], exempt: &[IdOrName]) -> BTreeMap<u64, Process> {
    let mut found = BTreeMap::new();
    if inodes.is_empty() {
        return found;
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = process
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok());
        let Some(pid) = pid else { continue };
        let files = fs::read_dir(process.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten();
        for target in files.filter_map(|file| fs::read_link(file.path()).ok()) {
            let inode = target.as_os_str().as_bytes().strip_prefix(b"socket:[");
            let inode = inode.and_then(|inode| {
                std::str::from_utf8(inode.strip_suffix(b"]")?)
                    .ok()?
                    .parse()
                    .ok()
            });
            let Some(inode) = inode.filter(|inode| inodes.contains(inode)) else {
                continue;
            };
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let uid = process
                .metadata()
                .map(|metadata| metadata.uid())
                .unwrap_or_default();
            let user = User::from_uid(uid.into()).ok().flatten();
            let user = user.map_or_else(|| uid.to_string(), |user| user.name);
            let exempt = exempt.iter().any(|one| match one {
                IdOrName::Id(id) => *id == uid,
                IdOrName::Name(name) => *name == user,
            });
            found.entry(inode).or_insert_with(|| Process {
                pid,
                name: name.trim().to_owned(),
                user,
                exempt,
            });
        }
    }
    found
}

impl Listening {
    fn who(&self) -> String {
        match &self.process {
            Some(Process { pid, name, .. }) => format!("{name} (process {pid})"),
            None => "a process that cannot be seen from here".to_owned(),
        }
    }

    fn way(&self) -> &'static str {
        if self.udp { "UDP" } else { "TCP" }
    }
}

/// Is what the configuration needs free?
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "ports";
    let ports = &facts.ports;
    let mut findings = Vec::new();
    for listening in &ports.listening {
        let pid = listening.process.as_ref().map(|process| process.pid);
        if pid.is_some() && pid == ports.proxy {
            continue;
        }
        let (who, way, at) = (listening.who(), listening.way(), listening.address);
        let wanted = ports
            .wanted
            .iter()
            .find(|wanted| wanted.udp == listening.udp && meet(wanted.address, listening.address));
        if let Some(Wanted { key, address, .. }) = wanted {
            let stop = pid.map_or_else(
                || "find out who it is: ss -lntup".to_owned(),
                |pid| format!("stop it: `systemctl status {pid}` names its service"),
            );
            findings.push(
                Finding::problem(
                    CHECK,
                    format!("{who} listens on {way} {at}, which `{key}` needs as {address}"),
                )
                .because("tproxy-bpf does not start while somebody else has the port")
                .remedy(format!("another port in `{key}`, or {stop}")),
            );
        } else if listening.udp
            && ports.dns_servers.iter().any(|server| meet(*server, at))
            && !listening
                .process
                .as_ref()
                .is_some_and(|process| process.exempt)
        {
            let name = listening
                .process
                .as_ref()
                .map_or("USER", |process| &process.user);
            findings.push(
                Finding::hint(CHECK, format!("{who}, on {way} {at}, is a DNS server of `[dns]`, and the configuration does not exempt it"))
                    .because("what it asks in turn is the gateway's own traffic, which is proxied: its questions come back")
                    .remedy(format!("`uids = [\"{name}\"]` in `[exempt]`; until then: tproxy-bpf exempt add --uid {name}")),
            );
        }
    }
    if let Some(reason) = &ports.unseen {
        findings.push(
            Finding::hint(CHECK, format!("who listens could not be read: {reason}"))
                .because("tproxy-bpf does not start while somebody else has a port that it needs")
                .remedy("look for yourself: ss -lntup"),
        );
    }
    if findings.is_empty() {
        let found = match (&ports.wanted[..], ports.proxy) {
            ([], _) => "the configuration needs none; the system chooses".to_owned(),
            (_, Some(pid)) => format!(
                "what the configuration needs is free, or held by the running proxy (process {pid})"
            ),
            (wanted, None) => {
                let addresses: Vec<_> = wanted
                    .iter()
                    .map(|wanted| wanted.address.to_string())
                    .collect();
                format!("free: {}", addresses.join(", "))
            }
        };
        findings.push(Finding::ok(CHECK, found));
    }
    findings
}
