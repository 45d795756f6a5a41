//! Plain lists: one entry a line.
//!
//! ```text
//! # a comment; `;` and `//` start one too
//! 192.0.2.0/24
//! 2001:db8::1                       # one address
//! 198.51.100.10 - 198.51.100.99     # both ends belong to it
//! example.com                       # the name and all below it
//! .example.net                      # all below it
//! full:www.example.org              # the name alone; also domain:, keyword: and regexp:
//! ```
//!
//! Blank lines, spaces around an entry, a byte order mark and either kind of line end do not matter. The
//! words with a colon are those of v2fly's domain-list-community. mihomo's text of domains has the
//! same lines, and in it `+.example.com` is the name and all below, `example.com` the name alone, and `*` any
//! one part of a name.

use super::EntryError;
use super::reading::{Reading, Trouble};
use crate::policy::domain::{NameError, pattern};
use crate::policy::prefix::PrefixError;

/// What a name without a mark means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bare {
    /// The name and all below it.
    WithBelow,
    /// The name alone.
    Alone,
}

pub(super) fn read(bytes: &[u8], bare: Bare, out: &mut Reading) -> Result<(), Trouble> {
    out.lines(bytes, without_comment, |out, line| entry(line, bare, out))
}

pub(super) fn without_comment(line: &str) -> &str {
    // A regular expression may hold anything; in its line a comment begins behind a space.
    if line.trim_start().starts_with("regexp:") {
        return line.split_once(" #").map_or(line, |(entry, _)| entry);
    }
    let marks = [line.find(['#', ';']), line.find("//")];
    marks
        .into_iter()
        .flatten()
        .min()
        .map_or(line, |comment| &line[..comment])
}

pub(super) fn entry(line: &str, bare: Bare, out: &mut Reading) -> Result<(), EntryError> {
    if let Some((kind, value)) = line.split_once(':') {
        // Attributes of the source lists of geosite.dat follow the name.
        let name = value
            .split_once(" @")
            .map_or(value, |(name, _)| name)
            .trim();
        match kind {
            "domain" => return out.suffix(name),
            "full" => return out.full_name(name),
            "keyword" => return out.keyword(name),
            "regexp" => return out.regex(name),
            "include" => {
                return Err(EntryError::Line(
                    "a list cannot include another; name both lists",
                ));
            }
            _ => {}
        }
    }
    if let Some(name) = line.strip_prefix("+.") {
        return out.suffix(name);
    }
    if let Some(name) = line.strip_prefix('.') {
        return out.below(name);
    }
    match bare {
        Bare::Alone => match out.prefix_text(line) {
            Err(EntryError::Prefix(PrefixError::Address { .. }) | EntryError::End(_)) => {
                out.domain(pattern::wildcard(line)?);
                Ok(())
            }
            other => other,
        },
        Bare::WithBelow => {
            let error = match out.prefix_text(line) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            match error {
                _ if line.contains(char::is_whitespace) && !line.contains('-') => {
                    Err(EntryError::Words)
                }
                // A slip in an address must not become a name that nobody has, so a name has two parts
                // at least, and its last begins with a letter and has more than one.
                EntryError::Prefix(PrefixError::Address { .. }) | EntryError::End(_) => {
                    let name = if looks_like_name(line) {
                        out.suffix(line)
                    } else {
                        return Err(error);
                    };
                    match name {
                        Err(EntryError::Name(NameError::Character(_))) => Err(error),
                        other => other,
                    }
                }
                error => Err(error),
            }
        }
    }
}

fn looks_like_name(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    text.rsplit_once(['.', '。']).is_some_and(|(_, last)| {
        last.chars().count() > 1 && last.chars().next().is_some_and(char::is_alphabetic)
    })
}
