//! Real SOCKS5 servers.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    path::Path,
};

use anyhow::{Context, Result};

use crate::{
    Family, Namespace, Process,
    addr::host,
    wait::{SOON, Transport, listening, until},
};

/// The user of the SOCKS servers.
pub const USER: &str = "lab";
/// Its password: with a blank, so that URLs must quote it.
pub const PASSWORD: &str = "secret word";
/// crypt(3) of [`PASSWORD`], SHA-512.
const PASSWORD_HASH: &str = "$6$labsalt$L.YjFLzeHEKTKgC2c0Yv4nrGDHY5pMSCOWnr7.PwakjKHo6Bjd1F0kwo6hNGGI0XkSkV.QkqG48iGRyYOri0N.";

fn proxy_url(address: SocketAddr) -> String {
    let password = PASSWORD.replace(' ', "%20");
    format!(
        "socks5://{USER}:{password}@{}:{}",
        host(address.ip()),
        address.port()
    )
}

/// danted at the first upstream address of each family, port 1080: user and password, CONNECT and UDP
/// ASSOCIATE, targets of both families whatever the family of the client.
///
/// Its connections and datagrams come from 198.51.100.1 and 2001:db8:b::1, so that a server sees that
/// they went through it. The largest datagram is 65,507 bytes less the SOCKS header (10 or 22).
#[derive(Debug)]
pub struct Danted {
    process: Process,
}

impl Danted {
    /// Where it listens.
    pub const PORT: u16 = 1080;

    /// Starts it.
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(ns: &Namespace, dir: &Path) -> Result<Self> {
        let dir = dir.join("danted");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let (v4, v6) = (Family::V4.upstream(1), Family::V6.upstream(1));
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write(
            "danted.conf",
            &format!(
                "logoutput: stderr
internal: {v4} port = {port}
internal: {v6} port = {port}
external: {v4}
external: {v6}
socksmethod: username
clientmethod: none
user.privileged: root
user.unprivileged: nobody
client pass {{
  from: 0/0 to: 0/0
  log: error
}}
socks pass {{
  from: 0/0 to: 0/0
  command: connect udpassociate
  log: error connect disconnect
}}
socks pass {{
  from: 0/0 to: 0/0
  command: udpreply
  log: error
}}
",
                port = Self::PORT
            ),
        )?;
        let nobody = "nobody:x:65534:65534::/:/bin/false";
        write(
            "passwd",
            &format!("root:x:0:0::/:/bin/false\n{nobody}\n{USER}:x:64999:64999::/:/bin/false\n"),
        )?;
        write(
            "shadow",
            &format!("root:*:19000::::::\n{USER}:{PASSWORD_HASH}:19000:0:99999:7:::\n"),
        )?;
        // danted takes its users from the system's files, so it gets files of its own, in a mount
        // namespace that nobody else sees.
        let mut command = ns.command("unshare");
        command.args([
            "--mount",
            "sh",
            "-c",
            "mount --bind \"$1/passwd\" /etc/passwd && mount --bind \"$1/shadow\" /etc/shadow \
             && exec danted -f \"$1/danted.conf\"",
            "sh",
        ]);
        command.arg(&dir);
        let process = Process::spawn(command)?;
        listening(ns, Transport::Tcp, Self::PORT)
            .with_context(|| format!("danted said: {}", process.lines().join("\n")))?;
        Ok(Self { process })
    }

    /// Its URL as an outbound.
    #[must_use]
    pub fn url(&self, family: Family) -> String {
        proxy_url(SocketAddr::new(family.upstream(1), Self::PORT))
    }

    /// Its process. Its log has a line for each connection and each association, at begin and end.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }

