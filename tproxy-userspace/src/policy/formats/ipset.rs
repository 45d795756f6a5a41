//! What `ipset save` prints: lines `create NAME TYPE …` and `add NAME ENTRY …`.
//!
//! Format: the manual page of ipset.

use super::EntryError;
use super::reading::{Reading, Trouble};

pub(super) fn opens(line: &str) -> bool {
    let mut words = line.split_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some("create" | "-N"), Some(_), Some(kind)) => kind.contains(':'),
        (Some("add" | "-A"), Some(_), Some(entry)) => {
            entry.starts_with(|first: char| first.is_ascii_hexdigit() || first == ':')
                && entry.contains(['.', ':'])
        }
        _ => false,
    }
}

pub(super) fn read(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    out.lines(bytes, without_comment, |out, line| {
        let words: Vec<&str> = line
            .split_whitespace()
            .filter(|word| !matches!(*word, "-exist" | "-!"))
            .collect();
        match words[..] {
            ["add" | "-A", _, entry, ref options @ ..] => {
                if options.contains(&"nomatch") {
                    return Err(EntryError::Line(
                        "an exception (nomatch) cannot be said in a list; remove it",
                    ));
                }
                out.prefix_text(entry)
            }
            ["create" | "-N", ..] | ["flush" | "destroy" | "-F" | "-X" | "COMMIT", ..] => Ok(()),
            _ => Err(EntryError::Line(
                "an ipset dump has lines like `add NAME 192.0.2.0/24`",
            )),
        }
    })
}

fn without_comment(line: &str) -> &str {
    if line.trim_start().starts_with('#') {
        ""
    } else {
        line
    }
}
