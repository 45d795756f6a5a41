//! `routing`: which connections take which outbound.

use serde_json::{Map, Value};

use super::domain::{Addresses, addresses, names};
use super::outbound::Tagged;
use super::{Context, list, text, texts};
use crate::import::draft::{Exit, RuleDraft};
use crate::import::notes::{shown, some};
use crate::policy::port::PortRange;

/// More rules than this are no configuration that a person wrote.
const MOST: usize = 10_000;

impl Context<'_> {
    pub(super) fn routing(&mut self, root: &Map<String, Value>) {
        let Some(routing) = root.get("routing") else {
            return;
        };
        // The older form has the same one level deeper.
        let deeper = &routing["settings"];
        let routing = if deeper.is_object() { deeper } else { routing };
        let strategy = text(routing, "domainStrategy");
        if matches!(strategy, "IPIfNonMatch" | "IPOnDemand") {
            self.needless(&format!(
                "routing.domainStrategy {}: rules about addresses look at the address that the device chose; nothing is looked up for them",
                shown(strategy)
            ));
        }
        for (index, rule) in list(routing, "rules").iter().enumerate().take(MOST) {
            if self.rule(index, rule) {
                let rest = list(routing, "rules").len() - index - 1;
                if rest > 0 {
                    self.left_out(&format!(
                        "routing.rules behind number {index}: that one is about everything"
                    ));
                }
                break;
            }
        }
    }

    /// Takes a rule over. True if no rule behind it is ever asked.
    fn rule(&mut self, index: usize, rule: &Value) -> bool {
        const READ: [&str; 16] = [
            "type",
            "domain",
            "domains",
            "ip",
            "port",
            "source",
            "sourceIP",
            "network",
            "inboundTag",
            "outboundTag",
            "balancerTag",
            "protocol",
            "domainMatcher",
            "ruleTag",
            "tag",
            "remarks",
        ];
        let what = format!("routing.rules[{index}]");
        let inbounds = texts(&rule["inboundTag"]);
        if !inbounds.is_empty() && !inbounds.iter().any(|tag| self.transparent.contains(tag)) {
            self.needless(&format!(
                "{what}: it is about {}, not about devices",
                some(&inbounds)
            ));
            return false;
        }
        let exit = match self.exit_of(rule) {
            Ok(Tagged::Exit(exit)) => exit,
            Ok(Tagged::Dns) => {
                self.dns_rule(&what, rule);
                return false;
            }
            Ok(Tagged::Nothing(why)) | Err(why) => {
                self.left_out(&format!("{what}: {why}"));
                return false;
            }
        };
        let odd = rule.as_object().into_iter().flatten();
        let mut odd: Vec<&str> = odd
            .filter(|(key, value)| !READ.contains(&key.as_str()) && !value.is_null())
            .map(|(key, _)| key.as_str())
            .collect();
        if !texts(&rule["protocol"]).is_empty() {
            odd.push("protocol");
        }
        if !odd.is_empty() {
            self.left_out(&format!(
                "{what}: a rule cannot ask for {} here, so none of it is taken over",
                some(&odd)
            ));
            return false;
        }
        let Some(draft) = self.conditions(&what, rule, exit) else {
            return false;
        };
        self.place(&what, draft)
    }

    fn exit_of(&self, rule: &Value) -> Result<Tagged, String> {
        let (outbound, balancer) = (text(rule, "outboundTag"), text(rule, "balancerTag"));
        let (tag, found) = if outbound.is_empty() {
            (balancer, self.exit(&format!("balancer {balancer}")))
        } else {
            (outbound, self.exit(outbound))
        };
        found.ok_or_else(|| format!("there is no outbound or balancer \"{}\"", shown(tag)))
    }

    /// A rule that hands questions to the program's own DNS.
    fn dns_rule(&mut self, what: &str, rule: &Value) {
        let ports = texts(&rule["port"]);
        let asks = ports.iter().any(|port| port == "53")
            || texts(&rule["protocol"]).iter().any(|one| one == "dns");
        if asks || ports.is_empty() {
            self.draft.dns.get_or_insert_default();
            self.needless(&format!(
                "{what}: with [dns], questions to port 53 are answered by the program"
            ));
        } else {
            self.left_out(&format!(
                "{what}: only questions to port 53 are answered here"
            ));
        }
    }

    /// The conditions, or none if the rule cannot be said.
    fn conditions(&mut self, what: &str, rule: &Value, exit: Exit) -> Option<RuleDraft> {
        let mut draft = RuleDraft::new(format!("{}: {what}", self.file), exit);
        let mut odd = Vec::new();
        let mut wanted = texts(&rule["domain"]);
        wanted.extend(texts(&rule["domains"]));
        if !wanted.is_empty() {
            let found = names(&wanted, &self.lists);
            odd.extend(found.odd);
            draft.domain = found.entries;
            if draft.domain.is_empty() {
                return self.nothing_left(what, &odd);
            }
        }
        let wanted = texts(&rule["ip"]);
        if !wanted.is_empty() {
            let found = addresses(&wanted, &self.lists);
            if self.is_private_alone(what, &found, &draft, rule) {
                return None;
            }
            odd.extend(found.odd);
            draft.prefix = found.prefixes;
            if found.private {
                for is_v4 in [true, false] {
                    draft.prefix.extend(crate::import::private_ranges(is_v4));
                }
            }
            draft.prefix_files = found.files;
            if draft.prefix.is_empty() && draft.prefix_files.is_empty() {
                return self.nothing_left(what, &odd);
            }
        }
        let mut wanted = texts(&rule["source"]);
        wanted.extend(texts(&rule["sourceIP"]));
        if !wanted.is_empty() {
            let found = addresses(&wanted, &self.lists);
            odd.extend(found.odd);
            odd.extend(found.files);
            draft.source = found.prefixes;
            if draft.source.is_empty() {
                return self.nothing_left(what, &odd);
            }
        }
        let wanted = texts(&rule["port"]);
        if !wanted.is_empty() {
            for port in &wanted {
                match port.parse::<PortRange>() {
                    Ok(range) => draft.port.push(range),
                    Err(_) => odd.push(shown(port)),
                }
            }
            if draft.port.is_empty() {
                return self.nothing_left(what, &odd);
            }
        }
        let network = texts(&rule["network"]);
        match (
            network.iter().any(|one| one == "tcp"),
            network.iter().any(|one| one == "udp"),
        ) {
            (true, false) => draft.protocol = Some("tcp"),
            (false, true) => draft.protocol = Some("udp"),
            (false, false) if !network.is_empty() => return self.nothing_left(what, &network),
            _ => {}
        }
        if !odd.is_empty() {
            self.left_out(&format!("{what}: of its entries {}", some(&odd)));
        }
        Some(draft)
    }

    fn nothing_left(&mut self, what: &str, odd: &[String]) -> Option<RuleDraft> {
        self.left_out(&format!(
            "{what}: of a condition nothing can be said here: {}",
            some(odd)
        ));
        None
    }

    /// `geoip:private` going direct is what stages 2 to 4 do.
    fn is_private_alone(
        &mut self,
        what: &str,
        found: &Addresses,
        draft: &RuleDraft,
        rule: &Value,
    ) -> bool {
        let others = ["source", "sourceIP", "port"]
            .iter()
            .any(|key| rule.get(*key).is_some());
        let alone = draft.domain.is_empty()
            && !others
            && found.prefixes.is_empty()
            && found.files.is_empty();
        if !(alone && found.private && draft.exit == Exit::Direct && found.odd.is_empty()) {
            return false;
        }
        self.draft.private = Some(true);
        self.needless(&format!(
            "{what}: geoip:private: private ranges go direct by the stage"
        ));
        true
    }

    /// Puts it where it belongs. True if it is about everything.
    fn place(&mut self, what: &str, draft: RuleDraft) -> bool {
        let empty = draft == RuleDraft::new(draft.from.clone(), draft.exit.clone());
        if empty {
            let name = match &draft.exit {
                Exit::Direct => "direct".to_owned(),
                Exit::Block => "block".to_owned(),
                Exit::Named(name) => name.clone(),
                Exit::Default => return true,
            };
            self.understood(&format!(
                "{what}: all that no rule before it is about takes \"{name}\""
            ));
            self.draft.default = Some(name);
            return true;
        }
        let first = self
            .draft
            .rules
            .iter()
            .all(|rule| rule.exit == Exit::Direct);
        if draft.exit == Exit::Direct && draft.is_about_addresses_alone() && first {
            self.understood(&format!("{what}: goes direct, in the kernel"));
            if !draft.prefix.is_empty() {
                self.draft.bypass.push((draft.from.clone(), draft.prefix));
            }
            for file in draft.prefix_files {
                self.draft.bypass_files.push((draft.from.clone(), file));
            }
            return false;
        }
        self.understood(&format!("{what}: a rule"));
        self.draft.rules.push(draft);
        false
    }
}
