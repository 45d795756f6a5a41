//! Writers of every format, to read again what was read.

use std::fmt::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;
use tproxy_userspace::policy::aggregate::aggregate;
use tproxy_userspace::policy::domain::Domain;
use tproxy_userspace::policy::formats::{Entries, Format};

use crate::{lists, write};

/// Those of the entries for which the format has words.
pub fn what_it_can_say(format: Format, entries: &Entries) -> Entries {
    let mut kept = entries.clone();
    kept.passed_over.clear();
    kept.prefixes = aggregate(&kept.prefixes);
    kept.prefixes.retain(|prefix| prefix_fits(format, prefix));
    kept.domains.retain(|domain| domain_fits(format, domain));
    if format == Format::Mrs && !kept.domains.is_empty() {
        // A file has either names or addresses.
        kept.prefixes.clear();
    }
    kept
}

fn prefix_fits(format: Format, prefix: &IpNet) -> bool {
    match format {
        Format::GeoSite | Format::Dnsmasq | Format::Hosts | Format::AdGuard => false,
        // The number of its addresses has 32 bits.
        Format::Delegated => !matches!(prefix, IpNet::V4(prefix) if prefix.prefix_len() == 0),
        // The addresses of IPv4 are ::/96 of its tree.
        Format::Mmdb => match prefix {
            IpNet::V4(_) => true,
            IpNet::V6(prefix) => u128::from(prefix.network()) >> 32 != 0,
        },
        // IPv4 within IPv6 is written as IPv4.
        Format::Mrs => [prefix.network(), prefix.broadcast()]
            .into_iter()
            .all(|end| end.is_ipv4() || end.to_canonical() == end),
        Format::Plain
        | Format::GeoIp
        | Format::Nft
        | Format::NftJson
        | Format::Ipset
        | Format::Srs
        | Format::SingBox
        | Format::Mihomo
        | Format::Clash => true,
    }
}

fn domain_fits(format: Format, domain: &Domain) -> bool {
    let own = |text: &String| text.parse::<IpAddr>().is_ok() || text.contains("local");
    match (format, domain) {
        (
            Format::GeoIp
            | Format::Mmdb
            | Format::Delegated
            | Format::Nft
            | Format::NftJson
            | Format::Ipset,
            _,
        ) => false,
        (Format::Srs | Format::SingBox, _) => true,
        (Format::GeoSite, Domain::Below(_)) => false,
        (Format::GeoSite, _) => true,
        (_, Domain::Keyword(_) | Domain::Regex(_)) => false,
        (Format::Dnsmasq, Domain::Full(_)) => false,
        // An address in place of a name is an address, and some names are the machine's own.
        (Format::Hosts, Domain::Full(text)) => {
            !own(text) && text != "broadcasthost" && !text.starts_with("ip6-")
        }
        (Format::Hosts, _) => false,
        (Format::AdGuard, Domain::Suffix(text) | Domain::Below(text) | Domain::Full(text)) => {
            !own(text)
        }
        (Format::Mrs | Format::Plain | Format::Mihomo | Format::Clash | Format::Dnsmasq, _) => true,
    }
}

/// A file of this format with these entries, as the list `cn` where it has many.
pub fn written(format: Format, entries: &Entries) -> Vec<u8> {
    let Entries {
        prefixes, domains, ..
    } = entries;
    match format {
        Format::Plain | Format::Mihomo => lines(prefixes, domains, "", |domain| match domain {
            Domain::Suffix(name) => format!("domain:{name}"),
            other => other.to_string(),
        }),
        Format::GeoIp => write::geoip("CN", prefixes, false),
        Format::GeoSite => {
            let domains: Vec<(u8, &str, &[&str])> = domains
                .iter()
                .map(|domain| {
                    let kind = match domain {
                        Domain::Keyword(_) => 0,
                        Domain::Regex(_) => 1,
                        Domain::Suffix(_) | Domain::Below(_) => 2,
                        Domain::Full(_) => 3,
                    };
                    (kind, domain.text().as_str(), &[][..])
                })
                .collect();
            write::geosite("CN", &domains)
        }
        Format::Mmdb => {
            let networks: Vec<_> = prefixes.iter().map(|prefix| (*prefix, 0)).collect();
            write::mmdb(24, 6, &networks, &[write::Value::Text("cn")], false)
        }
        Format::Delegated => prefixes
            .iter()
            .map(|prefix| match prefix {
                IpNet::V4(prefix) => {
                    let count = 1_u64 << (32 - prefix.prefix_len());
                    format!(
                        "apnic|CN|ipv4|{}|{count}|20110414|allocated\n",
                        prefix.network()
                    )
                }
                IpNet::V6(prefix) => {
                    let length = prefix.prefix_len();
                    format!(
                        "apnic|CN|ipv6|{}|{length}|20110414|allocated\n",
                        prefix.network()
                    )
                }
            })
            .collect::<String>()
            .into(),
        Format::Nft => format!("elements = {{ {} }}", joined(prefixes, ", ")).into(),
        Format::NftJson => format!(
            "{{\"nftables\": [{{\"set\": {{\"elem\": [\"{}\"]}}}}]}}",
            joined(prefixes, "\", \"")
        )
        .into(),
        Format::Ipset => lines(prefixes, &[], "add cn ", |_| String::new()),
        Format::Srs => srs(prefixes, domains),
        Format::SingBox => json(prefixes, domains),
        Format::Mrs => mrs(prefixes, domains),
        Format::Clash => lines(prefixes, domains, "IP-CIDR,", |domain| match domain {
            Domain::Suffix(name) => format!("DOMAIN-SUFFIX,{name}"),
            Domain::Below(name) => format!("- '.{name}'"),
            other => format!("DOMAIN,{}", other.text()),
        }),
        Format::Dnsmasq => lines(&[], domains, "", |domain| match domain {
            Domain::Below(name) => format!("server=/*.{name}/192.0.2.1#53"),
            other => format!("ipset=/{}/a,b", other.text()),
        }),
        Format::Hosts => lines(&[], domains, "", |domain| {
            format!("0.0.0.0 {}", domain.text())
        }),
        Format::AdGuard => lines(&[], domains, "", |domain| match domain {
            Domain::Suffix(name) => format!("||{name}^"),
            Domain::Below(name) => format!("||*.{name}^$important"),
            other => other.text().clone(),
        }),
    }
}

