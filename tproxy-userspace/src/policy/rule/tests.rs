use std::hint::black_box;
use std::time::Instant;

use proptest::prelude::*;

use super::*;

fn rule(outbound: &str) -> Rule {
    Rule {
        name: format!("to {outbound}"),
        domain: None,
        prefix: None,
        source: None,
        port: None,
        protocol: None,
        outbound: outbound.to_owned(),
    }
}

fn domains(texts: &[&str]) -> Option<Vec<Domain>> {
    Some(texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn prefixes(texts: &[&str]) -> Option<Vec<IpNet>> {
    Some(texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn ports(texts: &[&str]) -> Option<Vec<PortRange>> {
    Some(texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn query<'q>(
    protocol: Protocol,
    source: &str,
    destination: &str,
    name: Option<&'q str>,
) -> Query<'q> {
    Query {
        protocol,
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        name,
    }
}

fn tcp<'q>(destination: &str, name: Option<&'q str>) -> Query<'q> {
    query(Protocol::Tcp, "192.168.0.2:50000", destination, name)
}

#[test]
fn without_rules_everything_takes_the_default() {
    let rules = Rules::new([], "proxy").unwrap();
    let query = tcp("192.0.2.1:443", Some("x.com"));
    let decision = rules.decide(&query);
    assert_eq!((decision.rule, decision.outbound), (None, "proxy"));
    let query = Query {
        name: None,
        ..query
    };
    assert!(!rules.needs_name(&query));
}

#[test]
fn all_conditions_must_hold_and_any_entry_of_each() {
    let all = Rule {
        domain: domains(&["x.com", "full:y.com"]),
        prefix: prefixes(&["192.0.2.0/24", "2001:db8::/32"]),
        source: prefixes(&["192.168.0.0/24", "fd00::/8"]),
        port: ports(&["80", "443-444"]),
        protocol: Some(Protocol::Tcp),
        ..rule("a")
    };
    let rules = Rules::new([all], "z").unwrap();
    let (source, destination) = ("192.168.0.2:1", "192.0.2.1:443");
    for (protocol, source, destination, name, outbound) in [
        (Protocol::Tcp, source, destination, Some("www.x.com"), "a"),
        (Protocol::Tcp, source, destination, Some("y.com"), "a"),
        (
            Protocol::Tcp,
            "[fd00::1]:1",
            "[2001:db8::1]:444",
            Some("x.com"),
            "a",
        ),
        (
            Protocol::Tcp,
            "[::ffff:192.168.0.2]:1",
            "[::ffff:192.0.2.1]:80",
            Some("x.com"),
            "a",
        ),
        (Protocol::Udp, source, destination, Some("x.com"), "z"),
        (
            Protocol::Tcp,
            "192.168.1.2:1",
            destination,
            Some("x.com"),
            "z",
        ),
        (Protocol::Tcp, source, "192.0.3.1:443", Some("x.com"), "z"),
        (Protocol::Tcp, source, "192.0.2.1:445", Some("x.com"), "z"),
        (Protocol::Tcp, source, destination, Some("a.y.com"), "z"),
        (Protocol::Tcp, source, destination, None, "z"),
    ] {
        let query = query(protocol, source, destination, name);
        assert_eq!(rules.decide(&query).outbound, outbound, "{query:?}");
    }
}

#[test]
fn the_first_rule_that_matches_decides() {
    let rules = Rules::new(
        [
            Rule {
                domain: domains(&["x.com"]),
                port: ports(&["443"]),
                ..rule("a")
            },
            Rule {
                prefix: prefixes(&["192.0.2.0/24"]),
                ..rule("b")
            },
            Rule {
                domain: domains(&["keyword:x"]),
                ..rule("c")
            },
            rule("d"),
            Rule {
                domain: domains(&["y.com"]),
                ..rule("e")
            },
        ],
        "z",
    )
    .unwrap();
    assert_eq!(rules.len(), 5);
    for (destination, name, index) in [
        ("192.0.2.1:443", Some("x.com"), 0),
        ("192.0.2.1:80", Some("x.com"), 1),
        ("192.0.3.1:80", Some("x.com"), 2),
        ("192.0.3.1:80", Some("y.com"), 3),
        ("192.0.3.1:80", None, 3),
        ("192.0.2.1:443", None, 1),
    ] {
        let query = tcp(destination, name);
        let decision = rules.decide(&query);
        let outbound = ["a", "b", "c", "d", "e"][index];
        assert_eq!(decision.outbound, outbound, "{query:?}");
        let name = format!("to {outbound}");
        assert_eq!(decision.rule, Some((index, &*name)));
    }
}

#[test]
fn a_name_is_asked_for_only_where_it_matters() {
    let rules = Rules::new(
        [
            Rule {
                prefix: prefixes(&["192.0.2.0/24"]),
                ..rule("a")
            },
            Rule {
                domain: domains(&["x.com"]),
                port: ports(&["443"]),
                ..rule("b")
            },
            Rule {
                domain: domains(&["y.com"]),
                protocol: Some(Protocol::Tcp),
                port: ports(&["80"]),
                ..rule("z")
            },
        ],
        "z",
    )
    .unwrap();
    for (destination, name, needed) in [
        // An earlier rule decides.
        ("192.0.2.1:443", None, false),
        ("192.0.3.1:443", None, true),
        ("192.0.3.1:443", Some("x.com"), false),
        // The other conditions of no rule with names hold.
        ("192.0.3.1:22", None, false),
        // It would be the same outbound.
        ("192.0.3.1:80", None, false),
    ] {
        let query = tcp(destination, name);
        assert_eq!(rules.needs_name(&query), needed, "{query:?}");
    }
}

#[test]
fn an_empty_list_holds_never() {
    let rules = Rules::new(
        [
            Rule {
                domain: Some(Vec::new()),
                ..rule("a")
            },
            Rule {
                prefix: Some(Vec::new()),
                ..rule("b")
            },
            Rule {
                port: Some(Vec::new()),
                ..rule("c")
            },
        ],
        "z",
    )
    .unwrap();
    let query = tcp("192.0.2.1:443", Some("x.com"));
    assert_eq!(rules.decide(&query).outbound, "z");
}

#[test]
fn a_bad_domain_is_named() {
    let bad = Rule {
        domain: Some(vec![Domain::Regex("(".to_owned())]),
        ..rule("a")
    };
    let error = Rules::new([bad], "z").unwrap_err().to_string();
    assert!(
        error.starts_with("the domains of the rules are of no use: `(` is not a usable"),
        "{error}"
    );
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let some = |texts: &'static [&'static str]| {
        prop::option::of(prop::sample::subsequence(texts, 0..=texts.len()))
    };
    (
        some(&["x.com", ".y.com", "full:com", "keyword:a"]),
        some(&[
            "192.0.2.0/24",
            "192.0.2.128/25",
            "198.51.100.0/24",
            "2001:db8::/32",
        ]),
        some(&["192.168.0.0/24", "192.168.0.2/32", "fd00::/96"]),
        some(&["443", "80-90"]),
        prop::option::of(prop::sample::select(&[Protocol::Tcp, Protocol::Udp][..])),
        "[abz]",
    )
        .prop_map(|(domain, prefix, source, port, protocol, outbound)| Rule {
            domain: domain.and_then(|texts| domains(&texts)),
            prefix: prefix.and_then(|texts| prefixes(&texts)),
            source: source.and_then(|texts| prefixes(&texts)),
            port: port.and_then(|texts| ports(&texts)),
            protocol,
            ..rule(&outbound)
        })
}

fn matches(rule: &Rule, query: &Query<'_>) -> bool {
    let any = |prefixes: &Option<Vec<IpNet>>, address: &IpAddr| {
        let contains = |prefix: &IpNet| prefix.contains(address);
        prefixes
            .as_ref()
            .is_none_or(|prefixes| prefixes.iter().any(contains))
    };
    let named = rule.domain.as_ref().is_none_or(|domains| {
        let set = DomainSet::new(domains.iter().cloned().zip(0..)).unwrap();
        query.name.is_some_and(|name| set.lookup(name).is_some())
    });
    let port = query.destination.port();
    named
        && any(&rule.prefix, &query.destination.ip())
        && any(&rule.source, &query.source.ip())
        && rule
            .port
            .as_ref()
            .is_none_or(|ports| ports.iter().any(|range| range.contains(port)))
        && rule
            .protocol
            .is_none_or(|protocol| protocol == query.protocol)
}

const NAMES: [&str; 6] = ["x.com", "a.x.com", "y.com", "b.y.com", "com", "a.net"];

proptest! {
    #[test]
    fn decides_as_a_naive_search_does(
        list in prop::collection::vec(any_rule(), 0..8),
        protocol in prop::sample::select(&[Protocol::Tcp, Protocol::Udp][..]),
        source in prop::sample::select(&["192.168.0.2:1", "192.168.0.3:1", "10.0.0.1:1", "[fd00::1:0:1]:1"][..]),
        // The third and the last are between what the rules name.
        destination in prop::sample::select(&["192.0.2.1:443", "192.0.2.200:85", "193.0.0.1:443", "[2001:db8::1]:22", "[2001:db9::1]:100"][..]),
    ) {
        let rules = Rules::new(list.clone(), "z").unwrap();
        let decide = |name| {
            let query = query(protocol, source, destination, name);
            let expected = list.iter().position(|rule| matches(rule, &query));
            let decision = rules.decide(&query);
            prop_assert_eq!(decision.rule.map(|(index, _)| index), expected);
            let outbound = expected.map_or("z", |index| &*list[index].outbound);
            prop_assert_eq!(decision.outbound, outbound);
            Ok(outbound)
        };
        let without = decide(None)?;
        let needed = rules.needs_name(&query(protocol, source, destination, None));
        for name in NAMES {
            let with = decide(Some(name))?;
            prop_assert!(needed || with == without, "{} matters", name);
        }
    }
}

#[test]
fn all_asks_for_every_rule_that_could_decide_about_a_name_at_an_address() {
    let near = Rule {
        domain: domains(&["near.example"]),
        ..rule("direct")
    };
    let by = |change: fn(&mut Rule)| {
        let mut rule = rule("far");
        change(&mut rule);
        rule
    };
    for (before, direct) in [
        (by(|rule| rule.domain = domains(&["far.example"])), true),
        (
            by(|rule| rule.domain = domains(&["www.near.example"])),
            false,
        ),
        (
            by(|rule| rule.prefix = prefixes(&["198.51.100.0/24"])),
            true,
        ),
        (by(|rule| rule.prefix = prefixes(&["192.0.2.0/24"])), false),
        // Whoever it is from, and whatever port it is to.
        (by(|rule| rule.source = prefixes(&["10.0.0.9/32"])), false),
        (by(|rule| rule.port = ports(&["25"])), false),
        (by(|rule| rule.protocol = Some(Protocol::Udp)), false),
    ] {
        let rules = Rules::new([before.clone(), near.clone()], "far").unwrap();
        let all = |name: &str| {
            let address = "192.0.2.1".parse().unwrap();
            rules.all(name, address, |rule| rule == Some(1))
        };
        assert_eq!(all("www.near.example"), direct, "{before:?}");
        assert!(!all("elsewhere.example"));
        // What comes behind a rule that takes all is no matter.
        let rules = Rules::new([near.clone(), before], "far").unwrap();
        let address = "192.0.2.1".parse().unwrap();
        assert!(rules.all("near.example", address, |rule| rule == Some(0)));
    }
}

proptest! {
    /// If `all` says so, no query about that name and address is decided otherwise.
    #[test]
    fn all_means_every_query(
        list in prop::collection::vec(any_rule(), 0..5),
        name in prop::sample::select(&NAMES[..]),
        address in prop::sample::select(&["192.0.2.1", "192.0.2.200", "2001:db8::1"][..]),
        accepted in "[abz]{1,2}",
    ) {
        let rules = Rules::new(list.clone(), "z").unwrap();
        let address: IpAddr = address.parse().unwrap();
        let accept = |outbound: &str| accepted.contains(outbound);
        let all = rules.all(name, address, |rule| accept(rule.map_or("z", |rule| &list[rule].outbound)));
        let mut every = true;
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for source in ["192.168.0.2:1", "192.168.0.3:1", "10.0.0.1:1"] {
                for port in [22, 85, 443] {
                    let query = Query {
                        protocol,
                        source: source.parse().unwrap(),
                        destination: (address, port).into(),
                        name: Some(name),
                    };
                    every &= accept(rules.decide(&query).outbound);
                }
            }
        }
        prop_assert!(every || !all);
        // Without conditions about devices, ports and protocols it is exact.
        if list.iter().all(|rule| rule.source.is_none() && rule.port.is_none() && rule.protocol.is_none()) {
            prop_assert_eq!(all, every);
        }
    }
}

