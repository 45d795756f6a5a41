//! dig and dnsperf.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

use crate::{Namespace, process};

/// Asks `server` over UDP; gives the lines of the short answer.
///
/// # Errors
/// When no answer comes within 3 s, or one that says something failed.
pub fn dig(ns: &Namespace, server: IpAddr, name: &str, kind: &str) -> Result<Vec<String>> {
    short(ns, server, name, kind, &Over::Udp)
}

/// Asks `server` over TCP.
///
/// # Errors
/// As [`dig`].
pub fn dig_tcp(ns: &Namespace, server: IpAddr, name: &str, kind: &str) -> Result<Vec<String>> {
    short(ns, server, name, kind, &Over::Tcp)
}

fn short(
    ns: &Namespace,
    server: IpAddr,
    name: &str,
    kind: &str,
    over: &Over,
) -> Result<Vec<String>> {
    let mut command = command(ns, server, name, kind, over);
    command.arg("+short");
    let output = process::run(command, LIMIT)?
        .ok()
        .with_context(|| format!("asking {server} for {name} {kind} over {over:?}"))?;
    Ok(output.stdout.lines().map(str::to_owned).collect())
}

/// How a DNS server is spoken to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Over {
    /// Datagrams. An answer that is cut off stays so.
    Udp,
    /// TCP.
    Tcp,
    /// TLS, with the authority (PEM) that must have given the server's certificate for its address.
    Tls(PathBuf),
}

/// What a DNS server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// `NOERROR`, `NXDOMAIN`, `SERVFAIL`, `REFUSED`…
    pub status: String,
    /// The flags of the header: `qr`, `rd`, `ra`, `tc`, `aa`, `ad`.
    pub flags: Vec<String>,
    /// The records of the answer section.
    pub records: Vec<Record>,
}

/// A record of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its name, without the last dot.
    pub name: String,
    /// How long it holds, in seconds.
    pub ttl: u32,
    /// `A`, `CNAME`, `TXT`…
    pub kind: String,
    /// What it says, as zone files write it.
    pub data: String,
}

impl Answer {
    /// Was it cut off (TC)?
    #[must_use]
    pub fn is_truncated(&self) -> bool {
        self.flags.iter().any(|flag| flag == "tc")
    }

    /// What the records of this kind say.
    #[must_use]
    pub fn data(&self, kind: &str) -> Vec<&str> {
        self.records
            .iter()
            .filter(|record| record.kind == kind)
            .map(|record| record.data.as_str())
            .collect()
    }

    /// The addresses in it, of either family.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.records
            .iter()
            .filter(|record| matches!(record.kind.as_str(), "A" | "AAAA"))
            .filter_map(|record| record.data.parse().ok())
            .collect()
    }
}

/// Asks `server` once; `None` when no answer comes within 5 s, the connection fails, or the server's certificate is not
/// good.
///
/// # Errors
/// When dig fails otherwise, or prints what cannot be read.
pub fn question(
    ns: &Namespace,
    server: IpAddr,
    name: &str,
    kind: &str,
    over: &Over,
) -> Result<Option<Answer>> {
    /// "No reply from server".
    const NO_REPLY: i32 = 9;
    let mut command = command(ns, server, name, kind, over);
    command.args(["+noall", "+comments", "+answer"]);
    let output = process::run(command, LIMIT)?;
    // Of a server whose certificate is not good it complains and is done.
    if output.code() == Some(NO_REPLY) || output.stdout.contains("verification for") {
        return Ok(None);
    }
    let output = output.ok()?;
    let answer = read(&output.stdout).with_context(|| format!("reading {:?}", output.stdout))?;
    Ok(Some(answer))
}

const LIMIT: Duration = Duration::from_secs(10);

fn command(ns: &Namespace, server: IpAddr, name: &str, kind: &str, over: &Over) -> Command {
    let mut command = ns.command("dig");
    command.args(["+time=5", "+tries=1", "+ignore"]);
    match over {
        Over::Udp => command.arg("+notcp"),
        Over::Tcp => command.arg("+tcp"),
        Over::Tls(authority) => {
            command.arg(format!("+tls-ca={}", authority.display()));
            command.arg("+tls")
        }
    };
    command.args([&format!("@{server}"), name, kind]);
    command
}

fn read(text: &str) -> Option<Answer> {
    let after = |mark: &str| {
        text.lines()
            .find_map(|line| Some(line.split_once(mark)?.1.split([',', ';']).next()?.trim()))
    };
    let record = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (name, ttl) = (words.next()?, words.next()?.parse().ok()?);
        let (_class, kind) = (words.next()?, words.next()?);
        Some(Record {
            name: name.trim_end_matches('.').to_owned(),
            ttl,
            kind: kind.to_owned(),
            data: words.collect::<Vec<_>>().join(" "),
        })
    };
    let lines = text.lines().filter(|line| !line.starts_with(';'));
    Some(Answer {
        status: after("status: ")?.to_owned(),
        flags: after(";; flags: ")?.split(' ').map(str::to_owned).collect(),
        records: lines
            .filter(|line| !line.trim().is_empty())
            .map(record)
            .collect::<Option<_>>()?,
    })
}

/// How dnsperf asks.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// For how long.
    pub seconds: u32,
    /// How many sockets ask.
    pub clients: u32,
    /// Questions a second at most; `None` for as many as are answered.
    pub per_second: Option<u32>,
}

/// What dnsperf found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Answers {
    /// Questions that were asked.
    pub sent: u64,
    /// Those that were answered.
    pub completed: u64,
    /// Those that were not answered in 5 s.
    pub lost: u64,
    /// Answers a second.
    pub per_second: f64,
    /// From question to answer, on average.
    pub latency: Duration,
}

/// Has dnsperf ask `server` over UDP for these names and types (`www.near.test A`) again and again. Its input is in
/// `dir`.
///
/// # Errors
/// When it fails, or prints what cannot be read.
pub fn dnsperf(
    ns: &Namespace,
    server: IpAddr,
    questions: &[&str],
    load: Load,
    dir: &Path,
) -> Result<Answers> {
    ensure!(!questions.is_empty(), "nothing to ask for");
    let input = tempfile::NamedTempFile::new_in(dir)?;
    std::fs::write(input.path(), questions.join("\n") + "\n")?;
    let mut command = ns.command("dnsperf");
    command.args(["-s", &server.to_string(), "-m", "udp"]);
    command.args(["-l", &load.seconds.to_string()]);
    command.args(["-c", &load.clients.to_string()]);
    if let Some(most) = load.per_second {
        command.args(["-Q", &most.to_string()]);
    }
    command.arg("-d").arg(input.path());
    let limit = Duration::from_secs(u64::from(load.seconds)) + Duration::from_secs(30);
    let output = process::run(command, limit)?.ok()?;
    statistics(&output.stdout).with_context(|| format!("reading {:?}", output.stdout))
}

fn statistics(text: &str) -> Option<Answers> {
    let word = |label: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(label))
            .and_then(|rest| rest.split_whitespace().next())
    };
    Some(Answers {
        sent: word("Queries sent:")?.parse().ok()?,
        completed: word("Queries completed:")?.parse().ok()?,
        lost: word("Queries lost:")?.parse().ok()?,
        per_second: word("Queries per second:")?.parse().ok()?,
        latency: Duration::try_from_secs_f64(word("Average Latency (s):")?.parse().ok()?).ok()?,
    })
}
