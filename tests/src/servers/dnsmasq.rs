//! dnsmasq: fixed names, and who asked for them.

use std::{
    fmt::Write,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use crate::{
    Family, Namespace, Process,
    servers::{Log, await_client},
    wait::{SOON, Transport, listening, until},
};

/// dnsmasq on port 53 of every address of a namespace, UDP and TCP, both families.
///
/// `host.lab` has the first far address of each family; `big.lab` has a TXT answer of over 3,000 bytes,
/// which is truncated over UDP.
#[derive(Debug)]
pub struct Dnsmasq {
    process: Process,
    hosts: Option<PathBuf>,
}

impl Dnsmasq {
    /// Starts it.
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(ns: &Namespace) -> Result<Self> {
        Self::spawn(ns, None, Log::Questions, &[])
    }

    /// Starts it with more arguments, as `--address=/near.test/192.0.2.1`.
    ///
    /// # Errors
    /// As [`Dnsmasq::start`].
    pub fn start_with(ns: &Namespace, log: Log, arguments: &[String]) -> Result<Self> {
        Self::spawn(ns, None, log, arguments)
    }

    /// Starts it with names that [`rename`](Self::rename) can change; its file is in `dir`.
    ///
    /// # Errors
    /// As [`Dnsmasq::start`].
    pub fn start_renaming(ns: &Namespace, dir: &Path) -> Result<Self> {
        let hosts = dir.join("dnsmasq-hosts");
        fs::write(&hosts, "").with_context(|| format!("writing {}", hosts.display()))?;
        Self::spawn(ns, Some(hosts), Log::Questions, &[])
    }

    /// Starts one that asks `upstream` for all names, keeps so many answers and logs nothing.
    ///
    /// # Errors
    /// As [`Dnsmasq::start`].
    pub fn forwarding(ns: &Namespace, upstream: IpAddr, cache: u32) -> Result<Self> {
        let arguments = [
            format!("--server={upstream}"),
            format!("--cache-size={cache}"),
            // It refuses questions when more are under way; 150 if not told.
            "--dns-forward-max=1000".to_owned(),
        ];
        Self::spawn(ns, None, Log::Nothing, &arguments)
    }

    fn spawn(
        ns: &Namespace,
        hosts: Option<PathBuf>,
        log: Log,
        arguments: &[String],
    ) -> Result<Self> {
        let additional = hosts.as_deref().unwrap_or(Path::new("/dev/null")).display();
        let host = format!(
            "--host-record=host.lab,{},{}",
            Family::V4.far(1),
            Family::V6.far(1)
        );
        let big = vec!["x".repeat(250); 13].join(",");
        let mut command = ns.argv(&[
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--pid-file=",
            "--user=root",
            "--group=root",
            "--no-resolv",
            "--no-hosts",
            "--no-poll",
            "--log-facility=-",
            &host,
            &format!("--addn-hosts={additional}"),
            &format!("--txt-record=big.lab,{big}"),
        ]);
        if log == Log::Questions {
            command.arg("--log-queries");
        }
        let caches = |argument: &String| argument.starts_with("--cache-size=");
        if !arguments.iter().any(caches) {
            command.arg("--cache-size=0");
        }
        command.args(arguments);
        let process = Process::spawn(command)?;
        listening(ns, Transport::Tcp, 53)
            .and_then(|()| listening(ns, Transport::Udp, 53))
            .with_context(|| format!("dnsmasq said: {}", process.lines().join("\n")))?;
        Ok(Self { process, hosts })
    }

    /// From now on `name` stands for these addresses, with a TTL of 0, and no other name is renamed.
    ///
    /// # Errors
    /// When it does not read them in time, or was not started with names to change.
    pub fn rename(&self, name: &str, addresses: &[IpAddr]) -> Result<()> {
        let path = self.hosts.as_deref().context("it has fixed names")?;
        let mut text = String::new();
        for address in addresses {
            writeln!(text, "{address} {name}")?;
        }
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        let read = format!("read {}", path.display());
        let reads = || {
            let lines = self.process.lines();
            lines.iter().filter(|line| line.contains(&read)).count()
        };
        let before = reads();
        self.process.signal(Signal::SIGHUP)?;
        until("dnsmasq to read its names", SOON, || {
            Ok((reads() > before).then_some(()))
        })
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// All clients that asked for `name`, in order.
    #[must_use]
    pub fn clients_of(&self, name: &str) -> Vec<IpAddr> {
        let pattern = format!(" {name} from ");
        self.process
            .lines()
            .iter()
            .filter(|line| line.contains("query["))
            .filter_map(|line| line.split_once(&pattern)?.1.trim().parse().ok())
            .collect()
    }

    /// Waits until `count` questions for `name` are logged; gives the last one's client.
    ///
    /// # Errors
    /// When they do not come.
    pub fn client_of(&self, name: &str, count: usize) -> Result<IpAddr> {
        await_client(name, count, || self.clients_of(name))
    }
}
