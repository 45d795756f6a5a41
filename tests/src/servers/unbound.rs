//! unbound: zones of the caller's over UDP, TCP and TLS, and who asked for them.

use std::{
    fmt::Write,
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};

use crate::{
    Namespace, Process,
    servers::{Certificate, Log, await_client},
    wait::{SOON, Transport, listening},
};

/// Names that unbound knows.
#[derive(Clone, Debug)]
pub struct Zone {
    /// The zone: `far.test`.
    pub name: &'static str,
    /// Its records, one a line, as in a zone file (RFC 1035, 5.1): `www A 203.0.113.1`. Without SOA and NS, which
    /// every zone gets.
    pub records: String,
}

/// What unbound shall serve.
#[derive(Clone, Debug)]
pub struct Serve<'a> {
    /// The addresses that it listens at, and no others. Its certificate is for these and for
    /// [`Unbound::NAME`].
    pub addresses: &'a [IpAddr],
    /// What it knows. All else does not exist (NXDOMAIN).
    pub zones: &'a [Zone],
    /// Names to which it never answers.
    pub unanswered: &'a [&'a str],
    /// What it logs.
    pub log: Log,
}

/// unbound on port 53 (UDP and TCP) and port 853 (TLS, RFC 7858) of some addresses. It answers as a resolver does
/// that has looked all up already, with a TTL of 300 s.
#[derive(Debug)]
pub struct Unbound {
    process: Process,
    certificate: Certificate,
}

impl Unbound {
    /// The port of DNS over TLS.
    pub const TLS_PORT: u16 = 853;
    /// Its name, by its certificate.
    pub const NAME: &str = "dns.far.test";

    /// Starts it.
    ///
    /// # Errors
    /// When it does not listen in time, or finds fault with a zone; the message holds its log.
    pub fn start(ns: &Namespace, dir: &Path, serve: &Serve<'_>) -> Result<Self> {
        let dir = dir.join(format!("unbound-{}", ns.inode()));
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let addresses: Vec<String> = serve.addresses.iter().map(ToString::to_string).collect();
        let mut names: Vec<&str> = addresses.iter().map(String::as_str).collect();
        names.push(Self::NAME);
        let certificate = Certificate::make(&dir, &names)?;
        let root = Zone {
            name: "",
            records: String::new(),
        };
        for zone in serve.zones.iter().chain([&root]) {
            let text = format!(
                "$TTL 300\n\
                 @ SOA ns.{name}. hostmaster.{name}. 1 3600 600 86400 60\n\
                 @ NS {ns}.\n{records}\n",
                name = zone.name,
                ns = Self::NAME,
                records = zone.records
            )
            .replace("..", ".");
            let path = zone_file(&dir, zone.name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        let config = dir.join("unbound.conf");
        fs::write(&config, configuration(&dir, serve, &certificate)?)
            .with_context(|| format!("writing {}", config.display()))?;

        let mut command = ns.command(copy(&dir)?.to_str().context("the path is not UTF-8")?);
        command.arg("-d").arg("-c").arg(&config);
        let process = Process::spawn(command)?;
        process.wait_for_line("start of service", SOON)?;
        let said = || format!("unbound said: {}", process.lines().join("\n"));
        for (transport, port) in [
            (Transport::Udp, 53),
            (Transport::Tcp, 53),
            (Transport::Tcp, Self::TLS_PORT),
        ] {
            listening(ns, transport, port).with_context(said)?;
        }
        let faults = process.lines().iter().any(|line| line.contains("error:"));
        ensure!(!faults, said());
        Ok(Self {
            process,
            certificate,
        })
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// What it shows to clients over TLS.
    #[must_use]
    pub const fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// All clients that asked for `name`, in order, whatever the transport.
    #[must_use]
    pub fn clients_of(&self, name: &str) -> Vec<IpAddr> {
        self.process
            .lines()
            .iter()
            .filter_map(|line| {
                // [TIME] unbound[PID:0] info: CLIENT NAME. TYPE CLASS
                let mut words = line.split_once(" info: ")?.1.split_whitespace();
                let client = words.next()?.parse().ok()?;
                let asked = words.next()?.trim_end_matches('.');
                asked.eq_ignore_ascii_case(name).then_some(client)
            })
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

/// A copy of the program. Debian confines the one at its own place (AppArmor) to its own files.
fn copy(dir: &Path) -> Result<PathBuf> {
    let own = dir.join("unbound");
    let program = ["/usr/sbin/unbound", "/usr/bin/unbound"]
        .iter()
        .find(|path| Path::new(path).is_file())
        .context("unbound is not installed; `cargo xtask setup` does that")?;
    fs::copy(program, &own).with_context(|| format!("copying {program}"))?;
    Ok(own)
}

fn zone_file(dir: &Path, zone: &str) -> PathBuf {
    dir.join(format!("{zone}.zone"))
}

fn configuration(dir: &Path, serve: &Serve<'_>, certificate: &Certificate) -> Result<String> {
    let questions = match serve.log {
        Log::Questions => "yes",
        Log::Nothing => "no",
    };
    let mut text = format!(
        r#"
server:
    verbosity: 0
    use-syslog: no
    logfile: ""
    log-queries: {questions}
    username: ""
    chroot: ""
    directory: "{dir}"
    pidfile: ""
    module-config: "iterator"
    access-control: 0.0.0.0/0 allow
    access-control: ::/0 allow
    incoming-num-tcp: 1000
    tls-port: {port}
    tls-service-key: "{key}"
    tls-service-pem: "{chain}"
    # It would say itself that names under .test do not exist (RFC 6761).
    local-zone: "test." nodefault
"#,
        dir = dir.display(),
        port = Unbound::TLS_PORT,
        key = certificate.key.display(),
        chain = certificate.chain.display(),
    );
    for address in serve.addresses {
        for port in [53, Unbound::TLS_PORT] {
            writeln!(text, "    interface: {address}@{port}")?;
        }
    }
    for name in serve.unanswered {
        writeln!(text, "    local-zone: \"{name}.\" deny")?;
    }
    writeln!(text, "remote-control:\n    control-enable: no")?;
    for zone in serve.zones.iter().map(|zone| zone.name).chain([""]) {
        writeln!(
            text,
            "auth-zone:\n    name: \"{zone}.\"\n    zonefile: \"{}\"\n    \
             for-downstream: no\n    for-upstream: yes",
            zone_file(dir, zone).display()
        )?;
    }
    Ok(text)
}
