//! `dns`: which server is asked for which names.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::{Map, Value};

use super::domain::names;
use super::{Context, list, text, texts};
use crate::data::dns::Upstream;
use crate::import::draft::Exit;
use crate::import::notes::{shown, some};

/// By which side a server is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Direct,
    Proxy,
    Unknown,
}

/// More servers than this nobody asks.
const MOST: usize = 100;

impl Context<'_> {
    pub(super) fn dns(&mut self, root: &Map<String, Value>) {
        let asked_for = self.draft.dns.is_some();
        let Some(dns) = root.get("dns") else {
            if asked_for {
                self.draft.dns = None;
                self.left_out("questions to port 53 went to the program's DNS, but there is no `dns` with servers: here they go as other traffic");
            }
            return;
        };
        if !asked_for {
            self.left_out(
                "dns: no rule hands the devices' questions to it, so it was the old program's own; here names are only looked up for servers, by \
                 /etc/resolv.conf. To have questions answered, write [dns]",
            );
            return;
        }
        let mut draft = self.draft.dns.take().unwrap_or_default();
        draft.from = format!("{}: dns", self.file);
        // Names that rules are about: does the first of them send them direct?
        let mut exits: BTreeMap<String, bool> = BTreeMap::new();
        for rule in &self.draft.rules {
            for name in &rule.domain {
                let direct = rule.exit == Exit::Direct;
                exits.entry(name.clone()).or_insert(direct);
            }
        }
        let mut named: BTreeSet<String> = BTreeSet::new();
        for (index, server) in list(dns, "servers").iter().enumerate().take(MOST) {
            let what = format!("dns.servers[{index}]");
            let (address, port) = match server {
                Value::String(address) => (address.as_str(), None),
                server => (text(server, "address"), server["port"].as_u64()),
            };
            let wanted = texts(&server["domains"]);
            let (side, written) = match self.server(address, port) {
                Ok(found) => found,
                Err(why) => {
                    self.left_out(&format!("{what} ({}): {why}", shown(address)));
                    continue;
                }
            };
            if !texts(&server["expectIPs"]).is_empty() || !texts(&server["expectIps"]).is_empty() {
                self.left_out(&format!(
                    "{what}: expectIPs: answers are not chosen by their addresses here"
                ));
            }
            if wanted.is_empty() {
                match side {
                    Side::Direct => {
                        self.left_out(&format!(
                            "{what} ({}): it was asked directly for all names; here names that do not go direct are only asked for through the outbound",
                            shown(address)
                        ));
                        continue;
                    }
                    Side::Proxy => {}
                    Side::Unknown => self.understood(&format!(
                        "{what}: asked through the outbound, since it is there for all names"
                    )),
                }
                draft.proxy.push(written);
                continue;
            }
            let found = names(&wanted, &self.lists);
            if !found.odd.is_empty() {
                self.left_out(&format!("{what}: of its names {}", some(&found.odd)));
            }
            let go_direct = (found.entries.iter()).all(|entry| exits.get(entry) == Some(&true));
            if side == Side::Proxy || (side == Side::Unknown && !go_direct) {
                self.left_out(&format!(
                    "{what} ({}): only names that go direct have servers of their own here, and no rule sends these direct",
                    shown(address)
                ));
                continue;
            }
            if side == Side::Unknown {
                self.understood(&format!(
                    "{what}: asked directly, since a rule sends its names direct"
                ));
            }
            draft.direct.push(written);
            for entry in found.entries {
                if named.insert(entry.clone()) {
                    draft.direct_domains.push(entry);
                }
            }
        }
        self.settings(dns, &mut draft);
        if draft.proxy.is_empty() {
            self.left_out("dns: no server is left for names that do not go direct, so questions go as other traffic");
            self.notes.open(format!(
                "{}: write [dns] with `proxy = [\"tls://…\"]` if questions are to be answered here",
                self.file
            ));
            return;
        }
        if draft.direct_domains.is_empty() {
            draft.direct.clear();
        }
        // They go direct by `direct_domains`, which comes behind all rules.
        let same = |rule: &crate::import::draft::RuleDraft| {
            rule.exit == Exit::Direct
                && !rule.domain.is_empty()
                && rule.domain.iter().all(|name| named.contains(name))
                && rule.prefix.is_empty()
                && rule.prefix_files.is_empty()
                && rule.source.is_empty()
                && rule.port.is_empty()
                && rule.protocol.is_none()
        };
        let last = self
            .draft
            .rules
            .iter()
            .rposition(|rule| rule.exit != Exit::Direct);
        let behind = last.map_or(0, |last| last + 1);
        let mut index = 0;
        let mut gone = Vec::new();
        self.draft.rules.retain(|rule| {
            index += 1;
            let goes = index > behind && same(rule);
            if goes {
                gone.push(rule.from.clone());
            }
            !goes
        });
        for from in gone {
            self.notes
                .needless(format!("{from}: its names go direct by `direct_domains`"));
        }
        self.understood("dns: questions are answered by the program, names that go direct by servers of their own");
        self.draft.dns = Some(draft);
    }

    fn settings(&mut self, dns: &Value, draft: &mut crate::import::draft::DnsDraft) {
        match text(dns, "queryStrategy") {
            "UseIPv4" => draft.no_ipv6 = true,
            "" | "UseIP" | "UseSystem" => {}
            other => self.left_out(&format!(
                "dns.queryStrategy {}: see `prefer` in [dns]",
                shown(other)
            )),
        }
        if dns["disableCache"] == true {
            draft.cache = Some(0);
        }
        if dns["hosts"]
            .as_object()
            .is_some_and(|hosts| !hosts.is_empty())
        {
            self.left_out("dns.hosts: names have no fixed addresses here; a DNS server of your own can give them, as a server in `direct`");
        }
        for key in [
            "clientIp",
            "clientIP",
            "disableFallback",
            "disableFallbackIfMatch",
            "serveStale",
        ] {
            if dns.get(key).is_some() {
                self.left_out(&format!("dns.{key}"));
            }
        }
    }

    /// A server as it is written here, and its side as far as its address tells.
    fn server(&self, address: &str, port: Option<u64>) -> Result<(Side, String), String> {
        match address {
            "" => return Err("it has no address".to_owned()),
            "localhost" => {
                return Err("the system's own server is not asked; name its address".to_owned());
            }
            "fakedns" => return Err("devices get true addresses here".to_owned()),
            _ => {}
        }
        let (scheme, rest) = match address.split_once("://") {
            Some((scheme, rest)) => (scheme, rest),
            None => ("", address),
        };
        let (scheme, local) = match scheme.strip_suffix("+local") {
            Some(scheme) => (scheme, true),
            None => (scheme, false),
        };
        let host = rest.split(['/', ':']).next().unwrap_or_default();
        let written = match scheme {
            "" => match (rest.parse::<IpAddr>(), port.filter(|port| *port != 53)) {
                (Ok(IpAddr::V6(ip)), Some(port)) => format!("[{ip}]:{port}"),
                (_, Some(port)) => format!("{rest}:{port}"),
                (_, None) => rest.to_owned(),
            },
            "tcp" | "https" => format!("{scheme}://{rest}"),
            "h2c" | "quic" => return Err(format!("{scheme}:// is not asked here")),
            other => return Err(format!("{}:// is not known here", shown(other))),
        };
        if let Err(error) = written.parse::<Upstream>() {
            return Err(format!("{}; {}", error.message, error.help));
        }
        let side = match host.parse::<IpAddr>().or_else(|_| rest.parse()) {
            _ if local => Side::Direct,
            Ok(ip) => self.side_of(ip),
            Err(_) => Side::Unknown,
        };
        Ok((side, written))
    }

    /// What the rules by address say of a server.
    fn side_of(&self, ip: IpAddr) -> Side {
        let in_bypass = self
            .draft
            .bypass
            .iter()
            .any(|(_, prefixes)| prefixes.iter().any(|prefix| prefix.contains(&ip)));
        if in_bypass {
            return Side::Direct;
        }
        for rule in &self.draft.rules {
            if rule.prefix.iter().any(|prefix| prefix.contains(&ip))
                && rule.domain.is_empty()
                && rule.source.is_empty()
            {
                return match &rule.exit {
                    Exit::Direct => Side::Direct,
                    Exit::Named(_) => Side::Proxy,
                    Exit::Block | Exit::Default => Side::Unknown,
                };
            }
        }
        Side::Unknown
    }
}
