//! What a file is, found from its content.

use super::error::ImportError;
use super::{Input, notes};

/// A form that is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// What `iptables-save` or `ip6tables-save` prints.
    Iptables,
    /// What `ipset save` prints.
    Ipset,
    /// A configuration of Xray or V2Ray.
    Xray,
}

/// Finds it.
pub(super) fn of(input: &Input, text: &str) -> Result<Kind, ImportError> {
    let file = notes::shown(&input.name);
    let refuse = |what, help| {
        Err(ImportError::Kind {
            file: file.clone(),
            what,
            help,
        })
    };
    let is = |wanted: fn(&str) -> bool| text.lines().map(str::trim).any(wanted);
    let first = text.lines().map(str::trim).find(|line| !line.is_empty());
    let first = first.unwrap_or_default().trim_start_matches('\u{feff}');
    if first.starts_with(['{', '/']) && !first.starts_with("/ip") {
        return Ok(Kind::Xray);
    }
    let tables = |line: &str| matches!(line, "*mangle" | "*nat" | "*filter" | "*raw" | "*security");
    if is(tables) {
        return Ok(Kind::Iptables);
    }
    if is(|line| line.starts_with("table ") && line.ends_with('{')) {
        return refuse(
            "a ruleset of nft",
            "only the output of iptables-save and ip6tables-save is. With iptables-nft, run iptables-save; rules that \
             were written for nft itself are to be written anew, by the pages of the documentation",
        );
    }
    if is(|line| line.starts_with("create ") || line.starts_with("add ")) {
        return Ok(Kind::Ipset);
    }
    if is(|line| line.starts_with("iptables ") || line.starts_with("ip6tables ")) {
        return refuse(
            "a script with iptables commands",
            "run it, and give the output of iptables-save and ip6tables-save",
        );
    }
    let yaml = |line: &str| matches!(line, "proxies:" | "rules:" | "proxy-groups:");
    if is(yaml) {
        return refuse(
            "a configuration of Clash or mihomo",
            "give the output of iptables-save, or the configuration of Xray or V2Ray",
        );
    }
    refuse(
        "nothing that is known",
        "give the output of iptables-save, ip6tables-save or ipset save, or the config.json of Xray or V2Ray",
    )
}
