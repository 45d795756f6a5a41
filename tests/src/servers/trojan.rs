//! A real Trojan server.

use std::{fs, net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{
    Namespace, Process,
    addr::host,
    servers::Certificate,
    wait::{Transport, listening},
};

/// trojan, TCP and UDP. Who has another password is led to port 80 of the same address.
#[derive(Debug)]
pub struct Trojan {
    process: Process,
    address: SocketAddr,
}

impl Trojan {
    /// The password: with a character that URLs must quote.
    pub const PASSWORD: &str = "secret@word";

    /// Starts it with its files in `dir`.
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(
        ns: &Namespace,
        dir: &Path,
        address: SocketAddr,
        certificate: &Certificate,
    ) -> Result<Self> {
        let configuration = json!({
            "run_type": "server",
            "local_addr": address.ip(),
            "local_port": address.port(),
            "remote_addr": address.ip(),
            "remote_port": 80,
            "password": [Self::PASSWORD],
            "log_level": 1,
            "ssl": {
                "cert": certificate.chain,
                "key": certificate.key,
                "key_password": "",
                "cipher": "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256",
                "cipher_tls13": "TLS_AES_128_GCM_SHA256",
                "prefer_server_cipher": true,
                "alpn": ["http/1.1"],
                "reuse_session": true,
                "session_ticket": false,
                "session_timeout": 600,
                "plain_http_response": "",
                "curves": "",
                "dhparam": "",
            },
            "tcp": { "no_delay": true, "keep_alive": true, "reuse_port": false, "fast_open": false, "fast_open_qlen": 20 },
            "mysql": { "enabled": false },
        });
        let path = dir.join(format!("trojan-{}.json", address.port()));
        fs::write(&path, configuration.to_string())
            .with_context(|| format!("writing {}", path.display()))?;
        let mut command = ns.command("trojan");
        command.arg("-c").arg(path);
        let process = Process::spawn(command)?;
        listening(ns, Transport::Tcp, address.port())
            .with_context(|| format!("trojan said: {}", process.lines().join("\n")))?;
        Ok(Self { process, address })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL as an outbound, with this name in its certificate.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        let password = Self::PASSWORD.replace('@', "%40");
        let (ip, port) = (host(self.address.ip()), self.address.port());
        format!("trojan://{password}@{ip}:{port}?sni={name}")
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }
}
