//! Upstreams as they are written.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Serialize, Serializer};
use url::Host;

/// The path of a DoH server that names none (the examples of RFC 8484 have it).
const USUAL_PATH: &str = "/dns-query";
/// What every error ends in.
const FORMS: &str = "write it like 192.0.2.1, 192.0.2.1:5353, [2001:db8::1]:53, tcp://192.0.2.1, tls://192.0.2.1#dns.example or \
                     https://dns.example/dns-query";

/// A server that is asked.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Upstream {
    /// How it is spoken to.
    pub transport: Transport,
    /// Its address or name.
    pub host: Host<String>,
    /// Its port, a plain number.
    pub port: u16,
    /// The name that its certificate must have, if it is not that of the host.
    pub certificate: Option<Host<String>>,
    /// Where the questions are posted, for HTTPS.
    pub path: String,
}

/// How an upstream is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// No scheme, or `udp://`: datagrams, and TCP for answers that are cut off (RFC 1035, 7766).
    Udp,
    /// `tcp://` (RFC 7766).
    Tcp,
    /// `tls://` (RFC 7858).
    Tls,
    /// `https://` (RFC 8484), HTTP/2.
    Https,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Udp, Self::Tcp, Self::Tls, Self::Https];

    /// As in a URL.
    #[must_use]
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Udp => "udp",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Https => "https",
        }
    }

    /// The usual port.
    #[must_use]
    pub fn port(self) -> u16 {
        match self {
            Self::Udp | Self::Tcp => 53,
            Self::Tls => 853,
            Self::Https => 443,
        }
    }

    /// Nobody on the way can read or forge it.
    #[must_use]
    pub fn is_encrypted(self) -> bool {
        matches!(self, Self::Tls | Self::Https)
    }
}

/// Why a text is no upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {help}")]
pub struct UpstreamError {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

impl UpstreamError {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: FORMS.to_owned(),
        }
    }
}

impl Upstream {
    /// Its address, if it is not given by name.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        address(&self.host)
    }

    /// What its certificate must be for.
    #[must_use]
    pub fn certified(&self) -> &Host<String> {
        self.certificate.as_ref().unwrap_or(&self.host)
    }
}

fn address(host: &Host<String>) -> Option<IpAddr> {
    match host {
        Host::Ipv4(ip) => Some((*ip).into()),
        // An IPv4 address in IPv6's clothes is reached by an IPv4 socket.
        Host::Ipv6(ip) => Some(ip.to_canonical()),
        Host::Domain(_) => None,
    }
}

impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        let (transport, rest) = match text.split_once("://") {
            None => (Transport::Udp, text),
            Some((scheme, rest)) => {
                let known = |transport: &Transport| transport.scheme().eq_ignore_ascii_case(scheme);
                let transport = Transport::ALL.into_iter().find(known).ok_or_else(|| {
                    let scheme = crate::policy::prefix::excerpt(scheme);
                    UpstreamError::new(format!("`{scheme}` is not a known scheme of a DNS server"))
                })?;
                (transport, rest)
            }
        };
        let (rest, certificate) = match rest.split_once('#') {
            None => (rest, None),
            Some(_) if !transport.is_encrypted() => {
                let scheme = transport.scheme();
                return Err(UpstreamError::new(format!(
                    "a name of a certificate (`#…`) is of no use with {scheme}://, which has no certificate"
                )));
            }
            Some((rest, name)) => (rest, Some(host(name)?)),
        };
        let (place, path) = match rest.find(['/', '?']) {
            None => (rest, None),
            Some(at) => (&rest[..at], Some(&rest[at..])),
        };
        let path = path.filter(|path| *path != "/");
        if path.is_some() && transport != Transport::Https {
            return Err(UpstreamError::new(
                "nothing may follow the port: only https:// has a path",
            ));
        }
        let path = match path {
            None if transport == Transport::Https => USUAL_PATH.to_owned(),
            None => String::new(),
            Some(path) => {
                let path = if path.starts_with('?') {
                    format!("/{path}")
                } else {
                    path.to_owned()
                };
                let sound = path.parse::<http::uri::PathAndQuery>();
                sound
                    .map_err(|error| UpstreamError::new(format!("the path is wrong ({error})")))?;
                path
            }
        };
        let (host, port) = place_of(place, transport.port())?;
        Ok(Self {
            transport,
            host,
            port,
            certificate,
            path,
        })
    }
}

