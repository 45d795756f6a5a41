//! Configuration: a file to a validated `Config`.
//!
//! A key is a field with its default in [`Config::preset`], and one line in `parse.rs`.

mod api;
mod check;
mod dns;
mod domain;
mod duration;
mod error;
mod exempt;
mod group;
mod link;
mod outbound;
mod parse;
mod read;
mod refusal;
mod rule;
mod schema;
mod secret;
mod source;
mod value;

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use documented::DocumentedFields;
use ipnet::IpNet;
use serde::{Serialize, Serializer};

pub use api::{Api, ApiError, Log, Token};
pub use check::Check;
pub use dns::Dns;
pub use domain::DomainSource;
pub use duration::{LONGEST as LONGEST_DURATION, format_duration, parse_duration};
pub use error::{ConfigError, Finding, Findings};
pub use exempt::{CgroupPath, IdOrName, Mark};
pub use group::{Group, GroupKind};
pub use link::{LinkPattern, WanPattern};
pub use outbound::Outbound;
pub use refusal::Refusal;
pub use rule::Rule;
pub use schema::schema;
pub use secret::{holds_secret, secret_parts};
pub use source::Position;

use crate::policy::source::Source;

/// Larger configurations (in bytes) are refused: the file is something else.
const LARGEST_FILE: u64 = 4 << 20;

/// Everything that can be configured, checked. Its JSON and its `Display` (which is TOML) show
/// what is in effect, defaults included, and no password.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Config {
    /// `stage`: which preset the defaults come from. Default 2.
    pub stage: Stage,
    /// `on_proxy_down`: what becomes of packets for the proxy while none runs. Default "pass".
    pub on_proxy_down: OnProxyDown,
    /// `[lan]`: whose traffic is proxied.
    pub lan: Lan,
    /// `[wan]`: what of the gateway's own traffic is proxied.
    pub wan: Wan,
    /// `[[outbound]]`: the ways out. Never empty and the names differ. Default `direct://`.
    #[serde(rename = "outbound")]
    pub outbounds: Vec<Outbound>,
    /// `[[group]]`: several of them as one. Default: none.
    #[serde(rename = "group", skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Group>,
    /// `[check]`: how the members of groups are checked.
    pub check: Check,
    /// `[[rule]]`: which connections take another outbound. In their order: the first that matches decides.
    /// Default: none.
    #[serde(rename = "rule", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// `[bypass]`: destinations that go direct.
    pub bypass: Bypass,
    /// `[dns]`: the splitting resolver. Default: none, so DNS is traffic like any other.
    pub dns: Option<Dns>,
    /// `[sniff]`: reading which name a connection is for.
    pub sniff: Sniff,
    /// `[exempt]`: who on the gateway goes direct.
    pub exempt: Exempt,
    /// `[tcp]`: limits of TCP connections.
    pub tcp: Tcp,
    /// `[udp]`: limits of UDP associations.
    pub udp: Udp,
    /// `[gateway]`: the machine itself.
    pub gateway: Gateway,
    /// `[proxy]`: the proxy itself.
    pub proxy: Proxy,
    /// `[api]`: the control API by TCP.
    pub api: Api,
    /// `[log]`: what the log tells, and how.
    pub log: Log,
}

/// How much of the traffic is proxied: a preset for other keys, each of which may override it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stage {
    /// All that arrives from the LAN, except for the gateway's own addresses and subnets.
    One = 1,
    /// Private ranges go direct too.
    #[default]
    Two = 2,
    /// As stage 2, and the gateway's own traffic is proxied too.
    Three = 3,
    /// As stage 3.
    Four = 4,
}

impl Stage {
    /// All of them in order.
    pub const ALL: [Self; 4] = [Self::One, Self::Two, Self::Three, Self::Four];
}

impl Serialize for Stage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(*self as u8)
    }
}

/// How UDP flows go that need no proxy any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpressLane {
    /// "forward": the kernel forwards them.
    #[default]
    Forward,
    /// "redirect": from link to link.
    Redirect,
    /// "off": there are none.
    Off,
}

/// What becomes of packets for the proxy while none runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnProxyDown {
    /// "pass": they go direct, as if there were no proxy.
    #[default]
    Pass,
    /// "drop": they end here, so that nothing leaves by another way.
    Drop,
}

/// Whose traffic is proxied.
#[derive(Clone, Debug, Default, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Lan {
    /// `interfaces`: names of links or globs. Default: none, so that they come from the command
    /// line.
    pub interfaces: Vec<LinkPattern>,
    /// `sources`: prefixes that may use the proxy beside those of the links, for networks behind
    /// another router. In order, without doubles. Default: none.
    pub sources: Vec<IpNet>,
}

/// What of the gateway's own traffic is proxied.
#[derive(Clone, Debug, Default, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Wan {
    /// `interfaces`: what the gateway itself sends by these links is proxied. Names of links, globs, or "default"
    /// for those that hold a default route. Default: none in stages 1 and 2, "default" in 3 and 4.
    pub interfaces: Vec<WanPattern>,
}

