//! URLs of Trojan servers, as clients exchange them (trojan-url).

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;
use url::{Host, Url};

use super::Token;
use crate::policy::prefix::excerpt;

/// The port of a server that names none: that of HTTPS.
const PORT: u16 = 443;

/// A Trojan server: `trojan://PASSWORD@HOST[:PORT][?sni=NAME]`.
#[derive(Clone, PartialEq, Eq)]
pub struct TrojanServer {
    /// Its address, or its name.
    pub host: Host<String>,
    /// Its port, a plain number.
    pub port: u16,
    /// What it knows us by.
    pub token: Token,
    /// Whom its certificate is for, and what it is asked for in the handshake.
    pub name: ServerName<'static>,
}

/// Why a text names no Trojan server. The text itself is left out: it holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TrojanUrlError {
    /// Not a URL.
    #[error("the Trojan server's URL cannot be read ({0}); {FORM}")]
    Url(#[from] url::ParseError),
    /// Another scheme.
    #[error("the URL does not begin with trojan://; {FORM}")]
    Scheme,
    /// No password.
    #[error("the URL trojan:// has no password before the host; {FORM}")]
    NoPassword,
    /// Perhaps a user's name, perhaps a part of the password.
    #[error("the URL trojan:// has a `:` in the password; write it as %3A there")]
    Colon,
    /// Perhaps the rest of the password.
    #[error(
        "the URL trojan:// has an `@` behind the host; write `/`, `?`, `#` and `@` in the password as %2F, %3F, %23 and %40"
    )]
    Unescaped,
    /// No host.
    #[error("the URL trojan:// names no host; {FORM}")]
    Host,
    /// Port 0.
    #[error("the Trojan server's port 0 cannot be connected to; the usual one is 443")]
    Port,
    /// No certificate can have such a name.
    #[error(
        "no certificate can be for the name \"{0}\"; name the one that the server's is for with ?sni=NAME"
    )]
    Name(String),
    /// The certificate is not to be looked at.
    #[error(
        "allowInsecure=1 is refused: without a look at the certificate, whoever is on the way can read the password and all \
         traffic. Give the server a certificate that this machine trusts, or put the server's authority among the trusted \
         ones (SSL_CERT_FILE), and remove allowInsecure"
    )]
    Insecure,
    /// A transport that is not plain TLS.
    #[error(
        "the URL trojan:// wants {0}, which is not known here: TLS over TCP is; use a server that takes that"
    )]
    Transport(String),
    /// A part that is not known.
    #[error("the URL trojan:// takes no {0}; remove it")]
    Surplus(String),
}

/// What a URL looks like.
const FORM: &str = "write trojan://PASSWORD@HOST:PORT?sni=NAME";

impl FromStr for TrojanServer {
    type Err = TrojanUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let url = Url::parse(text)?;
        if url.scheme() != "trojan" {
            return Err(TrojanUrlError::Scheme);
        }
        // Before anything of it is shown.
        if [url.path(), url.query().unwrap_or_default()]
            .iter()
            .any(|part| part.contains('@'))
        {
            return Err(TrojanUrlError::Unescaped);
        }
        if url.password().is_some() {
            return Err(TrojanUrlError::Colon);
        }
        let password: Vec<u8> = percent_decode_str(url.username()).collect();
        if password.is_empty() {
            return Err(TrojanUrlError::NoPassword);
        }
        // For schemes other than the web's, the parser leaves IPv4 addresses to us.
        let host = match url.host().ok_or(TrojanUrlError::Host)? {
            Host::Domain(name) => Host::parse(&percent_decode_str(name).decode_utf8_lossy())?,
            Host::Ipv4(ip) => Host::Ipv4(ip),
            Host::Ipv6(ip) => Host::Ipv6(ip),
        };
        let port = url.port().unwrap_or(PORT);
        if port == 0 {
            return Err(TrojanUrlError::Port);
        }
        if !matches!(url.path(), "" | "/") {
            return Err(TrojanUrlError::Surplus("path".to_owned()));
        }
        let name = match asked_name(&url)? {
            Some(name) => ServerName::try_from(name.clone()).map_err(|_| name)?,
            None => match &host {
                Host::Domain(name) => {
                    ServerName::try_from(name.clone()).map_err(|_| name.clone())?
                }
                Host::Ipv4(ip) => IpAddr::from(*ip).into(),
                Host::Ipv6(ip) => IpAddr::from(*ip).into(),
            },
        };
        Ok(Self {
            host,
            port,
            token: Token::new(&password),
            name,
        })
    }
}

impl From<String> for TrojanUrlError {
    fn from(name: String) -> Self {
        Self::Name(excerpt(&name))
    }
}

/// Reads the query: the name, if there is one, and nothing that would be passed over.
fn asked_name(url: &Url) -> Result<Option<String>, TrojanUrlError> {
    let mut name = None;
    for (key, value) in url.query_pairs() {
        match (&*key, &*value) {
            ("sni" | "peer", "") => {}
            ("sni" | "peer", value) => name = Some(value.to_owned()),
            // What is so in any case.
            ("allowInsecure" | "allow_insecure" | "insecure", "" | "0" | "false") => {}
            ("security", "" | "tls") | ("type", "" | "tcp" | "original" | "none") => {}
            ("headerType", "" | "none") => {}
            ("allowInsecure" | "allow_insecure" | "insecure", _) => {
                return Err(TrojanUrlError::Insecure);
            }
            ("security" | "type" | "headerType", value) => {
                let wanted = excerpt(&format!("{key}={value}"));
                return Err(TrojanUrlError::Transport(wanted));
            }
            ("fp", _) => {
                let what = "fp: no browser's handshake can be imitated here";
                return Err(TrojanUrlError::Surplus(what.to_owned()));
            }
            (key, _) => return Err(TrojanUrlError::Surplus(excerpt(key))),
        }
    }
    Ok(name)
}

/// The URL with the password left out.
impl fmt::Display for TrojanServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "trojan://***@{}:{}", self.host, self.port)?;
        let name = self.name.to_str();
        let host = self.host.to_string();
        if name != host.trim_matches(['[', ']']) {
            write!(f, "?sni={name}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for TrojanServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrojanServer({self})")
    }
}
