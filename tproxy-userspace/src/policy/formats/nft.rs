//! Sets of nft: what `nft list set` prints, scripts with `add element`, definitions, and `nft --json`.
//!
//! Format: the manual page of nft; for JSON that of libnftables-json. The elements are taken wherever they
//! stand, of all sets in the file:
//!
//! ```text
//! set cn { type ipv4_addr; flags interval; elements = { 1.0.1.0/24, 1.0.2.0-1.0.3.255 timeout 1h } }
//! add element inet filter cn { 1.0.8.0/21 }
//! define CN = { 1.0.1.0/24, 1.0.2.0/23 }
//! ```

use std::fmt;
use std::net::IpAddr;

use serde::Deserialize;
use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::reading::{Reading, Trouble, text};
use super::{EntryError, Fault, singbox};
use crate::policy::prefix::excerpt;

const CONCATENATED: EntryError = EntryError::Line(
    "only sets of addresses are lists of prefixes; name a file without other sets",
);

pub(super) fn opens(line: &str) -> bool {
    let mut words = line.split_whitespace();
    match words.next().unwrap_or("") {
        "table" | "elements" | "elements={" | "define" | "include" => true,
        "add" | "create" | "flush" | "delete" | "destroy" => words.next().is_some_and(|object| {
            matches!(
                object,
                "table" | "set" | "element" | "chain" | "rule" | "ruleset"
            )
        }),
        "set" => line.contains('{'),
        _ => false,
    }
}

pub(super) fn read(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    let text = text(bytes)?;
    // The words of the statement so far, as far as they matter.
    let (mut first, mut second, mut last) = ("", "", "");
    let mut inside = false;
    // Braces around tables, sets and chains that are open. nft closes them all, so a file that does not is cut off.
    let mut depth = 0_usize;
    let mut element = Element::default();
    let mut line = 1;
    for (this_line, token) in tokens(text) {
        line = this_line;
        if inside {
            match token {
                "," | "}" => {
                    if let Err(reason) = element.take(out) {
                        out.bad_line(line, &element.shown(), reason);
                    }
                    element = Element::default();
                    inside = token == ",";
                    (first, second, last) = ("", "", "");
                }
                _ => element.push(token),
            }
            out.room().map_err(|fault| Trouble::line(line, fault))?;
            continue;
        }
        match token {
            "{" => {
                inside =
                    (last == "=" && matches!(first, "elements" | "define")) || second == "element";
                depth += usize::from(!inside);
                (first, second, last) = ("", "", "");
            }
            "}" | ";" | "," => {
                depth = depth.saturating_sub(usize::from(token == "}"));
                (first, second, last) = ("", "", "");
            }
            "\n" => {
                // The brace may stand in the next line.
                if last != "=" && second != "element" {
                    (first, second, last) = ("", "", "");
                }
            }
            word => {
                match (first, second) {
                    ("", _) => first = word,
                    (_, "") => second = word,
                    _ => {}
                }
                last = word;
            }
        }
    }
    match (inside, depth) {
        (true, _) => Err(Trouble::line(line, Fault::Cut("a list of elements"))),
        (false, 0) => Ok(()),
        (false, _) => Err(Trouble::line(line, Fault::Cut("a table or a set"))),
    }
}

/// An element while its words come.
#[derive(Default)]
struct Element<'a> {
    words: Vec<&'a str>,
    more: bool,
}

impl<'a> Element<'a> {
    fn push(&mut self, word: &'a str) {
        // A comment or a counter follows the first few words.
        if word == "\n" {
        } else if self.words.len() < 4 {
            self.words.push(word);
        } else {
            self.more = true;
        }
    }

    fn take(&self, out: &mut Reading) -> Result<(), EntryError> {
        match self.words[..] {
            [] => Ok(()),
            [first, "-", last, ..] => out.prefix_text(&format!("{first}-{last}")),
            [_, "." | ":", ..] => Err(CONCATENATED),
            [entry]
            | [
                entry,
                "timeout" | "expires" | "comment" | "counter" | "limit" | "quota" | "last",
                ..,
            ] => out.prefix_text(entry),
            _ => Err(EntryError::Words),
        }
    }

