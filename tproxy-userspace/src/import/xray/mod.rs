//! The configuration of Xray or V2Ray.
//!
//! Format: the documentation of both projects. Only what a transparent proxy needs is read; all else is told of.

mod dns;
mod domain;
mod groups;
mod jsonc;
mod outbound;
mod routing;

use serde_json::{Map, Value};

use super::draft::Draft;
use super::error::ImportError;
use super::notes::{Notes, shown, some};

/// What is found in a configuration beside what goes into the draft.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// The marks of its own packets.
    pub marks: Vec<u32>,
    /// The hosts of its servers.
    pub servers: Vec<String>,
}

/// What the parts of a configuration need to know of each other.
struct Context<'c> {
    file: String,
    /// Where geoip.dat and geosite.dat are, with a slash at the end, or nothing.
    lists: String,
    draft: &'c mut Draft,
    notes: &'c mut Notes,
    found: Found,
    /// Tags of the inbounds that devices' traffic comes by.
    transparent: Vec<String>,
    /// Exits by their tags.
    exits: Vec<(String, outbound::Tagged)>,
}

/// Reads a file into the draft.
pub(super) fn read(
    file: &str,
    text: &str,
    lists: &str,
    draft: &mut Draft,
    notes: &mut Notes,
) -> Result<Found, ImportError> {
    let file = shown(file);
    let broken = |line, why| ImportError::Broken {
        file: file.clone(),
        line,
        why,
    };
    let value: Value = serde_json::from_str(&jsonc::plain(text)).map_err(|error| {
        let why = format!(
            "this is no JSON ({error}); comments and a comma behind the last entry are understood"
        );
        broken(
            Some(error.line()).filter(|line| *line > 0),
            super::notes::clean(&why),
        )
    })?;
    let Some(root) = value.as_object() else {
        return Err(broken(
            None,
            "this is no JSON object, as the configuration of Xray or V2Ray is".to_owned(),
        ));
    };
    let typed = |key: &str| {
        list(root, key)
            .iter()
            .any(|one| one.get("type").is_some() && one.get("protocol").is_none())
    };
    if typed("inbounds") || typed("outbounds") {
        return Err(ImportError::Kind {
            file,
            what: "a configuration of sing-box",
            help: "give the output of iptables-save, or the configuration of Xray or V2Ray",
        });
    }
    if list(root, "outbounds").is_empty() && root.get("outbound").is_none() {
        return Err(broken(
            None,
            "it has no \"outbounds\", as the configuration of Xray or V2Ray has".to_owned(),
        ));
    }
    let mut context = Context {
        file,
        lists: lists.to_owned(),
        draft,
        notes,
        found: Found::default(),
        transparent: Vec::new(),
        exits: Vec::new(),
    };
    context.inbounds(root);
    context.outbounds(root);
    context.routing(root);
    context.dns(root);
    context.others(root);
    Ok(context.found)
}