/// `cargo test --release -p tproxy-userspace --lib policy::rule -- --ignored --nocapture`
#[test]
#[ignore = "prints figures; run it by hand in release mode"]
fn figures() {
    let prefix = |rule: u32, entry: u32| {
        let bits = (rule * 1_000 + entry).wrapping_mul(0x9e37_79b1);
        IpNet::new(std::net::Ipv4Addr::from_bits(bits).into(), 24)
            .unwrap()
            .trunc()
    };
    let by_prefix = |index| Rule {
        prefix: Some((0..1_000).map(|entry| prefix(index, entry)).collect()),
        ..rule("a")
    };
    let by_name = |index| Rule {
        domain: Some(
            (0..1_000)
                .map(|entry| Domain::Suffix(format!("name{entry}.rule{index}.com")))
                .collect(),
        ),
        ..rule("b")
    };
    for (what, list) in [
        ("no rules", vec![]),
        ("1 rule of 1,000 prefixes", vec![by_prefix(0)]),
        ("1 rule of 1,000 names", vec![by_name(0)]),
        (
            "20 rules of 1,000 names or prefixes",
            (0..10).flat_map(|i| [by_prefix(i), by_name(i)]).collect(),
        ),
        (
            "1,000 rules of 1,000 prefixes",
            (0..1_000).map(by_prefix).collect(),
        ),
    ] {
        let rules = Rules::new(list, "z").unwrap();
        let rounds = 100_000_u32;
        let start = Instant::now();
        for round in 0..rounds {
            let destination = std::net::Ipv4Addr::from_bits(round.wrapping_mul(0x9e37_79b9));
            let query = Query {
                protocol: Protocol::Tcp,
                source: "192.168.0.2:50000".parse().unwrap(),
                destination: (destination, 443).into(),
                name: Some("www.name500.rulex.com"),
            };
            black_box(rules.decide(black_box(&query)));
        }
        println!("{what}: {:?} a decision", start.elapsed() / rounds);
    }
}
