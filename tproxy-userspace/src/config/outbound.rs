//! The address of an upstream.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use url::Url;

use super::{Refusal, nearest};
use crate::policy::prefix::excerpt;

/// The schemes that work.
const SUPPORTED: [&str; 2] = ["direct", "socks5"];
/// The schemes that are planned.
const PLANNED: [&str; 4] = ["http", "ss", "trojan", "block"];
/// The most bytes of a user name and of a password (RFC 1929).
const LONGEST_SECRET: usize = 255;
/// What every example of a SOCKS5 server looks like.
const FORM: &str = "write socks5://HOST:PORT or socks5://USER:PASSWORD@HOST:PORT";

/// What an outbound is, by the scheme of its URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `direct://`: the gateway connects itself.
    Direct,
    /// `socks5://[user:password@]host:port`: through a SOCKS5 server (RFC 1928, 1929).
    Socks5,
}

/// The URL of an outbound, checked. Neither `Display` nor `Debug` nor its JSON show the password.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OutboundUrl(Url);

impl OutboundUrl {
    /// `direct://`.
    #[must_use]
    pub fn direct() -> Self {
        Self(Url::parse("direct://").expect("a scheme alone is a URL"))
    }

    /// What kind of outbound it is.
    #[must_use]
    pub fn scheme(&self) -> Scheme {
        match self.0.scheme() {
            "direct" => Scheme::Direct,
            _ => Scheme::Socks5,
        }
    }

    /// The whole URL with the password in it, for the code that connects. Never to be printed.
    #[must_use]
    pub fn as_str_with_secret(&self) -> &str {
        self.0.as_str()
    }
}

impl FromStr for OutboundUrl {
    type Err = Refusal;

    /// # Errors
    /// When it is no URL, its scheme is not supported, or parts are missing, superfluous or too
    /// long. The error never holds a piece of the text that may be a secret.
    fn from_str(text: &str) -> Result<Self, Refusal> {
        // Whatever stands before a `://` further behind may be a password.
        let Some((scheme, _)) = text.split_once("://").filter(|(scheme, _)| {
            scheme
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        }) else {
            return Err(Refusal::new(
                "it is not a URL: it does not begin with a scheme and `://`",
                "write direct:// or socks5://HOST:PORT",
            ));
        };
        let scheme = scheme.to_ascii_lowercase();
        check_scheme(&scheme)?;
        let url = Url::parse(text)
            .map_err(|error| Refusal::new(format!("it is not a valid URL: {error}"), FORM))?;
        if scheme == "direct" {
            check_direct(&url)?;
        } else {
            check_socks5(&url)?;
        }
        Ok(Self(url))
    }
}

fn check_scheme(scheme: &str) -> Result<(), Refusal> {
    if SUPPORTED.contains(&scheme) {
        return Ok(());
    }
    let supported = "supported are direct:// and socks5://";
    if PLANNED.contains(&scheme) {
        return Err(Refusal::new(
            format!("{scheme}:// is not supported yet"),
            supported,
        ));
    }
    Err(Refusal::new(
        format!("`{}` is not a known scheme", excerpt(scheme)),
        match nearest(scheme, &SUPPORTED) {
            Some(near) => format!("did you mean {near}://? {supported}"),
            None => supported.to_owned(),
        },
    ))
}

fn check_direct(url: &Url) -> Result<(), Refusal> {
    if url.as_str() == "direct://" {
        return Ok(());
    }
    Err(Refusal::new(
        "nothing may follow direct://, since the gateway connects itself",
        "write direct://",
    ))
}

fn check_socks5(url: &Url) -> Result<(), Refusal> {
    let host = url.host_str().unwrap_or_default();
    if host.is_empty() {
        return Err(Refusal::new("the host is missing", FORM));
    }
    if host
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
        && host.parse::<Ipv4Addr>().is_err()
    {
        return Err(Refusal::new(
            format!("`{}` is not an IPv4 address", excerpt(host)),
            FORM,
        ));
    }
    if matches!(url.port(), None | Some(0)) {
        return Err(Refusal::new(
            "the port is missing",
            "write it behind the host: the usual one is socks5://HOST:1080",
        ));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(Refusal::new(
            "nothing may follow the port",
            "a `/`, `?` or `#` in a password is written %2F, %3F or %23",
        ));
    }
    let (user, password) = (url.username(), url.password().unwrap_or_default());
    if user.is_empty() != password.is_empty() {
        let missing = if user.is_empty() {
            "user name"
        } else {
            "password"
        };
        return Err(Refusal::new(
            format!("the {missing} is missing: SOCKS5 knows both or none (RFC 1929)"),
            FORM,
        ));
    }
    if decoded_length(user) > LONGEST_SECRET || decoded_length(password) > LONGEST_SECRET {
        return Err(Refusal::new(
            format!(
                "SOCKS5 has no room for a user name or password of more than {LONGEST_SECRET} bytes (RFC 1929)"
            ),
            "use a shorter one",
        ));
    }
    Ok(())
}

