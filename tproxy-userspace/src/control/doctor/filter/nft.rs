//! Rules from what `nft -j list ruleset` prints (`libnftables-json(5)`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::super::nat::{Among, nfproto, prefix, protocol};
use super::{Action, Base, Condition, Fit, Hook, Rule, Rules, Tool, mark};

/// What stands in a ruleset, and is looked up while its rules are read.
struct Ruleset<'r> {
    /// The elements of sets and maps, by family, table and name.
    elements: BTreeMap<[&'r str; 3], &'r [Value]>,
    /// The lines of rules as `nft -a list ruleset` prints them, by family, table and handle.
    lines: BTreeMap<(String, String, u64), String>,
}

/// Families that see packets of IP.
const FAMILIES: [&str; 3] = ["ip", "ip6", "inet"];

/// Families with tables of iptables-nft, whose rules say more when iptables prints them.
#[must_use]
pub fn with_iptables(ruleset: &Value) -> BTreeSet<u8> {
    let rules = objects(ruleset, "rule");
    rules
        .filter(|rule| {
            let statements = rule["expr"].as_array().into_iter().flatten();
            let mut statements = statements.filter(|statement| statement.get("xt").is_some());
            statements.next().is_some()
        })
        .filter_map(|rule| protocol(&rule["family"]))
        .collect()
}

/// All rules but those of the tables of iptables in the families `of_iptables`, and those of the table that
/// tproxy-bpf makes itself. `text` is what `nft -a list ruleset` prints.
#[must_use]
pub fn read(ruleset: &Value, text: &str, of_iptables: &BTreeSet<u8>) -> Rules {
    let context = Ruleset {
        elements: objects(ruleset, "set")
            .chain(objects(ruleset, "map"))
            .filter_map(|set| {
                let elements = set["elem"].as_array().map_or(&[][..], Vec::as_slice);
                Some((key(set, set["name"].as_str()?)?, elements))
            })
            .collect(),
        lines: lines(text),
    };
    let is_meant = |object: &Value| {
        let (family, table) = (object["family"].as_str(), object["table"].as_str());
        let theirs = protocol(&object["family"])
            .is_some_and(|family| of_iptables.contains(&family))
            && table.is_some_and(|table| super::iptables::TABLES.contains(&table));
        let own = crate::control::masquerade::TABLE.split_once(' ');
        family.is_some_and(|family| FAMILIES.contains(&family))
            && !theirs
            && family.zip(table) != own
    };
    let mut all = Rules::default();
    for chain in objects(ruleset, "chain").filter(|chain| is_meant(chain)) {
        let hook = chain["hook"].as_str().and_then(Hook::from_word);
        let name = chain["name"].as_str().and_then(|name| key(chain, name));
        if let (Some(hook), Some(name)) = (hook, name) {
            all.bases.push(Base {
                chain: name.join(" "),
                hook,
                drops: chain["policy"] == "drop",
                tool: Tool::Nft,
            });
        }
    }
    for rule in objects(ruleset, "rule").filter(|rule| is_meant(rule)) {
        all.rules.extend(context.rules(rule));
    }
    all
}

fn objects<'r>(ruleset: &'r Value, kind: &'static str) -> impl Iterator<Item = &'r Value> {
    let objects = ruleset["nftables"].as_array().into_iter().flatten();
    objects.filter_map(move |object| object.get(kind))
}

fn key<'r>(object: &'r Value, name: &'r str) -> Option<[&'r str; 3]> {
    Some([object["family"].as_str()?, object["table"].as_str()?, name])
}

/// The lines with a handle. The handles of a table's chains and rules are numbers of one series.
fn lines(text: &str) -> BTreeMap<(String, String, u64), String> {
    let mut found = BTreeMap::new();
    let mut table = None;
    for line in text.lines() {
        let Some((rule, handle)) = line.rsplit_once(" # handle ") else {
            continue;
        };
        let rule = rule.trim();
        let mut words = rule.split(' ');
        if words.next() == Some("table") {
            table = words
                .next()
                .map(str::to_owned)
                .zip(words.next().map(str::to_owned));
        } else if let (Some((family, table)), Ok(handle)) = (&table, handle.trim().parse()) {
            found.insert((family.clone(), table.clone(), handle), rule.to_owned());
        }
    }
    found
}

