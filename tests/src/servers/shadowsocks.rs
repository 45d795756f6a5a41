//! Real Shadowsocks servers.

use std::{net::SocketAddr, path::Path};

use anyhow::{Context, Result};
use serde_json::json;

use crate::{
    Namespace, Process, SingBox,
    addr::host,
    wait::{Transport, listening},
};

/// A Shadowsocks server for TCP and UDP.
///
/// What it connects to sees the address that the kernel chooses. Each needs a port that no other server of its
/// namespace has.
#[derive(Debug)]
pub struct Shadowsocks {
    process: Process,
    address: SocketAddr,
    method: String,
    password: String,
}

impl Shadowsocks {
    /// Starts ss-server (shadowsocks-libev) with one of the AEAD methods (SIP004).
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(
        ns: &Namespace,
        address: SocketAddr,
        method: &str,
        password: &str,
    ) -> Result<Self> {
        let (ip, port) = (address.ip().to_string(), address.port().to_string());
        let process = ns.spawn(&[
            "ss-server",
            "-s",
            &ip,
            "-p",
            &port,
            "-m",
            method,
            "-k",
            password,
            "-t",
            "60",
            "-u",
            "-v",
        ])?;
        Self::ready(ns, process, address, method, password)
    }

    /// Starts sing-box with one of the methods of 2022 (SIP022). With `USERS:USER` as the password it has users, one of
    /// them with the key USER, and USERS is its own key.
    ///
    /// # Errors
    /// As [`Shadowsocks::start`].
    pub fn start_2022(
        sing_box: &SingBox,
        ns: &Namespace,
        dir: &Path,
        address: SocketAddr,
        method: &str,
        password: &str,
    ) -> Result<Self> {
        let mut inbound = json!({
            "type": "shadowsocks",
            "listen": address.ip(),
            "listen_port": address.port(),
            "method": method,
            "password": password,
        });
        if let Some((own, user)) = password.split_once(':') {
            inbound["password"] = own.into();
            inbound["users"] = json!([{ "name": "lab", "password": user }]);
        }
        let configuration = json!({
            "log": { "level": "debug" },
            "inbounds": [inbound],
            "outbounds": [{ "type": "direct" }],
        });
        let process = sing_box.serve(ns, dir, &configuration, address.port())?;
        Self::ready(ns, process, address, method, password)
    }

    fn ready(
        ns: &Namespace,
        process: Process,
        address: SocketAddr,
        method: &str,
        password: &str,
    ) -> Result<Self> {
        listening(ns, Transport::Tcp, address.port())
            .and_then(|()| listening(ns, Transport::Udp, address.port()))
            .with_context(|| format!("the server said: {}", process.lines().join("\n")))?;
        Ok(Self {
            process,
            address,
            method: method.to_owned(),
            password: password.to_owned(),
        })
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its URL as an outbound (SIP002).
    #[must_use]
    pub fn url(&self) -> String {
        self.url_with(&self.password)
    }

    /// Its URL with another password.
    #[must_use]
    pub fn url_with(&self, password: &str) -> String {
        let escaped: String = password
            .bytes()
            .map(|byte| format!("%{byte:02X}"))
            .collect();
        let (ip, port) = (host(self.address.ip()), self.address.port());
        format!("ss://{}:{escaped}@{ip}:{port}", self.method)
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }
}