/// The bytes of a text when each `%41` has become one byte.
fn decoded_length(text: &str) -> usize {
    let bytes = text.as_bytes();
    let escapes = bytes
        .windows(3)
        .filter(|three| three[0] == b'%' && three[1..].iter().all(u8::is_ascii_hexdigit))
        .count();
    bytes.len() - 2 * escapes
}

impl fmt::Display for OutboundUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut url = self.0.clone();
        if url.password().is_some() && url.set_password(Some("***")).is_err() {
            return f.write_str(self.0.scheme());
        }
        f.write_str(url.as_str())
    }
}

impl fmt::Debug for OutboundUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OutboundUrl({self})")
    }
}

impl Serialize for OutboundUrl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(text: &str) -> String {
        text.parse::<OutboundUrl>().unwrap_err().to_string()
    }

    #[test]
    fn takes_the_urls_that_work() {
        for (text, shown) in [
            ("direct://", "direct://"),
            ("socks5://192.0.2.1:1080", "socks5://192.0.2.1:1080"),
            ("SOCKS5://[2001:db8::1]:1080", "socks5://[2001:db8::1]:1080"),
            ("socks5://proxy.example:1/", "socks5://proxy.example:1/"),
            ("socks5://me:s3cret@h:1080", "socks5://me:***@h:1080"),
        ] {
            let url: OutboundUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), shown);
            assert_eq!(serde_json::to_value(&url).unwrap(), shown);
        }
        assert_eq!(OutboundUrl::direct(), "direct://".parse().unwrap());
    }

    #[test]
    fn the_password_is_only_where_it_is_asked_for() {
        let url: OutboundUrl = "socks5://me:s3cret%40@h:1080".parse().unwrap();
        assert!(!format!("{url} {url:?}").contains("s3cret"));
        assert_eq!(url.as_str_with_secret(), "socks5://me:s3cret%40@h:1080");
        assert_eq!(url.scheme(), Scheme::Socks5);
    }

    #[test]
    fn refuses_with_a_remedy() {
        let form = "write socks5://HOST:PORT or socks5://USER:PASSWORD@HOST:PORT";
        for (text, error) in [
            (
                "192.0.2.1:1080",
                "it is not a URL: it does not begin with a scheme and `://`; write direct:// or socks5://HOST:PORT".to_owned(),
            ),
            (
                "ss://abc@h:1",
                "ss:// is not supported yet; supported are direct:// and socks5://".to_owned(),
            ),
            (
                "socks://h:1",
                "`socks` is not a known scheme; \
                 did you mean socks5://? supported are direct:// and socks5://".to_owned(),
            ),
            (
                "gopher://h:1",
                "`gopher` is not a known scheme; supported are direct:// and socks5://".to_owned(),
            ),
            (
                "direct://h",
                "nothing may follow direct://, since the gateway connects itself; write direct://".to_owned(),
            ),
            ("socks5://:1080", format!("it is not a valid URL: empty host; {form}")),
            ("socks5://", format!("the host is missing; {form}")),
            (
                "socks5://h",
                "the port is missing; write it behind the host: the usual one is socks5://HOST:1080"
                    .to_owned(),
            ),
            (
                "socks5://192.0.2.256:1080",
                format!("`192.0.2.256` is not an IPv4 address; {form}"),
            ),
            (
                "socks5://h:70000",
                format!("it is not a valid URL: invalid port number; {form}"),
            ),
            (
                "socks5://me@h:1080",
                format!("the password is missing: SOCKS5 knows both or none (RFC 1929); {form}"),
            ),
        ] {
            assert_eq!(refused(text), error, "{text}");
        }
        for text in [
            "socks5://h:0",
            "socks5://h:1/x",
            "socks5://h:1?x",
            "socks5://:p@h:1",
        ] {
            refused(text);
        }
    }

    #[test]
    fn secrets_have_the_length_that_the_protocol_can_carry() {
        let fits = format!("socks5://{}:p@h:1", "%41".repeat(255));
        assert!(fits.parse::<OutboundUrl>().is_ok());
        let long = format!("socks5://u:{}@h:1", "p".repeat(256));
        assert!(refused(&long).contains("255 bytes"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_or_leaks(text in "\\PC*", secret in "[A-Z]{9,20}") {
            let text = format!("socks5://u:{secret}@{text}");
            let shown = match text.parse::<OutboundUrl>() {
                Ok(url) => format!("{url} {url:?}"),
                Err(refusal) => refusal.to_string(),
            };
            prop_assert!(!shown.contains(&secret), "{}", shown);
        }
    }
}