impl Ruleset<'_> {
    /// One rule, or several where a verdict map stands for them.
    fn rules(&self, rule: &Value) -> Vec<Rule> {
        let text = |key: &str| rule[key].as_str().unwrap_or_default();
        let [family, table, chain] = ["family", "table", "chain"].map(text);
        let handle = rule["handle"].as_u64().unwrap_or_default();
        let line = self
            .lines
            .get(&(family.to_owned(), table.to_owned(), handle));
        let scope = [family, table];
        let mut found = Rule {
            chain: format!("{family} {table} {chain}"),
            conditions: Vec::new(),
            actions: Vec::new(),
            text: line
                .cloned()
                .unwrap_or_else(|| format!("the rule with handle {handle}")),
            delete: format!("nft delete rule {family} {table} {chain} handle {handle}"),
        };
        found
            .conditions
            .extend(protocol(&rule["family"]).map(|family| Condition::V4(family == 4)));
        let mut all = Vec::new();
        for statement in rule["expr"].as_array().into_iter().flatten() {
            let Some((word, body)) = statement
                .as_object()
                .and_then(|object| object.iter().next())
            else {
                continue;
            };
            match word.as_str() {
                "match" => self.condition(scope, body, &mut found.conditions),
                "vmap" => match self.values(scope, &body["data"]) {
                    Some(entries) => {
                        all.extend(self.entries(scope, &found, &body["key"], &entries));
                    }
                    None => found.actions.push(Action::Somewhere),
                },
                "mangle" if body["key"]["meta"]["key"] == "mark" => {
                    found
                        .actions
                        .push(Action::SetMark(mark::kept(&body["value"])));
                }
                "dnat" | "redirect" | "tproxy" | "queue" => {
                    found.actions.push(Action::Takes(word.clone()));
                }
                // Counted and told, and nothing else.
                "counter" | "log" | "comment" | "mangle" | "notrack" | "flow" | "masquerade"
                | "snat" => {}
                "limit" | "quota" | "ct count" => {
                    found.conditions.push(Condition::Known(Fit::Part));
                }
                "xt" if body["type"] == "target" => found.actions.push(Action::Somewhere),
                _ => match verdict(word, body, scope) {
                    Some(action) => found.actions.push(action),
                    None => found.conditions.push(Condition::Known(Fit::Perhaps)),
                },
            }
        }
        if !found.actions.is_empty() {
            all.push(found);
        }
        all
    }

    /// The entries of a verdict map.
    fn entries(&self, scope: [&str; 2], rule: &Rule, on: &Value, entries: &[Value]) -> Vec<Rule> {
        let mut all = Vec::new();
        for entry in entries {
            let end = entry[1].as_object().and_then(|object| object.iter().next());
            let end = end.and_then(|(word, body)| verdict(word, body, scope));
            let mut one = rule.clone();
            one.actions.push(end.unwrap_or(Action::Somewhere));
            let meant = serde_json::json!({ "op": "==", "left": on, "right": entry[0] });
            // The default of the map.
            if entry[0] != "*" {
                self.condition(scope, &meant, &mut one.conditions);
            }
            all.push(one);
        }
        all
    }

    /// The values that are written there, or those of the set that is named there.
    fn values(&self, [family, table]: [&str; 2], right: &Value) -> Option<Vec<Value>> {
        let set = right["set"].as_array().or_else(|| right.as_array());
        let values = match (set, right.as_str().and_then(|name| name.strip_prefix('@'))) {
            (_, Some(name)) => self.elements.get(&[family, table, name])?.to_vec(),
            (Some(values), None) => values.clone(),
            (None, None) => vec![right.clone()],
        };
        // An element with a time limit, a counter or a comment.
        let plain = |value: Value| value["elem"].get("val").cloned().unwrap_or(value);
        Some(values.into_iter().map(plain).collect())
    }

    fn condition(&self, scope: [&str; 2], body: &Value, into: &mut Vec<Condition>) {
        let understood = self.values(scope, &body["right"]).and_then(|values| {
            into.extend(implied(&body["left"]));
            understand(&body["left"], &values, body["op"] == "!=")
        });
        into.push(understood.unwrap_or(Condition::Known(Fit::Perhaps)));
    }
}

fn verdict(word: &str, body: &Value, [family, table]: [&str; 2]) -> Option<Action> {
    let target = || Some(format!("{family} {table} {}", body["target"].as_str()?));
    Some(match word {
        "accept" => Action::Accept,
        "drop" | "reject" => Action::Drop,
        "return" | "continue" => Action::Return,
        "jump" => Action::Jump(target()?),
        "goto" => Action::Goto(target()?),
        _ => return None,
    })
}

