//! Questions of the proxy itself to its resolver: what would a device get?

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::wire::{Question, Response, ask, code, kind};
use super::{Dns, Over};

/// No other question is on the same way, so any number does.
const ID: u16 = 1;
/// The class of the Internet.
const INTERNET: u16 = 1;
/// Who asks.
const CLIENT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

impl Dns {
    /// The addresses that clients get for a name, IPv4 first; none if there are none. `name` is as
    /// [`normalize`](crate::policy::domain::name::normalize) makes it.
    ///
    /// # Errors
    /// When the DNS servers do not answer, or the name is none; says so.
    pub async fn addresses(&self, name: &str) -> Result<Vec<IpAddr>, &'static str> {
        let (v4, v6) = tokio::join!(self.one(name, kind::A), self.one(name, kind::AAAA));
        match (v4, v6) {
            (Err(error), Err(_)) => Err(error),
            (v4, v6) => Ok([v4.unwrap_or_default(), v6.unwrap_or_default()].concat()),
        }
    }

    async fn one(&self, name: &str, kind: u16) -> Result<Vec<IpAddr>, &'static str> {
        let question = Question {
            name: wire_form(name).ok_or("it is no name")?,
            kind,
            class: INTERNET,
        };
        let message = ask(ID, &question, false, false, false);
        let answer = self.answer(&message, Over::Tcp, CLIENT).await;
        let answer = answer.ok_or("the question is refused")?;
        let answer = Response::parse(answer, ID, &question);
        let answer = answer.map_err(|_| "the answer cannot be read")?;
        match answer.code {
            code::NO_ERROR | code::NX_DOMAIN => {}
            _ => return Err("no DNS server answers the question"),
        }
        Ok(answer
            .addresses
            .into_iter()
            .map(|(address, _)| address)
            .collect())
    }
}

fn wire_form(name: &str) -> Option<Box<[u8]>> {
    let mut bytes = Vec::with_capacity(name.len() + 2);
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok();
        bytes.push(length.filter(|length| (1..=63).contains(length))?);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= 255).then(|| bytes.into())
}

#[cfg(test)]
mod tests {
    use super::super::tests::{TestServer, resolver};
    use super::*;

    #[tokio::test]
    async fn a_name_has_the_addresses_that_clients_get() {
        let direct = TestServer::with("192.0.2.1").await;
        let dns = resolver(&[&direct.url("udp")], &[]);
        let one = ["192.0.2.1".parse().expect("a literal")];
        assert_eq!(dns.addresses("a.direct.example").await, Ok(one.into()));
        assert_eq!(dns.addresses("a..b").await, Err("it is no name"));
        // No server is for it.
        assert!(dns.addresses("other.example").await.is_err());
    }

    #[test]
    fn names_become_labels() {
        assert_eq!(
            wire_form("www.a").as_deref(),
            Some(&b"\x03www\x01a\x00"[..])
        );
        assert_eq!(wire_form(""), None);
        assert_eq!(wire_form(&"a".repeat(64)), None);
        assert_eq!(wire_form(&["a"; 128].join(".")), None);
    }
}