/// Destinations that go direct.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Bypass {
    /// `private`: private ranges (RFC 1918, 4193, 6598) go direct. Default: false in stage 1, true
    /// in the others.
    pub private: bool,
    /// `prefixes`: more that go direct. In order, without doubles. Default: none.
    pub prefixes: Vec<IpNet>,
    /// `files`: lists of prefixes in any format, `PATH` or `PATH:CODE`; relative
    /// paths start at the folder of the configuration. Default: none.
    pub files: Vec<Source>,
}

/// Reading which name a device asks for from the first bytes of a connection (TLS, HTTP) or flow (QUIC). They are
/// looked at only if a rule could decide otherwise with a name, and passed on as they came.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Sniff {
    /// `enabled`: false decides by addresses alone. Default true.
    pub enabled: bool,
    /// `timeout`: how long a connection may wait for its device's first bytes, 1ms to 5s. It is the most that a
    /// connection waits on which the server speaks first. To ports 80 and 443, where none does, it is ten times as
    /// long. Default 30ms.
    #[serde(serialize_with = "duration::serialize")]
    pub timeout: Duration,
    /// `rewrite`: an outbound that takes names (SOCKS5 and HTTP, TCP) is asked for the name that was read, not for the address
    /// that the device chose. Every connection is looked at then. Default false.
    pub rewrite: bool,
}

/// Who on the gateway goes direct, whatever the destination. All but marks need cgroup2.
#[derive(Clone, Debug, Default, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Exempt {
    /// `gids`: groups, by number or name. A process counts by its real group. Default: none.
    pub gids: Vec<IdOrName>,
    /// `uids`: users, by number or name. A process counts by its real user. Default: none.
    pub uids: Vec<IdOrName>,
    /// `cgroups`: paths below the root of cgroup2 ("/system.slice/foo.service"), with all below them. They
    /// need not be there yet. Default: none.
    pub cgroups: Vec<CgroupPath>,
    /// `marks`: packet marks of others, "0x80000/0xff0000" or 0x10. Default: none.
    pub marks: Vec<Mark>,
}

/// Limits of TCP connections.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Tcp {
    /// `idle`: a connection without traffic in either direction ends after this time, at least 1s.
    /// Default 2h.
    #[serde(serialize_with = "duration::serialize")]
    pub idle: Duration,
    /// `connect_timeout`: how long the upstream may take to accept a connection, at least 100ms.
    /// Default 10s.
    #[serde(serialize_with = "duration::serialize")]
    pub connect_timeout: Duration,
    /// `keepalive`: time without traffic between keepalive probes, 1s to 9h, which the kernel rounds
    /// down to whole seconds. Default 60s.
    #[serde(serialize_with = "duration::serialize")]
    pub keepalive: Duration,
    /// `max_connections`: how many are relayed at a time. Default: none set, so as many as the limit
    /// of open files allows.
    pub max_connections: Option<u32>,
}

/// Limits of UDP associations: one for each address and port of a device that sends.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Udp {
    /// `idle`: an association without traffic ends after this time, at least 1s. Default 300s
    /// (RFC 4787, REQ-5).
    #[serde(serialize_with = "duration::serialize")]
    pub idle: Duration,
    /// `dns_idle`: the same for one that has only been used with port 53, at least 1s. Default 10s.
    #[serde(serialize_with = "duration::serialize")]
    pub dns_idle: Duration,
    /// `max_associations`: how many there are at a time; beyond it the one longest unused ends.
    /// Default 4096.
    pub max_associations: u32,
    /// `express`: what the kernel half does with the flows that it can carry without the proxy (`direct://`). "forward": the
    /// kernel forwards them, so that routing rules and firewall see them; "redirect": they go from link to link, which is
    /// faster; "off": nothing, the proxy relays all. Default "forward".
    pub express: ExpressLane,
}

/// The machine itself, and what the process may do on it.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Gateway {
    /// `forward`: turn on IP forwarding for both families while tproxy-bpf is attached, and set it
    /// back afterwards. A LAN link that is also a way out then sends no ICMP redirects, which would
    /// tell devices to go round the gateway. Default false: it is left as it is.
    pub forward: bool,
    /// `masquerade`: while tproxy-bpf is attached, give what is forwarded from LAN links to the links
    /// with a default route the gateway's own address, with an nft table: all IPv4, and IPv6 from
    /// unique local addresses (fc00::/7). Devices with private addresses need it for what goes
    /// direct, unless the router beyond knows a route to them or something else translates. The
    /// kernel then keeps state (conntrack) for each connection that it forwards. A connection that is
    /// translated ends when tproxy-bpf is detached, and one that lived untranslated when it is
    /// attached. Needs the program `nft`. Default false.
    pub masquerade: bool,
    /// `account`: count for each device what it sends and gets past the proxy, that is what the kernel forwards for it.
    /// It costs some 50 ns for each packet from a device and some 120 ns for each to one. Default false.
    pub account: bool,
    /// `user`: who the proxy runs as once it has started, by name or number. It then has to be able to read what a reload
    /// reads. Default: whoever starts it, which is root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<IdOrName>,
    /// `seccomp`: once it serves, the process and the programs that it starts may make no other system calls than those
    /// that a proxy needs. Default true.
    pub seccomp: bool,
}

