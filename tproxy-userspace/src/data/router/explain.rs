//! What the rules say of something, for a person who wants to know why.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Router;
use crate::policy::rule::{Protocol, Query};

/// What the proxy does with a connection or datagram, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The proxy's own resolver answers it, so it takes no outbound.
    pub resolver: Option<Resolving>,
    /// The rule that decides. None: no rule is about it, so it is the default.
    pub rule: Option<NamedRule>,
    /// The outbound that it takes.
    pub outbound: Taken,
    /// The name that it asks for is read from what the device sends.
    pub reads_name: bool,
    /// The outbound is asked for that name rather than for the address.
    pub by_name: bool,
    /// Rules that a name could make decide, though it is not known here: each with another outbound.
    pub turned_by_name: Vec<NamedRule>,
}

/// How a question for a name is answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolving {
    /// The group of DNS servers that are asked for the name, "direct" or "proxy". None: the name is not known.
    pub group: Option<String>,
}

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedRule {
    /// Its place, from 1.
    pub place: usize,
    /// What it is called.
    pub name: String,
    /// The name of its outbound.
    pub outbound: String,
}

/// An outbound.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// What it is called.
    pub name: String,
    /// The group that has it, if the rule names one.
    pub group: Option<String>,
    /// Its URL without a password.
    pub url: String,
    /// The addresses of its server, in the order in which they are tried.
    pub servers: Vec<SocketAddr>,
}

impl Router {
    /// What becomes of a query. A name counts only if it would be read.
    #[must_use]
    pub fn explain(&self, query: &Query<'_>) -> Explained {
        let unnamed = Query {
            name: None,
            ..*query
        };
        let sniff = self.sniff(&unnamed);
        let seen = Query {
            name: query.name.filter(|_| sniff.is_some()),
            ..*query
        };
        let choice = self.choose(&seen);
        let way = &choice.way;
        let turned = if seen.name.is_none() {
            let places = self.rules.turned_by_name(&unnamed);
            places.map(|place| self.named_rule(place)).collect()
        } else {
            Vec::new()
        };
        Explained {
            resolver: None,
            rule: self
                .rules
                .decide(&seen)
                .rule
                .map(|(place, _)| self.named_rule(place)),
            outbound: Taken {
                name: way.name.to_string(),
                group: choice.group().map(ToOwned::to_owned),
                url: way.outbound.to_string(),
                servers: way.candidates(),
            },
            reads_name: sniff.is_some(),
            // Datagrams keep their addresses.
            by_name: seen.name.is_some()
                && query.protocol == Protocol::Tcp
                && sniff.is_some_and(|sniff| sniff.rewrite),
            turned_by_name: turned,
        }
    }

    fn named_rule(&self, place: usize) -> NamedRule {
        let (name, exit) = &self.of_rules[place];
        NamedRule {
            place: place + 1,
            name: name.to_string(),
            outbound: exit.name().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::data::router::Sniff;
    use crate::data::way::Way;
    use crate::policy::rule::{Rule, Rules};

    fn rule(name: &str, domain: Option<&str>, port: Option<u16>, outbound: &str) -> Rule {
        Rule {
            name: name.to_owned(),
            domain: domain.map(|domain| vec![domain.parse().expect("a domain")]),
            prefix: None,
            source: None,
            port: port.map(|port| vec![port.to_string().parse().expect("a port")]),
            protocol: None,
            outbound: outbound.to_owned(),
        }
    }

    fn router(sniff: bool) -> Router {
        let mut ways = [
            Way::fixed("direct://"),
            Way::fixed("socks5://me:secret@192.0.2.9:1080"),
        ];
        ways[0].name = "plain".into();
        ways[1].name = "fast".into();
        let rules = [
            rule("video", Some("video.example"), None, "fast"),
            rule("same", Some("other.example"), None, "plain"),
            rule("mail", None, Some(25), "fast"),
        ];
        let rules = Rules::new(rules, "plain").expect("rules");
        let sniff = sniff.then_some(Sniff {
            timeout: Duration::from_millis(300),
            rewrite: false,
        });
        Router::with_rules(ways.into(), rules, sniff)
    }

    fn query(port: u16, name: Option<&str>) -> Query<'_> {
        Query {
            protocol: Protocol::Tcp,
            source: "192.0.2.7:40000".parse().expect("a literal"),
            destination: SocketAddr::new([198, 51, 100, 1].into(), port),
            name,
        }
    }

    #[test]
    fn a_rule_is_told_with_its_place_and_no_password() {
        let explained = router(true).explain(&query(25, None));
        let rule = explained.rule.expect("a rule");
        assert_eq!((rule.place, &*rule.name), (3, "mail"));
        assert_eq!(explained.outbound.name, "fast");
        assert!(!explained.outbound.url.contains("secret"));
        assert_eq!(
            explained.outbound.servers,
            ["192.0.2.9:1080".parse().expect("a literal")]
        );
        // A rule by name that comes before but has the same outbound turns nothing.
        let turning = explained.turned_by_name.iter().map(|rule| &*rule.name);
        assert_eq!(turning.collect::<Vec<_>>(), ["same"]);
    }

    #[test]
    fn a_name_counts_where_it_is_read() {
        let unknown = router(true).explain(&query(443, None));
        assert_eq!((unknown.rule, &*unknown.outbound.name), (None, "plain"));
        assert!(unknown.reads_name);
        let [turning] = &unknown.turned_by_name[..] else {
            panic!("{:?}", unknown.turned_by_name);
        };
        assert_eq!((turning.place, &*turning.name), (1, "video"));

        let named = router(true).explain(&query(443, Some("a.video.example")));
        assert_eq!(named.rule.expect("a rule").name, "video");
        assert_eq!(named.outbound.name, "fast");
        assert!(named.turned_by_name.is_empty());

        let unread = router(false).explain(&query(443, Some("a.video.example")));
        assert_eq!((unread.rule, &*unread.outbound.name), (None, "plain"));
        assert!(!unread.reads_name);
        assert_eq!(unread.turned_by_name.len(), 1);
    }
}
