//! URLs of Shadowsocks servers (SIP002; with keys of SIP022 2022-3), and those from before it.

use std::fmt;
use std::str::{self, FromStr};
use std::sync::Arc;

use base64::Engine as _;
use percent_encoding::percent_decode_str;
use url::Host;

use super::keys::{BASE64, KeyError, Keys, standard};
use super::method::{Method, MethodError};

/// A Shadowsocks server: `ss://METHOD:PASSWORD@HOST:PORT`, where all before the `@` may be in base64.
#[derive(Clone, PartialEq, Eq)]
pub struct ShadowsocksServer {
    /// Its address, or its name.
    pub host: Host<String>,
    /// Its port for TCP and UDP, a plain number.
    pub port: u16,
    /// Method and password.
    pub keys: Arc<Keys>,
}

/// Why a text names no Shadowsocks server. The text itself is left out: it holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShadowsocksUrlError {
    /// Another scheme.
    #[error("the URL does not begin with ss://; {FORM}")]
    Scheme,
    /// What should be base64 is none.
    #[error(
        "in the URL ss://, {0} is neither METHOD:PASSWORD nor that in base64; {FORM}, with %3A, %2F and %40 for `:`, `/` and \
         `@` in the password"
    )]
    Encoding(&'static str),
    /// No method before the password.
    #[error("the URL ss:// has no `:` between method and password; {FORM}")]
    NoPassword,
    /// The method cannot be used.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// The password does not fit the method.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No host.
    #[error("the URL ss:// names no host that can be read ({0}); {FORM}")]
    Host(String),
    /// No port.
    #[error("the URL ss:// names no port from 1 to 65535 behind the host; {FORM}")]
    Port,
    /// A program that the connection is to be led through.
    #[error(
        "the URL ss:// wants the plugin \"{0}\" (SIP003), a program of its own that is not started here; use a server without \
         one, or start the plugin yourself and name its address"
    )]
    Plugin(String),
    /// A part that is not known.
    #[error("the URL ss:// takes no {0} behind the port; remove it")]
    Surplus(&'static str),
}

/// What a URL looks like.
const FORM: &str = "write ss://METHOD:PASSWORD@HOST:PORT";

impl FromStr for ShadowsocksServer {
    type Err = ShadowsocksUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_ours = |scheme: &&str| scheme.eq_ignore_ascii_case("ss");
        let (_, rest) = text
            .split_once("://")
            .filter(|(scheme, _)| is_ours(scheme))
            .ok_or(ShadowsocksUrlError::Scheme)?;
        // Behind `#` is a name for people.
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let Some((user, server)) = rest.rsplit_once('@') else {
            return Self::legacy(rest);
        };
        let user = match user.contains(':') {
            true => percent_decode_str(user).collect(),
            false => decoded(user, "what is before the `@`")?,
        };
        let (server, query) = server.split_once('?').unwrap_or((server, ""));
        check_query(query)?;
        Self::of_parts(&user, server.strip_suffix('/').unwrap_or(server))
    }
}

impl ShadowsocksServer {
    /// All in base64, as it was before SIP002.
    fn legacy(text: &str) -> Result<Self, ShadowsocksUrlError> {
        let text = text.strip_suffix('/').unwrap_or(text);
        let whole = decoded(text, "what is behind it")?;
        let at = whole.iter().rposition(|byte| *byte == b'@');
        let at = at.ok_or(ShadowsocksUrlError::Encoding("what is behind it"))?;
        let server = str::from_utf8(&whole[at + 1..]);
        let server = server.map_err(|_| ShadowsocksUrlError::Host("it is no text".to_owned()))?;
        Self::of_parts(&whole[..at], server)
    }