impl Default for Gateway {
    fn default() -> Self {
        Self {
            forward: false,
            masquerade: false,
            account: false,
            user: None,
            seccomp: true,
        }
    }
}

/// The proxy itself.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Proxy {
    /// `port`: where it listens, in host byte order; 0 lets the system choose. Nobody connects to it
    /// by number, so the number matters only to firewalls. Default 0.
    pub port: u16,
    /// `drain`: how long connections may live on when the proxy is told to stop; 0s ends them at
    /// once. Default 10s.
    #[serde(serialize_with = "duration::serialize")]
    pub drain: Duration,
    /// `takeover_drain`: how long connections may live on in a proxy that another one has taken over from
    /// (`run --takeover`). Default 1h.
    #[serde(serialize_with = "duration::serialize")]
    pub takeover_drain: Duration,
    /// `outbound`: the name of the outbound or group for all that no rule is about. Default: the first `[[group]]`,
    /// or without groups the first `[[outbound]]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbound: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self::preset(Stage::default())
    }
}

impl Config {
    /// What an empty configuration of this stage means.
    #[must_use]
    pub fn preset(stage: Stage) -> Self {
        Self {
            stage,
            on_proxy_down: OnProxyDown::default(),
            lan: Lan::default(),
            wan: Wan {
                interfaces: if stage >= Stage::Three {
                    vec![WanPattern::Default]
                } else {
                    Vec::new()
                },
            },
            outbounds: vec![Outbound::direct()],
            groups: Vec::new(),
            check: Check::default(),
            rules: Vec::new(),
            bypass: Bypass {
                private: stage != Stage::One,
                prefixes: Vec::new(),
                files: Vec::new(),
            },
            dns: None,
            sniff: Sniff {
                enabled: true,
                timeout: Duration::from_millis(30),
                rewrite: false,
            },
            exempt: Exempt::default(),
            tcp: Tcp {
                idle: Duration::from_hours(2),
                connect_timeout: Duration::from_secs(10),
                keepalive: Duration::from_secs(60),
                max_connections: None,
            },
            udp: Udp {
                idle: Duration::from_secs(300),
                dns_idle: Duration::from_secs(10),
                max_associations: 4096,
                express: ExpressLane::default(),
            },
            gateway: Gateway::default(),
            proxy: Proxy {
                port: 0,
                drain: Duration::from_secs(10),
                takeover_drain: Duration::from_hours(1),
                outbound: None,
            },
            api: Api::default(),
            log: Log::default(),
        }
    }

    /// Reads a configuration file. The lists that it names are not read: see [`Bypass::files`].
    ///
    /// # Errors
    /// When the file cannot be read, or anything in it is wrong. There is no half configuration.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes))
            .map_err(|error| ConfigError::read(path, &error))?;
        Self::parse_bytes(&bytes, path)
    }

    /// Reads a configuration. `path` is its name in errors, and its folder is where relative paths
    /// start.
    ///
    /// # Errors
    /// When anything is wrong, with every finding. Of a text that is no TOML only the
    /// first error of its syntax.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        parse::config(text, path)
    }

    /// Every key that a configuration may have, with the name of its table as it is written (`[lan]`, `[[rule]]`; empty for
    /// the keys before all tables).
    #[must_use]
    pub fn keys() -> Vec<(String, &'static str)> {
        let keys = parse::keys().into_iter();
        keys.map(|(table, key)| (table, key.name)).collect()
    }

    /// The name of the outbound or group that takes all that no rule is about.
    #[must_use]
    pub fn default_exit(&self) -> &str {
        let first = || self.groups.first().map(|group| &group.name);
        let named = self.proxy.outbound.as_ref().or_else(first);
        named.unwrap_or(&self.outbounds[0].name)
    }

    fn parse_bytes(bytes: &[u8], path: &Path) -> Result<Self, ConfigError> {
        if bytes.len() as u64 > LARGEST_FILE {
            let error = std::io::Error::other(format!(
                "it is larger than {} MiB, so it is no configuration",
                LARGEST_FILE >> 20
            ));
            return Err(ConfigError::read(path, &error));
        }
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::parse(text, path),
            Err(error) => Err(parse::no_text(bytes, &error, path)),
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = toml::to_string(self).map_err(|_| fmt::Error)?;
        f.write_str(text.trim_end())
    }
}

/// The word that was probably meant: as a compiler would guess, a third of the letters may be
/// wrong. Case and the kind of dash do not count.
fn nearest<'w>(word: &str, words: &[&'w str]) -> Option<&'w str> {
    let plain = |word: &str| word.to_lowercase().replace('-', "_");
    let word = plain(word);
    // No known word is so long, and the distance takes quadratic time.
    if word.len() > 64 {
        return None;
    }
    words
        .iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&word, &plain(candidate)),
                *candidate,
            )
        })
        .filter(|(distance, candidate)| *distance <= word.len().max(candidate.len()) / 3)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
