//! Who translates source addresses on this machine: the rules of nft and iptables, as far as
//! their conditions can be understood.

use std::collections::BTreeSet;

use ipnet::IpNet;
use serde_json::Value;

/// Deeper calls of chains are a loop, which neither program lets in.
const DEEPEST: usize = 16;

/// How sure it is that packets are translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Covered {
    /// No rule does it.
    No,
    /// A rule does it under a condition that is not understood here.
    Perhaps,
    /// A rule does it.
    Yes,
}

/// The values that a rule asks for, or those that it leaves out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Among<T> {
    pub(super) values: Vec<T>,
    pub(super) negated: bool,
}

impl<T> Among<T> {
    pub(super) fn holds(&self, is: impl Fn(&T) -> bool) -> bool {
        self.values.iter().any(is) != self.negated
    }
}

/// A rule that translates source addresses, with all that must be true before it does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translates {
    not_v4: bool,
    not_v6: bool,
    arrive: Vec<Among<String>>,
    leave: Vec<Among<String>>,
    source: Vec<Among<IpNet>>,
    /// There are conditions of another kind.
    others: bool,
}

impl Translates {
    /// Does it translate packets from `source` that arrive by one of the links `arrive` and leave by
    /// one of the links `leave`?
    #[must_use]
    pub fn covers(
        &self,
        source: IpNet,
        arrive: &BTreeSet<String>,
        leave: &BTreeSet<String>,
    ) -> Covered {
        let excluded = match source {
            IpNet::V4(_) => self.not_v4,
            IpNet::V6(_) => self.not_v6,
        };
        let by = |conditions: &[Among<String>], links: &BTreeSet<String>| {
            links.iter().any(|link| {
                let meets =
                    |condition: &Among<String>| condition.holds(|name| is_named(name, link));
                conditions.iter().all(meets)
            })
        };
        let from = self.source.iter().all(|condition| {
            condition.holds(|prefix| prefix.contains(&source) || source.contains(prefix))
        });
        let meant = !excluded && from && by(&self.arrive, arrive) && by(&self.leave, leave);
        match (meant, self.others) {
            (false, _) => Covered::No,
            (true, true) => Covered::Perhaps,
            (true, false) => Covered::Yes,
        }
    }

    /// Only packets of this family: 4 or 6; others are no family.
    fn only(&mut self, family: Option<u8>) {
        self.not_v4 |= family == Some(6);
        self.not_v6 |= family == Some(4);
    }

    fn and(&self, other: &Self) -> Self {
        let mut all = self.clone();
        all.not_v4 |= other.not_v4;
        all.not_v6 |= other.not_v6;
        all.arrive.extend(other.arrive.iter().cloned());
        all.leave.extend(other.leave.iter().cloned());
        all.source.extend(other.source.iter().cloned());
        all.others |= other.others;
        all
    }
}

/// nft writes `wan*` for every name that begins so.
pub(super) fn is_named(pattern: &str, link: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => link.starts_with(start),
        None => pattern == link,
    }
}

/// A rule of a chain. Chains are named by all that makes them differ.
struct Rule {
    chain: String,
    conditions: Translates,
    translates: bool,
    /// The chains that it goes on in.
    calls: Vec<String>,
}

/// The rules that can be reached from `chain`, each with the conditions on the way there.
fn follow(chain: &str, rules: &[Rule], way: &Translates, depth: usize, into: &mut Vec<Translates>) {
    if depth > DEEPEST {
        return;
    }
    for rule in rules.iter().filter(|rule| rule.chain == chain) {
        let conditions = way.and(&rule.conditions);
        for called in &rule.calls {
            follow(called, rules, &conditions, depth + 1, into);
        }
        if rule.translates {
            into.push(conditions);
        }
    }
}

/// From what `nft -j list ruleset` prints (`libnftables-json(5)`). Rules of iptables-nft are in it too.
#[must_use]
pub fn of_nft(ruleset: &Value) -> Vec<Translates> {
    let objects = || ruleset["nftables"].as_array().into_iter().flatten();
    let text = |object: &Value, key: &str| object[key].as_str().unwrap_or_default().to_owned();
    let full = |object: &Value, name: &str| {
        let (family, table) = (text(object, "family"), text(object, "table"));
        format!("{family} {table} {name}")
    };
    let mut rules = Vec::new();
    for rule in objects().filter_map(|object| object.get("rule")) {
        let mut found = Rule {
            chain: full(rule, &text(rule, "chain")),
            conditions: Translates::default(),
            translates: false,
            calls: Vec::new(),
        };
        found.conditions.only(protocol(&rule["family"]));
        for statement in rule["expr"].as_array().into_iter().flatten() {
            let is = |key: &str| statement.get(key).is_some();
            let target = &statement["xt"]["name"];
            found.translates |= is("masquerade") || is("snat") || is_translation(target.as_str());
            // In a table of both families.
            found
                .conditions
                .only(protocol(&statement["snat"]["family"]));
            if is("match") {
                condition(&statement["match"], &mut found.conditions);
            } else if statement["xt"]["type"] == "match" {
                found.conditions.others = true;
            }
            let mut called = Vec::new();
            targets(statement, &mut called);
            found
                .calls
                .extend(called.iter().map(|name| full(rule, name)));
        }
        rules.push(found);
    }
    let mut all = Vec::new();
    for chain in objects().filter_map(|object| object.get("chain")) {
        if chain["type"] == "nat" && chain["hook"] == "postrouting" {
            let name = full(chain, &text(chain, "name"));
            follow(&name, &rules, &Translates::default(), 0, &mut all);
        }
    }
    all
}

