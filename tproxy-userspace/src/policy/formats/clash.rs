//! Rules as Clash, mihomo, Surge and their kin write them, one a line, alone or as YAML.
//!
//! ```text
//! DOMAIN-SUFFIX,example.com          payload:
//! DOMAIN,www.example.org               - '+.example.com'
//! IP-CIDR,192.0.2.0/24,no-resolve      - 192.0.2.0/24
//! ```
//!
//! Format: the documentation of mihomo's rule providers. What follows the value (a policy, `no-resolve`) does
//! not matter here. Rules about something else than names and destinations are passed over and counted.
//! Of YAML there is what such files hold: the key `payload` (or `rules`) and a list of one value a line.

use super::reading::{Reading, Trouble};
use super::{EntryError, plain};
use crate::policy::domain::pattern;

/// Rules about something else.
const OTHER_KINDS: [&str; 44] = [
    "AND",
    "CELLULAR-RADIO",
    "DEST-PORT",
    "DOMAIN-SET",
    "DSCP",
    "DST-PORT",
    "FINAL",
    "GEOIP",
    "GEOSITE",
    "HOSTNAME-TYPE",
    "IN-NAME",
    "IN-PORT",
    "IN-TYPE",
    "IN-USER",
    "IP-ASN",
    "IP-SUFFIX",
    "MAC-ADDRESS",
    "MATCH",
    "NETWORK",
    "NOT",
    "OR",
    "PROCESS-NAME",
    "PROCESS-NAME-REGEX",
    "PROCESS-NAME-WILDCARD",
    "PROCESS-PATH",
    "PROCESS-PATH-REGEX",
    "PROCESS-PATH-WILDCARD",
    "PROTOCOL",
    "RULE-SET",
    "SCRIPT",
    "SRC-GEOIP",
    "SRC-IP",
    "SRC-IP-ASN",
    "SRC-IP-CIDR",
    "SRC-IP-SUFFIX",
    "SRC-MAC",
    "SRC-PORT",
    "SUB-RULE",
    "SUBNET",
    "UID",
    "URL-REGEX",
    "USER-AGENT",
    "DEVICE-NAME",
    "SOURCE-IP",
];
const KINDS: [&str; 14] = [
    "DOMAIN",
    "HOST",
    "DOMAIN-SUFFIX",
    "HOST-SUFFIX",
    "DOMAIN-KEYWORD",
    "HOST-KEYWORD",
    "DOMAIN-REGEX",
    "DOMAIN-WILDCARD",
    "HOST-WILDCARD",
    "IP-CIDR",
    "IP-CIDR6",
    "IP6-CIDR",
    "GEOIP",
    "IP-ASN",
];

/// Is it the first line of such a list?
pub(super) fn opens(line: &str) -> bool {
    let kind = line
        .split(',')
        .next()
        .unwrap_or("")
        .trim()
        .to_ascii_uppercase();
    line.starts_with("payload:")
        || line.starts_with("rules:")
        || line.starts_with("- ")
        || (line.contains(',') && (KINDS.contains(&&*kind) || OTHER_KINDS.contains(&&*kind)))
}

pub(super) fn read(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    out.lines(bytes, without_comment, |out, line| {
        if matches!(line, "payload:" | "rules:" | "---" | "..." | "payload: []") {
            return Ok(());
        }
        match line.strip_prefix("- ") {
            Some(item) => rule(unquoted(item.trim())?, out),
            None if line.starts_with("payload:") || line.starts_with("rules:") => Err(
                EntryError::Line("a list in one line is not read; write one `- value` a line"),
            ),
            None => rule(line, out),
        }
    })
}

/// A comment begins a line or follows a space: expressions hold its marks too.
fn without_comment(line: &str) -> &str {
    let start = line.trim_start();
    if start.starts_with(['#', ';']) || start.starts_with("//") {
        return "";
    }
    let marks = [line.find(" #"), line.find(" //"), line.find("\t#")];
    marks
        .into_iter()
        .flatten()
        .min()
        .map_or(line, |comment| &line[..comment])
}

fn unquoted(text: &str) -> Result<&str, EntryError> {
    for quote in ['\'', '"'] {
        if let Some(rest) = text.strip_prefix(quote) {
            return rest.strip_suffix(quote).ok_or(EntryError::Line(
                "a quotation mark is not closed in its line",
            ));
        }
    }
    Ok(text)
}

fn rule(text: &str, out: &mut Reading) -> Result<(), EntryError> {
    let Some((kind, rest)) = text.split_once(',') else {
        // A value alone: rules of the behaviours "domain" and "ipcidr".
        return plain::entry(text, plain::Bare::Alone, out);
    };
    let kind = kind.trim().to_ascii_uppercase();
    let value = rest.split(',').next().unwrap_or("").trim();
    match kind.as_str() {
        "DOMAIN" | "HOST" => out.full_name(value),
        "DOMAIN-SUFFIX" | "HOST-SUFFIX" => out.suffix(value.strip_prefix('.').unwrap_or(value)),
        "DOMAIN-KEYWORD" | "HOST-KEYWORD" => out.keyword(value),
        // It may hold commas itself.
        "DOMAIN-REGEX" => out.regex(rest.trim()),
        "DOMAIN-WILDCARD" | "HOST-WILDCARD" => {
            out.domain(pattern::glob(value)?);
            Ok(())
        }
        "IP-CIDR" | "IP-CIDR6" | "IP6-CIDR" => out.masked_prefix_text(value),
        other if OTHER_KINDS.contains(&other) => {
            out.pass_over("rules about something else than names and destinations");
            Ok(())
        }
        _ => Err(EntryError::Line(
            "there is no such kind of rule; a line is like `DOMAIN-SUFFIX,example.com`",
        )),
    }
}
