//! `import`: what a set-up of iptables with Xray or V2Ray comes to as a configuration of this program.
//!
//! Files are bytes of strangers: no parser panics, and what they hold stays in strings and comments. What cannot be said
//! in a configuration is told of, never guessed; the result is read by [`Config::parse`] before anybody gets it.

mod build;
mod draft;
mod error;
mod ipset;
mod iptables;
mod join;
mod kind;
mod notes;
mod write;
mod xray;

#[cfg(test)]
mod tests;

use std::path::Path;

use ipnet::IpNet;

pub use self::error::ImportError;
pub use self::notes::Notes;

use self::draft::Draft;
use self::ipset::Sets;
use self::kind::Kind;
use crate::config::Config;
#[cfg(test)]
use crate::data;

/// A file that is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// Its name, for people.
    pub name: String,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// What the files do not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Links with devices; where they are named, those of the files do not count.
    pub lan: Vec<String>,
    /// The folder of geoip.dat, geosite.dat and other lists. Default: that of the configuration.
    pub lists: Option<String>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The configuration, with comments. It may hold passwords.
    pub toml: String,
    /// What became of the parts of the files. These hold no passwords.
    pub notes: Notes,
}

/// Makes one configuration of all files together.
///
/// # Errors
/// When a file is of no form that is read, or broken, or nothing in them is about a proxy.
pub fn import(inputs: &[Input], options: &Options) -> Result<Imported, ImportError> {
    let mut sorted: [Vec<(&str, String)>; 3] = Default::default();
    for input in inputs {
        let text = String::from_utf8_lossy(&input.bytes).into_owned();
        let kind = kind::of(input, &text)?;
        let place = match kind {
            Kind::Iptables => 0,
            Kind::Ipset => 1,
            Kind::Xray => 2,
        };
        sorted[place].push((&input.name, text));
    }
    let [rules, set_files, configurations] = sorted;
    let mut notes = Notes::default();
    let mut draft = Draft::default();
    let mut sets = Sets::default();
    for (name, text) in &set_files {
        sets.read(name, text);
        notes.understood(format!("{}: {} sets", notes::shown(name), sets.len()));
    }
    if let [(first, _), (second, _), ..] = &configurations[..] {
        return Err(ImportError::Twice {
            first: notes::shown(first),
            second: notes::shown(second),
            what: "configurations of Xray or V2Ray",
        });
    }
    let lists = match &options.lists {
        Some(folder) if !folder.is_empty() => format!("{}/", folder.trim_end_matches('/')),
        _ => String::new(),
    };
    let mut found = xray::Found::default();
    for (name, text) in &configurations {
        found = xray::read(name, text, &lists, &mut draft, &mut notes)?;
    }
    let mut rulesets = Vec::new();
    for (name, text) in &rules {
        rulesets.extend(iptables::read(name, text, &mut notes)?);
    }
    for (index, ruleset) in rulesets.iter().enumerate() {
        let before = rulesets[..index]
            .iter()
            .find(|other| other.is_v4 == ruleset.is_v4);
        if let Some(other) = before {
            return Err(ImportError::Twice {
                first: other.file.clone(),
                second: ruleset.file.clone(),
                what: if ruleset.is_v4 {
                    "rules of IPv4"
                } else {
                    "rules of IPv6"
                },
            });
        }
    }
    let verdicts: Vec<(bool, iptables::Verdict)> = rulesets
        .iter()
        .map(|ruleset| {
            (
                ruleset.is_v4,
                iptables::judge(ruleset, &sets, &found.marks, &mut notes),
            )
        })
        .collect();
    let leads = verdicts
        .iter()
        .any(|(_, verdict)| verdict.devices || verdict.own);
    if !leads && configurations.is_empty() {
        let names: Vec<String> = inputs
            .iter()
            .map(|input| notes::shown(&input.name))
            .collect();
        return Err(ImportError::Nothing {
            files: names.join(", "),
        });
    }
    join::join(verdicts, &found, &mut draft, &mut notes);
    let toml = build::finish(draft, options, &mut notes);
    match Config::parse(&toml, Path::new("config.toml")) {
        Ok(_) => Ok(Imported { toml, notes }),
        Err(error) => Err(ImportError::Unfit {
            why: notes::clean(
                &error
                    .findings()
                    .first()
                    .map_or_else(String::new, |finding| finding.message.clone()),
            ),
        }),
    }
}

/// A prefix or an address as other programs write it: with bits behind the length, or a mask.
fn prefix(text: &str) -> Option<IpNet> {
    if let Some((address, mask)) = text.split_once('/')
        && mask.contains(['.', ':'])
    {
        let mask: std::net::IpAddr = mask.parse().ok()?;
        let length = ipnet::ip_mask_to_prefix(mask).ok()?;
        return Some(IpNet::new(address.parse().ok()?, length).ok()?.trunc());
    }
    let net = match text.contains('/') {
        true => text.parse::<IpNet>().ok()?,
        false => IpNet::from(text.parse::<std::net::IpAddr>().ok()?),
    };
    Some(net.trunc())
}

/// Destinations that never go by the proxy (`tproxy_common::verdict::built_in`).
const BUILT_IN: [&str; 8] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/3",
    "::/96",
    "::ffff:0:0/96",
    "fe80::/10",
    "ff00::/8",
];

/// Those that `[bypass] private` is about (`tproxy_common::verdict::is_private`). Set-ups by hand leave out 100.64.0.0/10.
const PRIVATE_V4: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];
const PRIVATE_V6: [&str; 1] = ["fc00::/7"];
const SHARED: &str = "100.64.0.0/10";

fn parsed(texts: &[&str]) -> Vec<IpNet> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn is_built_in(prefix: IpNet) -> bool {
    parsed(&BUILT_IN)
        .iter()
        .any(|range| range.contains(&prefix))
}

fn is_private(prefix: IpNet) -> bool {
    let ranges = [&PRIVATE_V4[..], &PRIVATE_V6, &[SHARED]].concat();
    parsed(&ranges).iter().any(|range| range.contains(&prefix))
}

fn private_ranges(is_v4: bool) -> Vec<IpNet> {
    parsed(if is_v4 { &PRIVATE_V4 } else { &PRIVATE_V6 })
}
