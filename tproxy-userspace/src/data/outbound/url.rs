//! Outbounds as they are written: one table of schemes, and what each of them takes.

use std::fmt;
use std::str::FromStr;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use serde::{Serialize, Serializer};
use url::{Host, Url};

use super::shadowsocks::ShadowsocksServer;
use super::trojan::TrojanServer;
use crate::policy::prefix::excerpt;

/// The most bytes of a user and of a password. RFC 1929 has no room for more.
const LONGEST_SECRET: usize = 255;
/// The port of an HTTPS proxy whose URL has none.
const HTTPS_PORT: u16 = 443;
/// The most bytes of a domain name (RFC 1035 section 2.3.4, without the length and the root).
const LONGEST_NAME: usize = 253;
/// What is not shown of a user as it is.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.');

/// Where relayed traffic goes, as read from a URL. Neither `Display` nor `Debug` nor its JSON show a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Outbound {
    /// `direct://`: to the destination itself.
    Direct,
    /// `block://`: nowhere. Connections are reset at once, datagrams are dropped without a word.
    Block,
    /// `socks5://[user:password@]host:port`: through a SOCKS5 server (RFC 1928, 1929).
    Socks5(Server),
    /// `http://[user:password@]host:port`: through an HTTP proxy (CONNECT, RFC 9110). TCP alone.
    Http(Server),
    /// `https://[user:password@]host[:port]`: the same over TLS, so that nobody on the way to the proxy sees more than that.
    Https(Server),
    /// `ss://METHOD:PASSWORD@host:port`: through a Shadowsocks server (SIP002, SIP022).
    Shadowsocks(ShadowsocksServer),
    /// `trojan://PASSWORD@host[:port][?sni=NAME]`: through a Trojan server.
    Trojan(TrojanServer),
}

/// Where a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<'o> {
    /// Its address, or its name.
    pub host: &'o Host<String>,
    /// Its TCP port, a plain number.
    pub port: u16,
}

/// `host:port`.
impl fmt::Display for Endpoint<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A server that traffic goes through.
#[derive(Clone, PartialEq, Eq)]
pub struct Server {
    /// Its address, or its name.
    pub host: Host<String>,
    /// Its TCP port, a plain number.
    pub port: u16,
    /// User and password.
    pub credentials: Option<Credentials>,
}

/// A user and a password, at most 255 bytes each.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user.
    pub user: Vec<u8>,
    /// The password.
    pub password: Vec<u8>,
}

/// Why a text is no outbound. It never holds a piece of the text that may be a secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}; {help}")]
pub struct OutboundError {
    /// What is wrong.
    pub message: String,
    /// What to write instead.
    pub help: String,
}

impl OutboundError {
    fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            help: help.into(),
        }
    }

    /// What the parser of one scheme says: first what is wrong, then, behind a `;`, what to do.
    fn of(error: &impl ToString, form: &str) -> Self {
        let text = error.to_string();
        let (message, help) = text.split_once("; ").unwrap_or((&text, form));
        Self::new(message, help)
    }
}

/// A scheme, and how its URLs are read.
struct Scheme {
    name: &'static str,
    /// How to write one.
    form: &'static str,
    read: Reader,
}

/// Who reads the URLs of a scheme.
enum Reader {
    /// They are taken apart as all are, and this makes sense of the parts.
    Parts(fn(&Written<'_>) -> Result<Outbound, OutboundError>),
    /// They have a form of their own.
    Whole(fn(&str) -> Result<Outbound, OutboundError>),
}

use Reader::{Parts, Whole};

/// All that there are.
const SCHEMES: [Scheme; 7] = [
    Scheme {
        name: "direct",
        form: "write direct://",
        read: Parts(|written| written.nothing("the gateway connects itself", Outbound::Direct)),
    },
    Scheme {
        name: "block",
        form: "write block://",
        read: Parts(|written| written.nothing("nothing passes it", Outbound::Block)),
    },
    Scheme {
        name: "socks5",
        form: "write socks5://HOST:PORT or socks5://USER:PASSWORD@HOST:PORT",
        read: Parts(|written| {
            Ok(Outbound::Socks5(Server {
                host: written.host()?,
                port: written.port("socks5://HOST:1080")?,
                credentials: written.socks_credentials()?,
            }))
        }),
    },
    Scheme {
        name: "http",
        form: "write http://HOST:PORT or http://USER:PASSWORD@HOST:PORT",
        read: Parts(|written| {
            Ok(Outbound::Http(Server {
                host: written.host()?,
                port: written.port("http://HOST:8080")?,
                credentials: written.http_credentials()?,
            }))
        }),
    },
    Scheme {
        name: "https",
        form: "write https://HOST:PORT or https://USER:PASSWORD@HOST:PORT",
        read: Parts(|written| {
            Ok(Outbound::Https(Server {
                host: written.host()?,
                port: match written.url.port() {
                    None => HTTPS_PORT,
                    Some(_) => written.port("https://HOST:443")?,
                },
                credentials: written.http_credentials()?,
            }))
        }),
    },
    Scheme {
        name: "ss",
        form: SS_FORM,
        read: Whole(|text| {
            let server = text.parse::<ShadowsocksServer>();
            let server = server.map_err(|error| OutboundError::of(&error, SS_FORM))?;
            Ok(Outbound::Shadowsocks(server))
        }),
    },
    Scheme {
        name: "trojan",
        form: TROJAN_FORM,
        read: Whole(|text| {
            let server = text.parse::<TrojanServer>();
            let server = server.map_err(|error| OutboundError::of(&error, TROJAN_FORM))?;
            Ok(Outbound::Trojan(server))
        }),
    },
];

const SS_FORM: &str = "write ss://METHOD:PASSWORD@HOST:PORT";
const TROJAN_FORM: &str = "write trojan://PASSWORD@HOST:PORT";

/// A URL that is taken apart by the rules that hold for most schemes.
struct Written<'u> {
    scheme: &'u Scheme,
    url: Url,
}

impl Written<'_> {
    fn refuse(&self, message: impl Into<String>) -> OutboundError {
        OutboundError::new(message, self.scheme.form)
    }

