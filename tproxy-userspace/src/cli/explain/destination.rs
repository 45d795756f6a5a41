//! Destinations and senders as people write them.

use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use tproxy_userspace::policy::domain::name::{NameError, normalize};

/// The port of a destination that is written without one.
const USUAL_PORT: u16 = 443;
/// The word for the gateway itself.
const GATEWAY: &str = "gateway";

/// Where a packet goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// An address or a name.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// An address or a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// An address.
    Address(IpAddr),
    /// A name, in the form in which names are compared.
    Name(String),
}

/// Who sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SentBy {
    /// The gateway itself.
    Gateway,
    /// Who has this address.
    Address(IpAddr),
}

/// Why a text is no destination or sender.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// A URL, most likely.
    #[error("give only the host and the port, like www.example.com:443")]
    Url,
    /// The port is none.
    #[error("`{0}` is not a port (1 to 65535)")]
    Port(String),
    /// There is something between or behind brackets that does not belong there.
    #[error("in brackets stands an IPv6 address, behind them at most a port: [2001:db8::1]:443")]
    Brackets,
    /// An IPv4 address with a number too many, too large or too few.
    #[error("it is no IPv4 address, and a name does not end in a number")]
    Number,
    /// No name either.
    #[error("it is neither an address nor a name: {0}")]
    Name(#[from] NameError),
    /// No sender.
    #[error("it is neither an address nor \"{GATEWAY}\"")]
    Sender,
}

impl FromStr for Destination {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        if text.contains('/') {
            return Err(WordError::Url);
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or(WordError::Brackets)?;
            let address: Ipv6Addr = address.parse().map_err(|_| WordError::Brackets)?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').ok_or(WordError::Brackets)?),
            };
            return Self::new(Host::Address(address.into()), port);
        }
        if let Ok(address) = text.parse() {
            return Self::new(Host::Address(address), None);
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        };
        let host = match host.parse() {
            Ok(IpAddr::V4(address)) => Host::Address(address.into()),
            // Without brackets, what stands behind the last colon belongs to the address.
            Ok(IpAddr::V6(_)) => return Err(WordError::Brackets),
            Err(_) => Host::Name(name(host)?),
        };
        Self::new(host, port)
    }
}

impl Destination {
    fn new(host: Host, port: Option<&str>) -> Result<Self, WordError> {
        let port = match port {
            None => USUAL_PORT,
            Some(text) => match text.parse() {
                Ok(port) if port > 0 => port,
                _ => return Err(WordError::Port(text.to_owned())),
            },
        };
        Ok(Self { host, port })
    }

    /// As it stands in a sentence.
    pub fn text(&self) -> String {
        match &self.host {
            Host::Address(IpAddr::V6(address)) => format!("[{address}]:{}", self.port),
            Host::Address(address) => format!("{address}:{}", self.port),
            Host::Name(name) => format!("{name}:{}", self.port),
        }
    }
}

impl FromStr for SentBy {
    type Err = WordError;

    fn from_str(text: &str) -> Result<Self, WordError> {
        if text == GATEWAY {
            return Ok(Self::Gateway);
        }
        text.parse()
            .map(Self::Address)
            .map_err(|_| WordError::Sender)
    }
}

/// A name in the form in which names are compared.
///
/// # Errors
/// When it is none.
pub fn name(text: &str) -> Result<String, WordError> {
    let name = normalize(text)?;
    let last = name.rsplit('.').next().unwrap_or_default();
    // The URL standard's rule: such a thing is a mistyped address.
    if last.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(WordError::Number);
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(text: &str) -> Result<(String, u16), WordError> {
        let destination: Destination = text.parse()?;
        let host = match destination.host {
            Host::Address(address) => format!("address {address}"),
            Host::Name(name) => format!("name {name}"),
        };
        Ok((host, destination.port))
    }

    #[test]
    fn destinations_are_read() {
        for (text, host, port) in [
            ("192.0.2.1", "address 192.0.2.1", 443),
            ("192.0.2.1:53", "address 192.0.2.1", 53),
            ("2001:db8::1", "address 2001:db8::1", 443),
            ("[2001:db8::1]", "address 2001:db8::1", 443),
            ("[2001:db8::1]:53", "address 2001:db8::1", 53),
            ("WWW.Example.com.", "name www.example.com", 443),
            ("bücher.example:80", "name xn--bcher-kva.example", 80),
            ("localhost:65535", "name localhost", 65_535),
        ] {
            assert_eq!(to(text), Ok((host.to_owned(), port)), "{text}");
            let again: Destination = text.parse().expect("as before");
            assert_eq!(again.text().parse(), Ok(again), "{text}");
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        let port = |text: &str| WordError::Port(text.to_owned());
        for (text, error) in [
            ("https://www.example.com/", WordError::Url),
            ("192.0.2.0/24", WordError::Url),
            ("192.0.2.1:0", port("0")),
            ("192.0.2.1:", port("")),
            ("www.example.com:http", port("http")),
            ("www.example.com:65536", port("65536")),
            ("[2001:db8::1", WordError::Brackets),
            ("[192.0.2.1]:80", WordError::Brackets),
            ("[2001:db8::1]80", WordError::Brackets),
            ("2001:db8:0:0:0:0:0:1:53", WordError::Brackets),
            ("192.0.2", WordError::Number),
            ("192.0.2.256", WordError::Number),
        ] {
            assert_eq!(to(text), Err(error), "{text}");
        }
        for text in ["", ":80", "a..b", "a b", "fe80::1%eth0"] {
            assert!(to(text).is_err(), "{text}");
        }
    }

    #[test]
    fn senders_are_read() {
        assert_eq!("gateway".parse(), Ok(SentBy::Gateway));
        let address = "192.0.2.1".parse().expect("a literal");
        assert_eq!("192.0.2.1".parse(), Ok(SentBy::Address(address)));
        assert_eq!("me".parse::<SentBy>(), Err(WordError::Sender));
    }
}
