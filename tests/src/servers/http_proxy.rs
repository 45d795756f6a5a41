//! A real HTTP proxy, with and without TLS in front of it.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Certificate, USER};
use crate::{
    Family, Namespace, Process,
    addr::host,
    wait::{SOON, Transport, listening, until},
};

/// tinyproxy at the fourth upstream address of each family, port 8888: CONNECT to any port, targets of both families.
/// Its connections come from its own addresses.
#[derive(Debug)]
pub struct Tinyproxy {
    process: Process,
    password: Option<&'static str>,
}

impl Tinyproxy {
    /// Where it listens.
    pub const PORT: u16 = 8888;
    /// What it wants of [`USER`], if it wants anything.
    pub const PASSWORD: &str = "no-blanks";

    /// Starts it. With `password` it lets [`USER`] alone through.
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(ns: &Namespace, dir: &Path, password: bool) -> Result<Self> {
        let (v4, v6) = (Family::V4.upstream(4), Family::V6.upstream(4));
        let password = password.then_some(Self::PASSWORD);
        let login = password.map_or_else(String::new, |word| format!("BasicAuth {USER} {word}\n"));
        let path = dir.join("tinyproxy.conf");
        let text = format!(
            "Port {port}\nListen {v4}\nListen {v6}\nBind {v4}\nBind {v6}\nTimeout 600\nMaxClients 500\n\
             LogLevel Connect\n{login}",
            port = Self::PORT
        );
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        let mut command = ns.command("tinyproxy");
        command.arg("-d").arg("-c").arg(&path);
        let process = Process::spawn(command)?;
        for address in [v4, v6].map(|ip| SocketAddr::new(ip, Self::PORT)) {
            until(&format!("tinyproxy at {address}"), SOON, || {
                Ok(ns.enter(|| TcpStream::connect(address))?.ok())
            })
            .with_context(|| format!("tinyproxy said: {}", process.lines().join("\n")))?;
        }
        Ok(Self { process, password })
    }

    /// Its URL as an outbound.
    #[must_use]
    pub fn url(&self, family: Family) -> String {
        self.url_at("http", SocketAddr::new(family.upstream(4), Self::PORT))
    }

    fn url_at(&self, scheme: &str, address: SocketAddr) -> String {
        let login = self
            .password
            .map_or_else(String::new, |word| format!("{USER}:{word}@"));
        format!(
            "{scheme}://{login}{}:{}",
            host(address.ip()),
            address.port()
        )
    }

    /// Its process. Its log has a line for each request.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }
}

/// stunnel at the third upstream address of each family, port 8443: TLS in front of a [`Tinyproxy`].
#[derive(Debug)]
pub struct Stunnel {
    _process: Process,
    certificate: Certificate,
}

impl Stunnel {
    /// Where it listens.
    pub const PORT: u16 = 8443;

    /// Starts it, with a certificate for its addresses.
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(ns: &Namespace, dir: &Path) -> Result<Self> {
        let dir = dir.join("stunnel");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let addresses = Family::BOTH.map(|family| family.upstream(3).to_string());
        let certificate = Certificate::make(&dir, &[&addresses[0], &addresses[1]])?;
        let services = Family::BOTH.map(|family| {
            format!(
                "[{family:?}]\naccept = {}:{}\nconnect = {}:{}\n",
                family.upstream(3),
                Self::PORT,
                family.upstream(4),
                Tinyproxy::PORT
            )
        });
        let path = dir.join("stunnel.conf");
        let text = format!(
            "foreground = yes\npid =\ncert = {}\nkey = {}\n{}",
            certificate.chain.display(),
            certificate.key.display(),
            services.concat()
        );
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        let mut command = ns.command("stunnel4");
        command.arg(&path);
        let process = Process::spawn(command)?;
        listening(ns, Transport::Tcp, Self::PORT)
            .with_context(|| format!("stunnel said: {}", process.lines().join("\n")))?;
        Ok(Self {
            _process: process,
            certificate,
        })
    }

    /// The URL of the proxy behind it as an outbound.
    #[must_use]
    pub fn url(&self, proxy: &Tinyproxy, family: Family) -> String {
        proxy.url_at("https", SocketAddr::new(family.upstream(3), Self::PORT))
    }

    /// Whom to trust.
    #[must_use]
    pub fn authority(&self) -> &PathBuf {
        &self.certificate.authority
    }
}