    fn of_parts(user: &[u8], server: &str) -> Result<Self, ShadowsocksUrlError> {
        let colon = user.iter().position(|byte| *byte == b':');
        let colon = colon.ok_or(ShadowsocksUrlError::NoPassword)?;
        let (method, password) = (&user[..colon], &user[colon + 1..]);
        // What is no text is no method, and may be a part of the password.
        let method = str::from_utf8(method).map_err(|_| ShadowsocksUrlError::NoPassword)?;
        let method: Method = method.parse()?;
        let keys = Keys::new(method, password)?;
        if server.contains('/') {
            return Err(ShadowsocksUrlError::Surplus("path"));
        }
        let (host, port) = server.rsplit_once(':').ok_or(ShadowsocksUrlError::Port)?;
        let host = percent_decode_str(host).decode_utf8_lossy();
        let host =
            Host::parse(&host).map_err(|error| ShadowsocksUrlError::Host(error.to_string()))?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        match port.parse() {
            Ok(port @ 1..) if digits => Ok(Self {
                host,
                port,
                keys: Arc::new(keys),
            }),
            _ => Err(ShadowsocksUrlError::Port),
        }
    }
}

fn check_query(query: &str) -> Result<(), ShadowsocksUrlError> {
    for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
        match &*key {
            "plugin" if value.is_empty() => {}
            "plugin" => {
                // Its options may hold a password, too.
                let name = value.split(';').next().unwrap_or_default();
                let name = crate::policy::prefix::excerpt(name);
                return Err(ShadowsocksUrlError::Plugin(name));
            }
            _ => return Err(ShadowsocksUrlError::Surplus("query other than plugin")),
        }
    }
    Ok(())
}

/// Base64 of either alphabet, with or without padding, and with escapes of URLs in it.
fn decoded(text: &str, what: &'static str) -> Result<Vec<u8>, ShadowsocksUrlError> {
    let bytes: Vec<u8> = percent_decode_str(text).collect();
    let decoded = BASE64.decode(standard(&bytes));
    decoded.map_err(|_| ShadowsocksUrlError::Encoding(what))
}

/// The URL with the password left out.
impl fmt::Display for ShadowsocksServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "ss://{}:***@{}:{}",
            self.keys.method(),
            self.host,
            self.port
        )
    }
}

