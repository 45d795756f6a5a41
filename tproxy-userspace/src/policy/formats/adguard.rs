//! Filter lists: AdGuard's DNS filtering syntax, of which the lists of other blockers use parts.
//!
//! | line | entry |
//! |---|---|
//! | `\|\|example.com^` | the name and all below |
//! | `\|\|*.example.com^` | all below |
//! | `\|\|ads*.example.com^` | a regular expression |
//! | `example.com` | the name alone |
//! | `/ads[0-9]+/` | a regular expression |
//! | `0.0.0.0 example.com` | as in a hosts file |
//!
//! Exceptions (`@@`), rules about parts of pages and rules with conditions (`$`) are passed over and
//! counted.

use super::EntryError;
use super::hosts;
use super::reading::{Reading, Trouble};
use crate::policy::domain::pattern;

/// Conditions that hold for a gateway all the same.
const ALWAYS: [&str; 7] = [
    "important",
    "all",
    "third-party",
    "3p",
    "document",
    "doc",
    "popup",
];

pub(super) fn read(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    out.lines(bytes, without_comment, entry)
}

fn without_comment(line: &str) -> &str {
    let line = line.trim();
    let header = line.starts_with('[') && line.ends_with(']');
    // `##` begins a rule about a page, `# ` a comment.
    if header || line.starts_with('!') || (line.starts_with('#') && !line.starts_with("##")) {
        ""
    } else {
        line
    }
}

fn entry(out: &mut Reading, line: &str) -> Result<(), EntryError> {
    if line.starts_with("@@") {
        out.pass_over("exceptions (@@)");
        return Ok(());
    }
    if ["##", "#@#", "#?#", "#$#", "#%#", "$$"]
        .iter()
        .any(|mark| line.contains(mark))
    {
        out.pass_over("rules about parts of pages");
        return Ok(());
    }
    if let Some(rest) = line.strip_prefix('/') {
        return match rest.strip_suffix('/') {
            Some(pattern) => out.regex(pattern),
            None => {
                out.pass_over("rules about addresses of pages");
                Ok(())
            }
        };
    }
    let (pattern, conditions) = line.split_once('$').unwrap_or((line, ""));
    if !conditions.is_empty()
        && !conditions
            .split(',')
            .all(|condition| ALWAYS.contains(&condition))
    {
        out.pass_over("rules with conditions ($)");
        return Ok(());
    }
    if let Some(name) = pattern.strip_prefix("||") {
        let name = name.strip_suffix('|').unwrap_or(name);
        let name = name.strip_suffix('^').unwrap_or(name);
        if name.contains(['/', '|', '^', ':', '?', '='])
            && name.parse::<std::net::IpAddr>().is_err()
        {
            out.pass_over("rules about addresses of pages");
            return Ok(());
        }
        if name.parse::<std::net::IpAddr>().is_ok() {
            return out.prefix_text(name);
        }
        return match name.strip_prefix("*.") {
            Some(below) if !below.contains('*') => out.below(below),
            _ if name.contains('*') => {
                out.domain(pattern::wildcard(name)?);
                Ok(())
            }
            _ => out.suffix(name),
        };
    }
    if pattern.contains(char::is_whitespace) {
        return hosts::entry(
            out,
            pattern.split_once('#').map_or(pattern, |(entry, _)| entry),
        );
    }
    if pattern.contains(['/', '|', '^', '*', ':', '?', '=']) {
        out.pass_over("rules about addresses of pages");
        return Ok(());
    }
    out.full_name(pattern)
}
