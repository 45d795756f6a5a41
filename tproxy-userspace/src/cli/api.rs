//! What the control API is told of a run and its configuration, and the commands that only ask it.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use tproxy_common::abi::{Counter, Reason, Settings, Traffic};
use tproxy_userspace::config::{Config, Rule};
use tproxy_userspace::control::account::{Account, account};
use tproxy_userspace::control::place::Place;
use tproxy_userspace::data::Bytes;
use tproxy_userspace::observe::api::{Access, Direct, Facts, Kernel, Prepared, RuleFact, Teller};
use tproxy_userspace::observe::log::Format;
use tproxy_userspace::observe::socket::Request;
use tproxy_userspace::policy::rule::Protocol;

use super::asking::asked;
use super::lists::DIRECT_DOMAINS;
use super::status::PATIENCE;
use super::{ReadArgs, output, pinned_maps};

/// How long a reload may take: it looks names up, and waits for other commands.
const RELOAD_PATIENCE: Duration = Duration::from_mins(1);
/// Entries of a condition that are shown.
const SHOWN: usize = 3;

/// Makes ready to listen by TCP as the configuration says.
///
/// # Errors
/// When the token cannot be read, or an address is not to be had.
pub fn prepare(teller: &Teller, config: &Config) -> Result<Prepared> {
    let api = &config.api;
    api.check()?;
    let wanted: Option<(&[SocketAddr], Access)> = api.token()?.map(|token| {
        let access = Access {
            token,
            origins: api.origins.clone(),
            hosts: api.hosts.clone(),
            dashboard: api.dashboard.clone(),
        };
        (&*api.listen, access)
    });
    Ok(teller.prepare(wanted)?)
}

/// What the programs of a gateway have counted, by their pins.
pub struct Pinned(pub Place);

impl Kernel for Pinned {
    fn counters(&self) -> Result<Vec<(Reason, Counter)>, String> {
        told(pinned_maps(&self.0).and_then(|maps| Ok(maps.counters()?)))
    }

    fn direct(&self) -> Result<Direct, String> {
        told(direct(&self.0))
    }
}

fn told<T>(result: Result<T>) -> Result<T, String> {
    result.map_err(|error| output::one_message(&error))
}

/// What devices sent and got past the proxy.
///
/// # Errors
/// When nothing is attached, or it cannot be read.
pub fn direct(place: &Place) -> Result<Direct> {
    let maps = pinned_maps(place)?;
    let Account { devices, networks } = account(&maps)?;
    Ok(Direct {
        is_counted: maps.settings()?.has(Settings::ACCOUNT),
        devices: bytes_of(devices),
        networks: bytes_of(networks),
    })
}

fn bytes_of<K>(traffic: Vec<(K, Traffic)>) -> Vec<(K, Bytes)> {
    let bytes = |traffic: Traffic| Bytes {
        up: traffic.up.bytes,
        down: traffic.down.bytes,
    };
    let each = traffic.into_iter();
    each.map(|(key, traffic)| (key, bytes(traffic))).collect()
}

/// What of a configuration is told to others.
pub fn facts(config: &Config) -> Facts {
    let mut rules: Vec<RuleFact> = config.rules.iter().map(rule).collect();
    if let Some(dns) = &config.dns
        && !dns.direct_domains.is_empty()
    {
        rules.push(RuleFact {
            name: DIRECT_DOMAINS.to_owned(),
            kind: "Domain",
            conditions: some(&dns.direct_domains),
            outbound: "direct".to_owned(),
        });
    }
    Facts { rules }
}

fn rule(rule: &Rule) -> RuleFact {
    let mut conditions: Vec<(&str, String)> = Vec::new();
    let mut add = |kind, text: String| {
        if !text.is_empty() {
            conditions.push((kind, text));
        }
    };
    add("Domain", some(&rule.domain));
    let prefixes = [some(&rule.prefix), some(&rule.prefix_files)];
    add(
        "IPCIDR",
        prefixes
            .iter()
            .filter(|text| !text.is_empty())
            .cloned()
            .collect::<Vec<_>>()
            .join(", "),
    );
    add("SrcIPCIDR", some(&rule.source));
    add("DstPort", some(&rule.port));
    let protocol = rule.protocol.map(|protocol| match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    });
    add("Network", protocol.unwrap_or_default().to_owned());
    let kind = match &conditions[..] {
        [] => "Match",
        [(kind, _)] => kind,
        _ => "AND",
    };
    let texts: Vec<String> = conditions.iter().map(|(_, text)| text.clone()).collect();
    RuleFact {
        name: rule.name.clone(),
        kind,
        conditions: texts.join(" & "),
        outbound: rule.outbound.clone(),
    }
}

/// The first entries of a condition.
fn some(entries: &[impl ToString]) -> String {
    let mut text = entries
        .iter()
        .take(SHOWN)
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ");
    if entries.len() > SHOWN {
        text.push_str(&format!(", and {} more", entries.len() - SHOWN));
    }
    text
}

/// A format of the log, by its word.
pub fn log_format(word: &str) -> Result<Format, &'static str> {
    match word {
        "auto" => Ok(Format::Auto),
        "human" => Ok(Format::Human),
        "json" => Ok(Format::Json),
        _ => Err("write auto, human or json"),
    }
}

/// `reload`: as SIGHUP, with the result as answer.
pub fn reload() -> Result<ExitCode> {
    let doing = "reloading the configuration (the old one goes on to hold)";
    let answer = asked(&Place::current()?, doing, &Request::Reload, RELOAD_PATIENCE)?;
    let told = answer["reloaded"].as_str().unwrap_or_default();
    output::text_out(&format!("reloaded: {told}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// `log`: what the log tells.
pub fn log(filter: Option<String>, args: &ReadArgs) -> Result<ExitCode> {
    let place = Place::current()?;
    let doing = "asking for the log's filter";
    let answer = asked(&place, doing, &Request::Log { filter }, PATIENCE)?;
    if args.json {
        output::json(&answer)?;
    } else {
        let filter = answer["filter"].as_str().unwrap_or_default();
        output::text_out(&format!("the log tells {filter}\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn rules_are_told_in_a_few_words() {
        let text = "[[outbound]]\nname = \"far\"\nurl = \"socks5://u:secret@192.0.2.1:1\"\n\
            [[rule]]\nname = \"video\"\ndomain = [\"a.example\", \"b.example\", \"c.example\", \"d.example\"]\noutbound = \"far\"\n\
            [[rule]]\nport = [443, \"8000-8999\"]\nprotocol = \"udp\"\noutbound = \"block\"\n";
        let config = Config::parse(text, Path::new("x.toml")).expect("sound");
        let facts = facts(&config);
        let [video, second] = &facts.rules[..] else {
            panic!("{facts:?}");
        };
        assert_eq!((video.kind, &*video.outbound), ("Domain", "far"));
        assert_eq!(
            video.conditions,
            "a.example, b.example, c.example, and 1 more"
        );
        assert_eq!((second.kind, &*second.name), ("AND", "rule 2"));
        assert_eq!(second.conditions, "443, 8000-8999 & udp");
        assert!(!format!("{facts:?}").contains("secret"));
    }
}