    /// Behind the scheme there is nothing.
    fn nothing(&self, why: &str, outbound: Outbound) -> Result<Outbound, OutboundError> {
        let rest = self.url.as_str().split_once("://").map(|(_, rest)| rest);
        if rest == Some("") {
            return Ok(outbound);
        }
        let name = self.scheme.name;
        Err(self.refuse(format!("nothing may follow {name}://, since {why}")))
    }

    fn host(&self) -> Result<Host<String>, OutboundError> {
        let text = self.url.host_str().unwrap_or_default();
        if text.is_empty() {
            return Err(self.refuse("the host is missing"));
        }
        let text = percent_decode_str(text).decode_utf8_lossy();
        let shown = excerpt(&text);
        let numbers = |byte: u8| byte.is_ascii_digit() || byte == b'.';
        match Host::parse(&text) {
            // URLs allow 1 and 0x7f.1 for addresses: a slip of the keyboard rather than a server.
            Ok(Host::Ipv4(ip)) if ip.to_string() != text => {
                Err(self.refuse(format!("`{shown}` is not an IPv4 address")))
            }
            Ok(Host::Domain(name)) if name.len() > LONGEST_NAME => {
                Err(self.refuse(format!("`{shown}` is longer than any name of a host")))
            }
            Ok(host) => Ok(host),
            Err(_) if text.bytes().all(numbers) => {
                Err(self.refuse(format!("`{shown}` is not an IPv4 address")))
            }
            Err(error) => Err(self.refuse(format!("`{shown}` is not a host ({error})"))),
        }
    }

    /// The port, which must be there.
    fn port(&self, usual: &str) -> Result<u16, OutboundError> {
        match self.url.port() {
            None | Some(0) => Err(OutboundError::new(
                "the port is missing",
                format!("write it behind the host: the usual one is {usual}"),
            )),
            Some(port) => Ok(port),
        }
    }

    /// Behind the port there is nothing.
    fn end(&self) -> Result<(), OutboundError> {
        let url = &self.url;
        if matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none() {
            return Ok(());
        }
        Err(OutboundError::new(
            "nothing may follow the port",
            "a `/`, `?` or `#` in a password is written %2F, %3F or %23",
        ))
    }

    fn credentials(&self) -> Result<Option<Credentials>, OutboundError> {
        let (user, password) = (self.url.username(), self.url.password());
        if user.is_empty() && password.is_none() {
            return Ok(None);
        }
        let decode = |part| percent_decode_str(part).collect::<Vec<u8>>();
        let credentials = Credentials {
            user: decode(user),
            password: decode(password.unwrap_or_default()),
        };
        if credentials.user.len().max(credentials.password.len()) > LONGEST_SECRET {
            return Err(OutboundError::new(
                format!(
                    "there is no room for a user name or password of more than {LONGEST_SECRET} bytes (RFC 1929)"
                ),
                "use a shorter one",
            ));
        }
        Ok(Some(credentials))
    }

    fn http_credentials(&self) -> Result<Option<Credentials>, OutboundError> {
        let found = self.credentials()?;
        let Some(Credentials { user, password }) = &found else {
            return Ok(None);
        };
        if user.is_empty() {
            return Err(self.refuse("the user name is missing"));
        }
        if user.contains(&b':') || user.iter().chain(password).any(u8::is_ascii_control) {
            return Err(OutboundError::new(
                "HTTP has no room for a `:` in the user name, or control characters (RFC 7617)",
                "use another user name or password",
            ));
        }
        Ok(found)
    }