impl fmt::Debug for ShadowsocksServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShadowsocksServer({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn server(text: &str) -> ShadowsocksServer {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn refused(text: &str) -> String {
        text.parse::<ShadowsocksServer>().unwrap_err().to_string()
    }

    /// The examples of SIP002, SIP022 (2022-3) and the old format.
    #[test]
    fn the_examples_of_the_specifications() {
        for (text, shown) in [
            (
                "ss://YWVzLTEyOC1nY206dGVzdA@192.168.100.1:8888#Example1",
                "ss://aes-128-gcm:***@192.168.100.1:8888",
            ),
            (
                "ss://YWVzLTEyOC1nY206dGVzdA==@[2001:db8::1]:8888/?plugin=",
                "ss://aes-128-gcm:***@[2001:db8::1]:8888",
            ),
            (
                "ss://2022-blake3-aes-256-gcm:YctPZ6U7xPPcU%2Bgp3u%2B0tx%2FtRizJN9K8y%2BuKlW2qjlI%3D@192.168.100.1:8888#Example3",
                "ss://2022-blake3-aes-256-gcm:***@192.168.100.1:8888",
            ),
            (
                "SS://chacha20-ietf-poly1305:a%40b%3Ac@proxy.example:1/",
                "ss://chacha20-ietf-poly1305:***@proxy.example:1",
            ),
            // aes-256-gcm:pa@ss@192.0.2.1:8388
            (
                "ss://YWVzLTI1Ni1nY206cGFAc3NAMTkyLjAuMi4xOjgzODg=#old",
                "ss://aes-256-gcm:***@192.0.2.1:8388",
            ),
        ] {
            assert_eq!(server(text).to_string(), shown);
            assert_eq!(
                format!("{:?}", server(text)),
                format!("ShadowsocksServer({shown})")
            );
        }
        let keys = Keys::new(Method::Aes128Gcm, b"test").expect("a password");
        assert_eq!(*server("ss://YWVzLTEyOC1nY206dGVzdA@h:1").keys, keys);
        let keys = Keys::new(Method::Aes256Gcm, b"pa@ss").expect("a password");
        assert_eq!(
            *server("ss://YWVzLTI1Ni1nY206cGFAc3NAMTkyLjAuMi4xOjgzODg").keys,
            keys
        );
        let keys = Keys::new(Method::Chacha20Poly1305, b"a@b:c").expect("a password");
        assert_eq!(
            *server("ss://chacha20-ietf-poly1305:a%40b%3Ac@h:1").keys,
            keys
        );
    }

    #[test]
    fn refusals_say_what_to_do() {
        for (text, part) in [
            ("socks5://h:1", "does not begin with ss://"),
            ("ss://!!!@h:1", "what is before the `@` is neither"),
            ("ss://YWVz", "what is behind it is neither"),
            (
                "ss://YWVzLTEyOC1nY20=@h:1",
                "no `:` between method and password",
            ),
            ("ss://none:x@h:1", "\"none\" does not encrypt"),
            ("ss://rc4-md5:x@h:1", "\"rc4-md5\" is a stream cipher"),
            (
                "ss://chacha20-ietf:x@h:1",
                "\"chacha20-ietf\" is a stream cipher",
            ),
            (
                "ss://aes-256-cfb:x@h:1",
                "\"aes-256-cfb\" is a stream cipher",
            ),
            (
                "ss://aes-192-gcm:x@h:1",
                "the method is not known; use one of aes-128-gcm, aes-256-gcm,",
            ),
            ("ss://aes-128-gcm:@h:1", "the password is empty"),
            (
                "ss://2022-blake3-aes-128-gcm:x@h:1",
                "`openssl rand -base64 16` makes one",
            ),
            ("ss://aes-128-gcm:x@h", "names no port"),
            ("ss://aes-128-gcm:x@h:0", "names no port"),
            ("ss://aes-128-gcm:x@h:+1", "names no port"),
            (
                "ss://aes-128-gcm:x@:1",
                "names no host that can be read (empty host)",
            ),
            ("ss://aes-128-gcm:x@h:1/x", "takes no path"),
            (
                "ss://aes-128-gcm:x@h:1?x=y",
                "takes no query other than plugin",
            ),
            (
                "ss://aes-128-gcm:x@h:1/?plugin=obfs-local%3Bobfs%3Dhttp",
                "wants the plugin \"obfs-local\"",
            ),
        ] {
            let error = refused(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_leaks(before in "\\PC{0,12}", after in "\\PC{0,20}", secret in "[A-Z]{12,24}") {
            for text in [
                format!("ss://aes-128-gcm:{before}{secret}@{after}"),
                format!("ss://aes-128-gcm:{secret}@h:1{after}"),
                format!("ss://{}@h:1", BASE64.encode(format!("aes-128-gcm:{secret}{before}"))),
                format!("ss://{}", BASE64.encode(format!("2022-blake3-aes-128-gcm:{secret}{before}@h:1"))),
            ] {
                let shown = match text.parse::<ShadowsocksServer>() {
                    Ok(server) => format!("{server} {server:?}"),
                    Err(error) => format!("{error} {error:?}"),
                };
                prop_assert!(!shown.contains(&secret), "{}", shown);
            }
        }

        #[test]
        fn a_password_comes_through_each_form(password in proptest::collection::vec(any::<u8>(), 1..40), port in 1..=u16::MAX) {
            let user = [b"aes-256-gcm:", &password[..]].concat();
            let escaped: String = password.iter().map(|byte| format!("%{byte:02x}")).collect();
            let whole = [&user[..], format!("@192.0.2.1:{port}").as_bytes()].concat();
            let keys = Keys::new(Method::Aes256Gcm, &password).expect("a password");
            for text in [
                format!("ss://{}@192.0.2.1:{port}", BASE64.encode(&user)),
                format!("ss://aes-256-gcm:{escaped}@192.0.2.1:{port}/"),
                format!("ss://{}#x", BASE64.encode(whole)),
            ] {
                let server = server(&text);
                prop_assert_eq!(&*server.keys, &keys);
                prop_assert_eq!(server.port, port);
            }
        }
    }
}