/// What iptables calls it.
fn is_translation(target: Option<&str>) -> bool {
    matches!(target, Some("MASQUERADE" | "SNAT" | "NETMAP"))
}

/// The chains that a statement jumps to, however deep they stand in it (verdict maps).
fn targets(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                match value["target"].as_str() {
                    Some(target) if key == "jump" || key == "goto" => into.push(target.to_owned()),
                    _ => targets(value, into),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| targets(value, into)),
        _ => {}
    }
}

fn condition(found: &Value, conditions: &mut Translates) {
    let negated = found["op"] == "!=";
    let (meta, payload) = (&found["left"]["meta"]["key"], &found["left"]["payload"]);
    let family = protocol(&payload["protocol"]);
    conditions.only(family);
    let right = &found["right"];
    let values = match right["set"].as_array() {
        Some(values) => values.as_slice(),
        None => std::slice::from_ref(right),
    };
    let names = || -> Option<Vec<String>> {
        let names = values.iter().map(|value| value.as_str().map(str::to_owned));
        // A set with a name: its elements stand elsewhere.
        names
            .collect::<Option<Vec<_>>>()
            .filter(|names| !names.iter().any(|name| name.starts_with('@')))
    };
    let understood = match (meta.as_str(), payload["field"].as_str()) {
        (Some("oifname" | "oif"), _) => {
            names().map(|values| conditions.leave.push(Among { values, negated }))
        }
        (Some("iifname" | "iif"), _) => {
            names().map(|values| conditions.arrive.push(Among { values, negated }))
        }
        (Some("nfproto"), _) => nfproto(right, negated).map(|only| conditions.only(Some(only))),
        (None, Some("saddr")) if family.is_some() => values
            .iter()
            .map(prefix)
            .collect::<Option<_>>()
            .map(|values| conditions.source.push(Among { values, negated })),
        // All but some near destinations.
        (None, Some("daddr")) if negated => Some(()),
        _ => None,
    };
    conditions.others |= understood.is_none();
}

/// nft's name of a family.
pub(super) fn protocol(value: &Value) -> Option<u8> {
    match value.as_str() {
        Some("ip") => Some(4),
        Some("ip6") => Some(6),
        _ => None,
    }
}

pub(super) fn nfproto(value: &Value, negated: bool) -> Option<u8> {
    match (value.as_str()?, negated) {
        ("ipv4", false) | ("ipv6", true) => Some(4),
        ("ipv6", false) | ("ipv4", true) => Some(6),
        _ => None,
    }
}

pub(super) fn prefix(value: &Value) -> Option<IpNet> {
    if let Some(address) = value.as_str() {
        return address
            .parse()
            .map(|address: std::net::IpAddr| address.into())
            .ok();
    }
    let prefix = &value["prefix"];
    let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
    IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok()
}

/// From what `iptables-save -t nat` prints, or `ip6tables-save` for family 6.
#[must_use]
pub fn of_iptables(text: &str, family: u8) -> Vec<Translates> {
    let rules: Vec<Rule> = text
        .lines()
        .filter_map(|line| iptables_rule(line, family))
        .collect();
    let mut all = Vec::new();
    follow("POSTROUTING", &rules, &Translates::default(), 0, &mut all);
    all
}

fn iptables_rule(line: &str, family: u8) -> Option<Rule> {
    let mut words = line.strip_prefix("-A ")?.split_whitespace();
    let mut rule = Rule {
        chain: words.next()?.to_owned(),
        conditions: Translates::default(),
        translates: false,
        calls: Vec::new(),
    };
    let conditions = &mut rule.conditions;
    conditions.only(Some(family));
    let mut negated = false;
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_default();
        let name = |value: &str| Among {
            values: vec![value.replace('+', "*")],
            negated,
        };
        match word {
            "!" => {
                negated = true;
                continue;
            }
            "-o" => conditions.leave.push(name(value())),
            "-i" => conditions.arrive.push(name(value())),
            "-s" => match value().parse() {
                Ok(prefix) => conditions.source.push(Among {
                    values: vec![prefix],
                    negated,
                }),
                Err(_) => conditions.others = true,
            },
            "-j" | "-g" => {
                let target = value();
                rule.translates = is_translation(Some(target));
                rule.calls.push(target.to_owned());
                break;
            }
            "-d" if negated => drop(value()),
            // Says nothing of the packet.
            "-m" if words.clone().next() == Some("comment") => {
                rule_comment(&mut words);
            }
            _ => conditions.others = true,
        }
        negated = false;
    }
    Some(rule)
}

/// Passes `comment --comment TEXT`, whose text is one word or stands in quotes.
fn rule_comment<'w>(words: &mut impl Iterator<Item = &'w str>) {
    let text = words.nth(2).unwrap_or_default();
    let ends = |word: &str| word.ends_with('"') && !word.ends_with("\\\"");
    if text.starts_with('"') && (text.len() == 1 || !ends(text)) {
        let _ = words.find(|word| ends(word));
    }
}