    fn socks_credentials(&self) -> Result<Option<Credentials>, OutboundError> {
        let found = self.credentials()?;
        let missing = match &found {
            Some(found) if found.user.is_empty() => "user name",
            Some(found) if found.password.is_empty() => "password",
            _ => return Ok(found),
        };
        Err(self.refuse(format!(
            "the {missing} is missing: SOCKS5 knows both or none (RFC 1929)"
        )))
    }
}

/// What to write for a scheme that is not known.
fn known(text: &str) -> OutboundError {
    let names = SCHEMES.map(|scheme| format!("{}://", scheme.name));
    let (last, others) = names.split_last().expect("there are schemes");
    let supported = format!("supported are {} and {last}", others.join(", "));
    let near = |scheme: &Scheme| strsim::damerau_levenshtein(scheme.name, text);
    let nearest = SCHEMES.iter().min_by_key(|scheme| near(scheme));
    let help = match nearest.filter(|scheme| near(scheme) <= scheme.name.len() / 3) {
        Some(scheme) => format!("did you mean {}://? {supported}", scheme.name),
        None => supported,
    };
    OutboundError::new(format!("`{}` is not a known scheme", excerpt(text)), help)
}

impl FromStr for Outbound {
    type Err = OutboundError;

    fn from_str(text: &str) -> Result<Self, OutboundError> {
        let is_scheme = |byte: u8| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte);
        // Whatever stands before a `://` further behind may be a password.
        let Some((name, rest)) = text
            .split_once("://")
            .filter(|(scheme, _)| scheme.bytes().all(is_scheme))
        else {
            return Err(OutboundError::new(
                "it is not a URL: it does not begin with a scheme and `://`",
                "write direct:// or socks5://HOST:PORT",
            ));
        };
        // No known scheme is so long, and comparing takes quadratic time.
        let name: String = name.to_ascii_lowercase().chars().take(64).collect();
        let scheme = SCHEMES.iter().find(|scheme| scheme.name == name);
        let scheme = scheme.ok_or_else(|| known(&name))?;
        let read = match scheme.read {
            Parts(read) => read,
            Whole(read) => return read(text),
        };
        // The parser has rules of its own for the web's schemes, such as ports that it leaves out.
        let url = Url::parse(&format!("outbound://{rest}")).map_err(|error| {
            OutboundError::new(format!("it is not a valid URL: {error}"), scheme.form)
        })?;
        let written = Written { scheme, url };
        let outbound = read(&written)?;
        if outbound.server().is_some() {
            written.end()?;
        }
        Ok(outbound)
    }
}

impl Outbound {
    /// The scheme of its URL.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Block => "block",
            Self::Socks5(_) => "socks5",
            Self::Http(_) => "http",
            Self::Https(_) => "https",
            Self::Shadowsocks(_) => "ss",
            Self::Trojan(_) => "trojan",
        }
    }

    /// The server, if it has one.
    #[must_use]
    pub fn server(&self) -> Option<Endpoint<'_>> {
        let (host, port) = match self {
            Self::Direct | Self::Block => return None,
            Self::Socks5(server) | Self::Http(server) | Self::Https(server) => {
                (&server.host, server.port)
            }
            Self::Shadowsocks(server) => (&server.host, server.port),
            Self::Trojan(server) => (&server.host, server.port),
        };
        Some(Endpoint { host, port })
    }

    /// Is its server spoken to by TLS?
    #[must_use]
    pub fn speaks_tls(&self) -> bool {
        matches!(self, Self::Https(_) | Self::Trojan(_))
    }

    /// Can it be asked for a name as well as for an address?
    #[must_use]
    pub fn takes_names(&self) -> bool {
        match self {
            Self::Direct | Self::Block => false,
            Self::Socks5(_)
            | Self::Http(_)
            | Self::Https(_)
            | Self::Shadowsocks(_)
            | Self::Trojan(_) => true,
        }
    }
}

/// The URL, with `***` for the password.
impl fmt::Display for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.scheme();
        match self {
            Self::Direct | Self::Block => write!(f, "{scheme}://"),
            Self::Socks5(server) | Self::Http(server) | Self::Https(server) => {
                write!(f, "{scheme}://{server}")
            }
            Self::Shadowsocks(server) => server.fmt(f),
            Self::Trojan(server) => server.fmt(f),
        }
    }
}

/// `[user:***@]host:port`.
impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(credentials) = &self.credentials {
            write!(f, "{credentials}@")?;
        }
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// `user:***`.
impl fmt::Display for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:***", percent_encode(&self.user, ESCAPED))
    }
}

impl fmt::Debug for Outbound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outbound({self})")
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Server({self})")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({self})")
    }
}

impl Serialize for Outbound {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests;
