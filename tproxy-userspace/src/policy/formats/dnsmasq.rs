//! Configuration of dnsmasq: the domains of `server=/x/…`, `local=`, `address=`, `ipset=` and `nftset=`.
//!
//! Format: the manual page of dnsmasq. Such a line is about the names between the slashes and all below
//! them.

use super::EntryError;
use super::reading::{Reading, Trouble};

/// Lines with domains.
const WITH_DOMAINS: [&str; 6] = [
    "server",
    "local",
    "address",
    "ipset",
    "nftset",
    "rev-server",
];
/// Others that stand in the same files.
const OTHERS: [&str; 6] = [
    "bogus-nxdomain",
    "ignore-address",
    "conf-file",
    "conf-dir",
    "no-resolv",
    "cache-size",
];

pub(super) fn opens(line: &str) -> bool {
    line.split_once('=').is_some_and(|(key, _)| {
        let key = key.trim();
        WITH_DOMAINS.contains(&key) || OTHERS.contains(&key)
    })
}

pub(super) fn read(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    out.lines(bytes, without_comment, |out, line| {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        let key_like = |character: char| character.is_ascii_alphanumeric() || character == '-';
        let key = key.trim();
        if key.is_empty() || !key.chars().all(key_like) {
            return Err(EntryError::Line(
                "a line of dnsmasq is `server=/example.com/192.0.2.1` or another `option=value`",
            ));
        }
        let Some(rest) = value
            .trim()
            .strip_prefix('/')
            .filter(|_| WITH_DOMAINS.contains(&key))
        else {
            out.pass_over("options of dnsmasq without a domain");
            return Ok(());
        };
        // What stands behind the last slash is what becomes of the names.
        let Some((names, _)) = rest.rsplit_once('/') else {
            return Err(EntryError::Line(
                "a slash ends the names; write `server=/example.com/192.0.2.1`",
            ));
        };
        for name in names.split('/') {
            match name {
                // `//` stands for names without a dot, `#` for all names.
                "" | "#" => out.pass_over("options of dnsmasq without a domain"),
                _ => match name.strip_prefix("*.") {
                    Some(name) => out.below(name)?,
                    None => out.suffix(name.strip_prefix('.').unwrap_or(name))?,
                },
            }
        }
        Ok(())
    })
}

/// `#` is also the mark of a port, so a comment begins a line or follows a space.
fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        return "";
    }
    line.find(" #")
        .or_else(|| line.find("\t#"))
        .map_or(line, |comment| &line[..comment])
}