/// Host and port.
fn place_of(text: &str, usual: u16) -> Result<(Host<String>, u16), UpstreamError> {
    if text.contains('@') {
        return Err(UpstreamError::new("a DNS server has no user or password"));
    }
    // An IPv6 address may stand alone.
    if let Ok(ip) = text.parse::<Ipv6Addr>() {
        return Ok((Host::Ipv6(ip), usual));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let port = match port {
        None => usual,
        Some(port) => match port.parse() {
            Ok(port) if port > 0 => port,
            _ => {
                let port = crate::policy::prefix::excerpt(port);
                return Err(UpstreamError::new(format!("`{port}` is not a port")));
            }
        },
    };
    Ok((host(name)?, port))
}

fn host(text: &str) -> Result<Host<String>, UpstreamError> {
    if text.is_empty() {
        return Err(UpstreamError::new("the host is missing"));
    }
    let excerpt = crate::policy::prefix::excerpt(text);
    let host = if let Ok(ip) = text.parse::<Ipv6Addr>() {
        Host::Ipv6(ip)
    } else {
        Host::parse(text)
            .map_err(|error| UpstreamError::new(format!("`{excerpt}` is not a host ({error})")))?
    };
    // URLs allow 1 and 0x7f.1 for addresses: a slip of the keyboard rather than a server.
    let sloppy = matches!(host, Host::Ipv4(ip) if ip.to_string() != text);
    if sloppy {
        return Err(UpstreamError::new(format!(
            "`{excerpt}` is not an IPv4 address"
        )));
    }
    Ok(host)
}

/// As it is written: what is usual is left out, but for the scheme.
impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.transport.scheme(), self.host)?;
        if self.port != self.transport.port() {
            write!(f, ":{}", self.port)?;
        }
        f.write_str(&self.path)?;
        match &self.certificate {
            None => Ok(()),
            Some(name) => write!(f, "#{name}"),
        }
    }
}

impl Serialize for Upstream {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_an_upstream_is_read_and_written() {
        for (text, shown) in [
            ("223.5.5.5", "udp://223.5.5.5"),
            ("223.5.5.5:5353", "udp://223.5.5.5:5353"),
            ("2001:db8::1", "udp://[2001:db8::1]"),
            ("[2001:db8::1]:53", "udp://[2001:db8::1]"),
            ("[2001:db8::1]", "udp://[2001:db8::1]"),
            ("udp://[2001:db8::1]:54", "udp://[2001:db8::1]:54"),
            ("dns.example", "udp://dns.example"),
            ("tcp://192.0.2.1", "tcp://192.0.2.1"),
            ("TLS://1.1.1.1", "tls://1.1.1.1"),
            ("tls://1.1.1.1:853#One.One", "tls://1.1.1.1#one.one"),
            ("tls://dns.example:8853", "tls://dns.example:8853"),
            ("https://dns.example", "https://dns.example/dns-query"),
            ("https://dns.example/", "https://dns.example/dns-query"),
            (
                "https://192.0.2.1:8443/q?a=b#dns.example",
                "https://192.0.2.1:8443/q?a=b#dns.example",
            ),
            ("https://[2001:db8::1]/x", "https://[2001:db8::1]/x"),
        ] {
            let upstream: Upstream = text.parse().expect(text);
            assert_eq!(upstream.to_string(), shown, "{text}");
            assert_eq!(shown.parse(), Ok(upstream), "{text}");
        }
    }

    #[test]
    fn what_is_no_upstream_is_told_with_a_remedy() {
        for (text, reason) in [
            ("", "the host is missing"),
            ("tls://", "the host is missing"),
            ("quic://192.0.2.1", "`quic` is not a known scheme"),
            ("192.0.2.1:0", "`0` is not a port"),
            ("192.0.2.1:70000", "`70000` is not a port"),
            ("192.0.2", "`192.0.2` is not an IPv4 address"),
            ("192.0.2.256", "is not a host"),
            ("[2001:db8::1", "is not a"),
            ("a b", "is not a host"),
            ("udp://192.0.2.1/x", "nothing may follow the port"),
            ("tcp://192.0.2.1#x", "no certificate"),
            ("tls://me@192.0.2.1", "no user or password"),
            ("https://dns.example/a b", "the path is wrong"),
            ("tls://192.0.2.1#", "the host is missing"),
        ] {
            let error = text.parse::<Upstream>().expect_err(text).to_string();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(error.contains("write it like"), "{error}");
        }
    }
}