    fn shown(&self) -> String {
        self.words.join(" ")
    }
}

/// Words and the marks between them, each with its line. Comments are left out; the end of a line is `"\n"`.
fn tokens(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mark = |character: char| "{},;=\n\"#".contains(character);
    let (mut rest, mut line) = (text, 1);
    std::iter::from_fn(move || {
        loop {
            rest = rest.trim_start_matches(|character: char| {
                character.is_whitespace() && character != '\n'
            });
            let here = line;
            let first = rest.chars().next()?;
            let length = match first {
                '\n' => {
                    line += 1;
                    1
                }
                '#' => {
                    rest = &rest[rest.find('\n').unwrap_or(rest.len())..];
                    continue;
                }
                '"' => {
                    let end = rest[1..]
                        .find(['"', '\n'])
                        .map_or(rest.len(), |end| end + 1);
                    if rest[end..].starts_with('"') {
                        end + 1
                    } else {
                        end
                    }
                }
                _ if mark(first) => first.len_utf8(),
                _ => rest
                    .find(|character: char| character.is_whitespace() || mark(character))
                    .unwrap_or(rest.len()),
            };
            let token;
            (token, rest) = rest.split_at(length);
            return Some((here, token));
        }
    })
}

pub(super) fn json(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    singbox::json(
        bytes,
        Part {
            kind: Kind::Document,
            out,
        },
    )
}

/// What part of the document comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `{"nftables": […]}`
    Document,
    /// A list of `{"set": …}`, `{"element": …}` or `{"add": …}`.
    Command,
    /// `{"elem": […], …}`
    Set,
    /// A text, or an object that says what it is; or a list of them.
    Element,
}

struct Part<'o> {
    kind: Kind,
    out: &'o mut Reading,
}

#[derive(Deserialize)]
struct Prefix {
    addr: String,
    len: u8,
}

impl<'de> DeserializeSeed<'de> for Part<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.kind {
            Kind::Document => "an object with `nftables`",
            Kind::Command => "an object of nft",
            Kind::Set => "a set",
            Kind::Element => "an address, a prefix or a range",
        })
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        if self.kind != Kind::Element {
            return Err(E::invalid_type(serde::de::Unexpected::Str(text), &self));
        }
        take(self.out.prefix_text(text), text)?;
        self.out.room().map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        if !matches!(self.kind, Kind::Command | Kind::Element) {
            return Err(A::Error::invalid_type(serde::de::Unexpected::Seq, &self));
        }
        while list
            .next_element_seed(Part {
                kind: self.kind,
                out: &mut *self.out,
            })?
            .is_some()
        {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let out = self.out;
        while let Some(key) = map.next_key::<String>()? {
            let next = match (self.kind, key.as_str()) {
                (Kind::Document, "nftables") => Kind::Command,
                (Kind::Command, "add" | "create" | "replace") => Kind::Command,
                (Kind::Command, "set" | "element") => Kind::Set,
                (Kind::Set, "elem") | (Kind::Element, "elem" | "val") => Kind::Element,
                (Kind::Element, "prefix") => {
                    let Prefix { addr, len } = map.next_value()?;
                    let text = format!("{addr}/{len}");
                    take(out.prefix_text(&text), &text)?;
                    continue;
                }
                (Kind::Element, "range") => {
                    let [first, last]: [IpAddr; 2] = map.next_value()?;
                    take(out.range(first, last), &format!("{first}-{last}"))?;
                    continue;
                }
                (Kind::Element, "concat" | "map" | "set") => {
                    return Err(A::Error::custom(CONCATENATED));
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            map.next_value_seed(Part {
                kind: next,
                out: &mut *out,
            })?;
        }
        out.room().map_err(A::Error::custom)
    }
}

fn take<E: serde::de::Error>(taken: Result<(), EntryError>, text: &str) -> Result<(), E> {
    taken.map_err(|reason| E::custom(format_args!("`{}`: {reason}", excerpt(text))))
}