/// What a packet must be for the field to be there.
fn implied(left: &Value) -> Option<Condition> {
    let payload = &left["payload"]["protocol"];
    match payload.as_str()? {
        "ip" | "ip6" => protocol(payload).map(|family| Condition::V4(family == 4)),
        "th" => None,
        name => Some(Condition::Protocol(Among {
            values: vec![name.to_owned()],
            negated: false,
        })),
    }
}

fn understand(left: &Value, values: &[Value], negated: bool) -> Option<Condition> {
    let words = || {
        let words = values.iter().map(|value| match value {
            Value::String(word) => Some(word.clone()),
            Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        let values = words.collect::<Option<Vec<_>>>()?;
        Some(Among { values, negated })
    };
    let prefixes = || {
        let values = values.iter().map(prefix).collect::<Option<_>>()?;
        Some(Among { values, negated })
    };
    let known = |fit: Fit| Some(Condition::Known(fit.unless(negated)));
    let field = left["payload"]["field"].as_str();
    if let Some(field) = field {
        return match field {
            "saddr" => prefixes().map(Condition::Source),
            "daddr" => prefixes().map(Condition::Destination),
            "protocol" | "nexthdr" => words().map(Condition::Protocol),
            "dport" | "sport" => Some(Condition::Known(if values.iter().any(is_every_port) {
                Fit::All.unless(negated)
            } else {
                Fit::Part
            })),
            _ => None,
        };
    }
    if let Some(mark) = mark_mask(left) {
        let [Value::Number(value)] = values else {
            return None;
        };
        return Some(Condition::Mark {
            mask: mark,
            value: u32::try_from(value.as_u64()?).ok()?,
            negated,
        });
    }
    match (left["meta"]["key"].as_str(), left["ct"]["key"].as_str()) {
        (Some("iifname" | "iif"), _) => return words().map(Condition::Arrive),
        (Some("oifname" | "oif"), _) => return words().map(Condition::Leave),
        (Some("l4proto"), _) => return words().map(Condition::Protocol),
        (Some("nfproto" | "protocol"), _) => {
            let [value] = values else { return None };
            let family = nfproto(value, negated).or_else(|| protocol(value).filter(|_| !negated));
            return family.map(|family| Condition::V4(family == 4));
        }
        // What is for the host alone is steered.
        (Some("pkttype"), _) => {
            return known(Fit::all_or_no(
                values
                    .iter()
                    .any(|value| value == "host" || value == "unicast"),
            ));
        }
        (_, Some("state")) => return words().map(Condition::State),
        // Nobody translates what is steered.
        (_, Some("status"))
            if values
                .iter()
                .all(|value| value == "dnat" || value == "snat") =>
        {
            return known(Fit::No);
        }
        _ => {}
    }
    fib(&left["fib"], values).and_then(known)
}

/// Questions to the routing tables.
fn fib(fib: &Value, values: &[Value]) -> Option<Fit> {
    let flags: BTreeSet<&str> = match &fib["flags"] {
        Value::Array(flags) => flags.iter().filter_map(Value::as_str).collect(),
        flag => flag.as_str().into_iter().collect(),
    };
    match fib["result"].as_str()? {
        // No address of the gateway is steered to. The mark would lead to our table, where all is local.
        "type" if flags.contains("daddr") && !flags.contains("mark") => Some(Fit::all_or_no(
            values.iter().any(|value| value == "unicast"),
        )),
        // The reverse path. With the mark it is looked for in our table, which knows no way back, so it is missing.
        "oif" | "oifname" if flags.contains("saddr") => {
            let missing = values.iter().all(|value| {
                value == false || value == "0" || value == 0 || value == "missing" || value == ""
            });
            let exists = values
                .iter()
                .all(|value| value == true || value == "exists");
            let found = !flags.contains("mark");
            match (missing, exists) {
                (true, _) => Some(Fit::all_or_no(!found)),
                (_, true) => Some(Fit::all_or_no(found)),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Which bits of the mark are compared, if it is the mark.
fn mark_mask(left: &Value) -> Option<u32> {
    if left["meta"]["key"] == "mark" {
        return Some(u32::MAX);
    }
    let [of, mask] = &left["&"].as_array()?[..] else {
        return None;
    };
    (of["meta"]["key"] == "mark")
        .then(|| mask.as_u64())
        .flatten()
        .and_then(|mask| u32::try_from(mask).ok())
}

fn is_every_port(value: &Value) -> bool {
    let [from, to] = [&value["range"][0], &value["range"][1]].map(Value::as_u64);
    from.is_some_and(|from| from <= 1) && to == Some(65535)
}
