//! Rules from what `iptables-save` and `ip6tables-save` print.

use std::str::FromStr;

use super::super::nat::Among;
use super::mark::kept_by_xmark;
use super::{Action, Base, Condition, Fit, Hook, Rule, Rules, Tool};

/// The tables that iptables has.
pub const TABLES: [&str; 5] = ["raw", "mangle", "nat", "filter", "security"];

/// The rules of all tables in the text. `family` is 4 or 6, `command` is what they are changed with.
#[must_use]
pub fn read(text: &str, family: u8, command: &str) -> Rules {
    let name = if family == 4 { "ip" } else { "ip6" };
    let (mut all, mut table) = (Rules::default(), "");
    for line in text.lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some(chain) = line.strip_prefix(':') {
            let mut words = chain.split(' ');
            let chain = words.next().unwrap_or_default();
            let policy = words.next();
            // Chains of one's own have no policy.
            if let Some(hook) = Hook::from_word(chain).filter(|_| policy != Some("-")) {
                all.bases.push(Base {
                    chain: format!("{name} {table} {chain}"),
                    hook,
                    drops: policy == Some("DROP"),
                    tool: Tool::Iptables {
                        command: command.to_owned(),
                        table: table.to_owned(),
                    },
                });
            }
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let scope = format!("{name} {table}");
            let delete = format!("{command} -t {table} -D {rule}");
            all.rules
                .extend(read_rule(rule, line, delete, &scope, family));
        }
    }
    all
}

/// Words between spaces; those in quotes are one.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for character in text.chars() {
        match character {
            _ if escaped => {
                word.push(character);
                escaped = false;
            }
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => words.push(std::mem::take(&mut word)),
            _ => word.push(character),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    words
}

/// An option with its values, and whether "!" stands before it.
struct Given {
    negated: bool,
    name: String,
    values: Vec<String>,
}

impl Given {
    fn value(&self) -> &str {
        self.values.first().map_or("", String::as_str)
    }

    fn among<T: FromStr>(&self) -> Option<Among<T>> {
        let values = self.value().split(',').map(|value| value.parse().ok());
        Some(Among {
            values: values.collect::<Option<_>>()?,
            negated: self.negated,
        })
    }

    fn link(&self) -> Among<String> {
        Among {
            values: vec![self.value().replace('+', "*")],
            negated: self.negated,
        }
    }
}

fn options(rule: &str) -> (String, Vec<Given>) {
    let mut words = words(rule).into_iter();
    let chain = words.next().unwrap_or_default();
    let (mut all, mut negated) = (Vec::<Given>::new(), false);
    for word in words {
        if word == "!" {
            negated = true;
        } else if word.starts_with('-') && word.len() > 1 {
            all.push(Given {
                negated,
                name: word,
                values: Vec::new(),
            });
            negated = false;
        } else if let Some(last) = all.last_mut() {
            last.values.push(word);
        }
    }
    (chain, all)
}

fn read_rule(rule: &str, line: &str, delete: String, scope: &str, family: u8) -> Option<Rule> {
    let (chain, options) = options(rule);
    let has = |name: &str| options.iter().any(|option| option.name == name);
    let mut conditions = vec![Condition::V4(family == 4)];
    let mut target = None;
    for option in &options {
        match option.name.as_str() {
            "-j" | "-g" => {
                target = Some(option);
                // What follows is about the target.
                break;
            }
            "-m" => {}
            _ => conditions.extend(condition(option, &has)),
        }
    }
    let target = target?;
    let mut actions = Vec::new();
    let word = target.value();
    for name in ["--set-xmark", "--set-mark", "--tproxy-mark"] {
        let given = options.iter().find(|option| option.name == name);
        let pair = given.and_then(|option| pair(option.value()));
        actions.extend(
            pair.filter(|_| word != "CONNMARK")
                .map(|(value, mask)| Action::SetMark(kept_by_xmark(value, mask))),
        );
    }
    if has("--restore-mark") {
        let mask = options.iter().find(|option| option.name == "--nfmask");
        let mask = mask
            .and_then(|option| number(option.value()))
            .unwrap_or(u32::MAX);
        actions.push(Action::SetMark(!mask));
    }
    actions.push(match word {
        "ACCEPT" => Action::Accept,
        "DROP" | "REJECT" => Action::Drop,
        "RETURN" => Action::Return,
        "DNAT" | "REDIRECT" | "TPROXY" | "NFQUEUE" => Action::Takes(word.to_owned()),
        _ if target.name == "-g" => Action::Goto(format!("{scope} {word}")),
        // A target that goes on is a chain that is empty.
        _ => Action::Jump(format!("{scope} {word}")),
    });
    Some(Rule {
        chain: format!("{scope} {chain}"),
        conditions,
        actions,
        text: line.to_owned(),
        delete,
    })
}

fn condition(option: &Given, has: &impl Fn(&str) -> bool) -> Option<Condition> {
    let known = |fit: Fit| Condition::Known(fit.unless(option.negated));
    let understood = match option.name.as_str() {
        "-i" => Some(Condition::Arrive(option.link())),
        "-o" => Some(Condition::Leave(option.link())),
        "-s" => option.among().map(Condition::Source),
        "-d" => option.among().map(Condition::Destination),
        "-p" if option.value() == "all" => return None,
        "-p" => option.among().map(Condition::Protocol),
        "--ctstate" | "--state" => option.among().map(Condition::State),
        "--mark" => pair(option.value()).map(|(value, mask)| Condition::Mark {
            mask,
            value,
            negated: option.negated,
        }),
        "--dport" | "--sport" | "--dports" | "--sports" | "--ports" => {
            Some(Condition::Known(Fit::Part))
        }
        "--limit" | "--hashlimit-upto" | "--probability" => Some(Condition::Known(Fit::Part)),
        "--limit-burst" | "--mode" | "--comment" => return None,
        // How iptables writes `--syn`.
        "--tcp-flags" if option.values == ["FIN,SYN,RST,ACK", "SYN"] => Some(known(Fit::All)),
        // None of the gateway's addresses is steered to, or steers.
        "--dst-type" => Some(known(Fit::all_or_no(option.value() == "UNICAST"))),
        "--src-type" => Some(known(Fit::all_or_no(option.value() == "UNICAST"))),
        "--pkt-type" => Some(known(Fit::all_or_no(option.value() == "unicast"))),
        // With the mark the way back is looked for in our table, which knows none.
        "--invert" => Some(Condition::Known(Fit::all_or_no(
            has("--validmark") && !has("--accept-local"),
        ))),
        "--validmark" if has("--invert") => return None,
        "--loose" | "--accept-local" => return None,
        _ => None,
    };
    Some(understood.unwrap_or(Condition::Known(Fit::Perhaps)))
}

/// `VALUE/MASK`, or a value with all bits.
fn pair(text: &str) -> Option<(u32, u32)> {
    match text.split_once('/') {
        Some((value, mask)) => Some((number(value)?, number(mask)?)),
        None => Some((number(text)?, u32::MAX)),
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