impl Context<'_> {
    fn understood(&mut self, text: &str) {
        let file = &self.file;
        self.notes.understood(format!("{file}: {text}"));
    }

    fn needless(&mut self, text: &str) {
        let file = &self.file;
        self.notes.needless(format!("{file}: {text}"));
    }

    fn left_out(&mut self, text: &str) {
        let file = &self.file;
        self.notes.left_out(format!("{file}: {text}"));
    }

    /// Finds the inbounds that the kernel leads traffic to, and tells of the others.
    fn inbounds(&mut self, root: &Map<String, Value>) {
        let (mut enabled, mut rewrite, mut seen) = (false, false, false);
        for (index, inbound) in list(root, "inbounds").iter().enumerate() {
            let tag = text(inbound, "tag");
            let what = format!("inbounds[{index}] ({})", name(tag, inbound));
            let sockopt = &inbound["streamSettings"]["sockopt"];
            let settings = &inbound["settings"];
            let transparent = inbound["protocol"] == "dokodemo-door"
                && (settings["followRedirect"] == true || text(sockopt, "tproxy") == "tproxy");
            if !transparent {
                let why = match inbound["protocol"].as_str() {
                    Some("dokodemo-door") if inbound["port"] == 53 => {
                        self.needless(&format!("{what}: with [dns], questions to port 53 are answered whomever they are for"));
                        continue;
                    }
                    Some("dokodemo-door") => "it leads to one fixed server",
                    _ => {
                        "devices and programs that name a proxy by themselves are not served here; keep the old program for them, or let them go \
                          without"
                    }
                };
                self.left_out(&format!("{what}: {why}"));
                continue;
            }
            seen = true;
            self.transparent.push(tag.to_owned());
            self.needless(&format!(
                "{what}: the kernel hands traffic over without a port of its own, so there is none to be configured"
            ));
            let sniffing = &inbound["sniffing"];
            enabled |= sniffing["enabled"] == true;
            let wanted = list(sniffing, "destOverride");
            rewrite |=
                sniffing["enabled"] == true && sniffing["routeOnly"] != true && !wanted.is_empty();
            if wanted
                .iter()
                .any(|one| one == "fakedns" || one == "fakedns+others")
            {
                self.left_out(&format!("{what}: fakedns: names are read from connections and known from DNS answers here; devices get true addresses"));
            }
        }
        if !seen {
            self.left_out("no inbound takes traffic from the kernel (dokodemo-door with followRedirect); what names are read by is as by default");
            return;
        }
        let from = format!("{}: sniffing of the inbound", self.file);
        self.draft.sniff = Some((enabled, rewrite, from));
        if rewrite {
            self.understood("sniffing without routeOnly: servers are asked for the name that was read (`rewrite`)");
        }
    }

    /// Parts that nothing is made of.
    fn others(&mut self, root: &Map<String, Value>) {
        const KNOWN: [&str; 8] = [
            "inbounds",
            "outbounds",
            "inbound",
            "outbound",
            "routing",
            "dns",
            "observatory",
            "burstObservatory",
        ];
        let without = |key: &str| match key {
            "log" => Some("the log goes to standard error; RUST_LOG says how much"),
            "api" | "stats" => Some("`tproxy-bpf status` and `counters` tell what goes on"),
            "policy" => Some("times and limits are [tcp] and [udp], with defaults of their own"),
            "fakedns" => Some("devices get true addresses here"),
            _ => None,
        };
        let mut unknown = Vec::new();
        for key in root.keys().filter(|key| !KNOWN.contains(&key.as_str())) {
            match without(key) {
                Some(why) => self.needless(&format!("{key}: {why}")),
                None => unknown.push(key.clone()),
            }
        }
        if !unknown.is_empty() {
            self.left_out(&format!(
                "parts that are not known here: {}",
                some(&unknown)
            ));
        }
    }
}

/// The array of this name, or nothing.
fn list<'v>(value: &'v impl Keyed, key: &str) -> &'v [Value] {
    value
        .at(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The text of this name, or an empty one.
fn text<'v>(value: &'v impl Keyed, key: &str) -> &'v str {
    value.at(key).and_then(Value::as_str).unwrap_or_default()
}

/// Texts, given as an array, as one text with commas, or as one.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Array(all) => all
            .iter()
            .map(|one| one.as_str().map_or_else(|| one.to_string(), str::to_owned))
            .collect(),
        Value::String(text) => text.split(',').map(|part| part.trim().to_owned()).collect(),
        Value::Null => Vec::new(),
        other => vec![other.to_string()],
    }
}

/// How notes call something: by its tag, or by its protocol.
fn name(tag: &str, value: &Value) -> String {
    match tag {
        "" => shown(text(value, "protocol")),
        tag => format!("\"{}\"", shown(tag)),
    }
}

/// What has values by name.
trait Keyed {
    fn at(&self, key: &str) -> Option<&Value>;
}

impl Keyed for Value {
    fn at(&self, key: &str) -> Option<&Value> {
        self.get(key)
    }
}

impl Keyed for Map<String, Value> {
    fn at(&self, key: &str) -> Option<&Value> {
        self.get(key)
    }
}