    /// How many UDP associations are open now, by its log.
    #[must_use]
    pub fn open_associations(&self) -> usize {
        let lines = self.process.lines();
        // Begin and end of an association share its relay address; the end is logged once a target.
        let relays = lines
            .iter()
            .filter(|line| line.contains("udp/udpassociate ["))
            .filter_map(|line| line.split_whitespace().last());
        let ends: Vec<&String> = lines
            .iter()
            .filter(|line| line.contains("udp/udpassociate ]"))
            .collect();
        relays
            .filter(|relay| {
                let relay = format!(" {relay} ->");
                !ends.iter().any(|end| end.contains(&relay))
            })
            .count()
    }
}

/// microsocks at the second upstream address of a family, port 1081: user and password, CONNECT only.
#[derive(Debug)]
pub struct Microsocks {
    process: Process,
    address: SocketAddr,
}

impl Microsocks {
    /// Starts it. Its connections come from its own address, so its targets are of that family.
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(ns: &Namespace, family: Family) -> Result<Self> {
        Self::start_at(ns, SocketAddr::new(family.upstream(2), 1081))
    }

    /// Starts it at another address of the namespace.
    ///
    /// # Errors
    /// As [`Microsocks::start`].
    pub fn start_at(ns: &Namespace, address: SocketAddr) -> Result<Self> {
        let ip = address.ip().to_string();
        let process = ns.spawn(&[
            "microsocks",
            "-i",
            &ip,
            "-p",
            &address.port().to_string(),
            "-u",
            USER,
            "-P",
            PASSWORD,
            "-b",
            &ip,
        ])?;
        // There may be another one at this port of another address.
        until(&format!("microsocks at {address}"), SOON, || {
            Ok(ns.enter(|| TcpStream::connect(address))?.ok())
        })
        .with_context(|| format!("microsocks said: {}", process.lines().join("\n")))?;
        Ok(Self { process, address })
    }

    /// Its URL as an outbound.
    #[must_use]
    pub fn url(&self) -> String {
        proxy_url(self.address)
    }

    /// Its URL as an outbound, with a name in the place of its address.
    #[must_use]
    pub fn url_by(&self, name: &str) -> String {
        let (ip, port) = (host(self.address.ip()), self.address.port());
        self.url()
            .replace(&format!("@{ip}:{port}"), &format!("@{name}:{port}"))
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }
}

/// v2ray with a configuration of the caller's. Its log goes to standard output.
#[derive(Debug)]
pub struct V2ray {
    process: Process,
}

impl V2ray {
    /// Starts it and waits for TCP `port`, one of those it is configured to listen at. It looks for geoip.dat and
    /// geosite.dat in `dir`.
    ///
    /// # Errors
    /// When it does not listen in time; the message holds its log.
    pub fn start(
        ns: &Namespace,
        dir: &Path,
        configuration: &serde_json::Value,
        port: u16,
    ) -> Result<Self> {
        let path = dir.join(format!("v2ray-{}-{port}.json", ns.inode()));
        fs::write(&path, configuration.to_string())
            .with_context(|| format!("writing {}", path.display()))?;
        let mut command = ns.command("v2ray");
        command.arg("-config").arg(&path);
        command.env("V2RAY_LOCATION_ASSET", dir);
        let process = Process::spawn(command)?;
        listening(ns, Transport::Tcp, port)
            .with_context(|| format!("v2ray said: {}", process.lines().join("\n")))?;
        Ok(Self { process })
    }

    /// A SOCKS5 inbound with UDP at the third upstream address of `family`, port 1082, without a password.
    #[must_use]
    pub fn socks(family: Family) -> (serde_json::Value, SocketAddr) {
        let address = SocketAddr::new(family.upstream(3), 1082);
        let configuration = serde_json::json!({
            "log": { "loglevel": "warning" },
            "inbounds": [{
                "listen": address.ip(),
                "port": address.port(),
                "protocol": "socks",
                "settings": { "auth": "noauth", "udp": true, "ip": address.ip() }
            }],
            "outbounds": [{ "protocol": "freedom", "sendThrough": address.ip() }]
        });
        (configuration, address)
    }

    /// Its process.
    #[must_use]
    pub const fn process(&self) -> &Process {
        &self.process
    }
}
