//! Balancers, which are groups here.

use serde_json::{Map, Value};

use super::outbound::{LONGEST_NAME, MOST, Tagged};
use super::{Context, list, text, texts};
use crate::import::draft::{Exit, GroupDraft};
use crate::import::notes::{shown, some};

impl Context<'_> {
    /// Reads them, and how their members are checked.
    pub(super) fn balancers(&mut self, root: &Map<String, Value>) {
        let balancers = list(root.get("routing").unwrap_or(&Value::Null), "balancers");
        for balancer in balancers.iter().take(MOST) {
            self.balancer(balancer);
        }
        self.observatory(root);
    }

    fn balancer(&mut self, balancer: &Value) {
        let tag = text(balancer, "tag").to_owned();
        let what = format!("balancer \"{}\"", shown(&tag));
        let starts = texts(&balancer["selector"]);
        let mut members = Vec::new();
        for (other, tagged) in &self.exits {
            if !starts.iter().any(|start| other.starts_with(start)) || other.is_empty() {
                continue;
            }
            let member = match tagged {
                Tagged::Exit(Exit::Named(name)) => name.clone(),
                Tagged::Exit(Exit::Direct) => "direct".to_owned(),
                Tagged::Exit(Exit::Block) => "block".to_owned(),
                _ => continue,
            };
            if !members.contains(&member) {
                members.push(member);
            }
        }
        if members.is_empty() {
            self.left_out(&format!(
                "{what}: none of its outbounds is here ({})",
                some(&starts)
            ));
            self.exits.push((
                tag,
                Tagged::Nothing("its balancer has no outbounds".to_owned()),
            ));
            return;
        }
        let strategy = text(&balancer["strategy"], "type");
        let kind = match strategy {
            "leastPing" | "leastload" | "leastLoad" | "leastping" => "url-test",
            _ => "load-balance",
        };
        match kind {
            "url-test" if !strategy.eq_ignore_ascii_case("leastPing") => self.left_out(&format!(
                "{what}: leastLoad: here the member is taken whose checks are answered fastest"
            )),
            "load-balance" => self.understood(&format!(
                "{what}: each member has its share; all connections to one destination take the same"
            )),
            _ => {}
        }
        let stem = format!(
            "{}-group",
            tag.replace(|c: char| !c.is_ascii_alphanumeric(), "-")
        );
        let stem: String = stem
            .trim_matches('-')
            .chars()
            .take(LONGEST_NAME - 8)
            .collect();
        let name = self.free(&stem);
        let from = format!("{}: {what}", self.file);
        self.draft.groups.push(GroupDraft {
            name: name.clone(),
            from: from.clone(),
            kind,
            members,
        });
        let mut exit = name;
        let fallback = self.exit(text(balancer, "fallbackTag"));
        if let Some(Tagged::Exit(other)) = fallback {
            let other = match other {
                Exit::Named(name) => name,
                Exit::Block => "block".to_owned(),
                _ => "direct".to_owned(),
            };
            let outer = self.free(
                &format!("{exit}-or-{other}")
                    .chars()
                    .take(LONGEST_NAME - 8)
                    .collect::<String>(),
            );
            self.draft.groups.push(GroupDraft {
                name: outer.clone(),
                from: format!("{from}, fallbackTag"),
                kind: "fallback",
                members: vec![exit, other],
            });
            exit = outer;
        }
        self.understood(&format!("{what}: the group \"{exit}\""));
        self.exits
            .push((format!("balancer {tag}"), Tagged::Exit(Exit::Named(exit))));
    }

    fn observatory(&mut self, root: &Map<String, Value>) {
        let (Some(found), false) = (root.get("observatory"), self.draft.groups.is_empty()) else {
            return;
        };
        let urls = [text(found, "probeURL"), text(found, "probeUrl")];
        let url = urls.into_iter().find(|url| !url.is_empty());
        let fits = |url: &&str| {
            let line = format!("[check]\nurl = {}", crate::import::write::quoted(url));
            crate::config::Config::parse(&line, std::path::Path::new("")).is_ok()
        };
        if let Some(url) = url.filter(|url| !fits(url)) {
            self.left_out(&format!(
                "observatory: probeURL {}: it is no page that can be asked for",
                shown(url)
            ));
        }
        let url = url.filter(fits).map(str::to_owned);
        let often = text(found, "probeInterval");
        let good = crate::config::parse_duration(often)
            .is_ok_and(|time| (1..=86_400).contains(&time.as_secs()));
        if !often.is_empty() && !good {
            self.left_out(&format!("observatory: probeInterval {}", shown(often)));
        }
        self.draft.check = (url, good.then(|| often.to_owned()));
        self.understood("observatory: how the members of groups are checked");
    }
}