fn packed(format: Format, bytes: &[u8]) -> Vec<u8> {
    lists::packed(format, bytes).expect("it is a format that is compressed")
}

fn joined(prefixes: &[IpNet], between: &str) -> String {
    let texts: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    texts.join(between)
}

fn lines(
    prefixes: &[IpNet],
    domains: &[Domain],
    start: &str,
    domain: impl Fn(&Domain) -> String,
) -> Vec<u8> {
    let mut text = String::new();
    for prefix in prefixes {
        writeln!(text, "{start}{prefix}").expect("memory takes everything");
    }
    for entry in domains {
        text.push_str(&domain(entry));
        text.push('\n');
    }
    text.into()
}

fn ranges(prefixes: &[IpNet]) -> Vec<(IpAddr, IpAddr)> {
    prefixes
        .iter()
        .map(|prefix| (prefix.network(), prefix.broadcast()))
        .collect()
}

/// The texts of those domains that `pick` takes.
fn texts(domains: &[Domain], pick: fn(&Domain) -> bool) -> Vec<&str> {
    domains
        .iter()
        .filter(|domain| pick(domain))
        .map(|domain| domain.text().as_str())
        .collect()
}

fn srs(prefixes: &[IpNet], domains: &[Domain]) -> Vec<u8> {
    let names: Vec<String> = domains
        .iter()
        .filter_map(|domain| match domain {
            Domain::Suffix(name) => Some(format!("\n{name}")),
            Domain::Below(name) => Some(format!("\r.{name}")),
            Domain::Full(name) => Some(name.clone()),
            Domain::Keyword(_) | Domain::Regex(_) => None,
        })
        .collect();
    let keywords = texts(domains, |domain| matches!(domain, Domain::Keyword(_)));
    let regexes = texts(domains, |domain| matches!(domain, Domain::Regex(_)));
    let rule = [
        write::srs_names(&names),
        write::srs_texts(3, &keywords),
        write::srs_texts(4, &regexes),
        write::srs_addresses(6, &ranges(prefixes)),
    ];
    let rules = [write::varint(1), write::srs_rule(&rule, false)].concat();
    packed(Format::Srs, &rules)
}

fn json(prefixes: &[IpNet], domains: &[Domain]) -> Vec<u8> {
    let quoted = |texts: Vec<String>| {
        let texts: Vec<String> = texts.iter().map(|text| in_json(text)).collect();
        format!("[{}]", texts.join(","))
    };
    let owned = |texts: Vec<&str>| texts.into_iter().map(str::to_owned).collect();
    let suffixes = domains
        .iter()
        .filter_map(|domain| match domain {
            Domain::Suffix(name) => Some(name.clone()),
            Domain::Below(name) => Some(format!(".{name}")),
            _ => None,
        })
        .collect();
    let lists = [
        (
            "ip_cidr",
            prefixes.iter().map(ToString::to_string).collect(),
        ),
        ("domain_suffix", suffixes),
        (
            "domain",
            owned(texts(domains, |domain| matches!(domain, Domain::Full(_)))),
        ),
        (
            "domain_keyword",
            owned(texts(domains, |domain| {
                matches!(domain, Domain::Keyword(_))
            })),
        ),
        (
            "domain_regex",
            owned(texts(domains, |domain| matches!(domain, Domain::Regex(_)))),
        ),
    ];
    let lists = lists.map(|(key, list)| format!("\"{key}\":{}", quoted(list)));
    format!("{{\"version\":3,\"rules\":[{{{}}}]}}", lists.join(",")).into()
}

/// A text in JSON (RFC 8259 section 7).
fn in_json(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        if character.is_control() || "\"\\".contains(character) {
            let mut units = [0; 2];
            for unit in character.encode_utf16(&mut units) {
                write!(quoted, "\\u{unit:04x}").expect("memory takes everything");
            }
        } else {
            quoted.push(character);
        }
    }
    quoted.push('"');
    quoted
}

fn mrs(prefixes: &[IpNet], domains: &[Domain]) -> Vec<u8> {
    if domains.is_empty() {
        return packed(Format::Mrs, &write::mrs_addresses(&ranges(prefixes)));
    }
    let names: Vec<String> = domains
        .iter()
        .flat_map(|domain| match domain {
            Domain::Suffix(name) => vec![name.clone(), format!("+.{name}")],
            Domain::Below(name) => vec![format!("+.{name}")],
            other => vec![other.text().clone()],
        })
        .collect();
    packed(Format::Mrs, &write::mrs_names(&names))
}
