//! sing-box's rule sets in JSON.
//!
//! Format: sing-box's documentation, "Source Format" and "Headless Rule":
//!
//! ```text
//! {"version": 3, "rules": [{"domain": […], "domain_suffix": […], "ip_cidr": […]}, …]}
//! ```
//!
//! A list of one may be the value itself. In a rule names and addresses are alternatives; everything else is a
//! condition beside them, which a list cannot say. Such a rule is passed over and counted, and so are rules that
//! are inverted or joined by `and`.

use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor,
};

use super::reading::{Reading, Trouble, text};
use super::{EntryError, Fault, srs};

pub(super) const INVERTED: &str = "inverted rules";
pub(super) const CONDITIONS: &str = "rules with conditions beside names and destinations";
pub(super) const JOINED: &str = "rules joined by `and`, or inverted";

pub(super) fn read(bytes: &[u8], out: &mut Reading) -> Result<(), Trouble> {
    json(bytes, RuleSet(out))
}

/// Reads a JSON file that is one value.
pub(super) fn json<'a>(bytes: &'a [u8], seed: impl DeserializeSeed<'a>) -> Result<(), Trouble> {
    let mut json = serde_json::Deserializer::from_str(text(bytes)?);
    let read = seed.deserialize(&mut json).map(drop);
    read.and_then(|()| json.end()).map_err(|error| {
        let place = error.line();
        if error.is_eof() {
            return Trouble::line(place, Fault::Cut("the JSON"));
        }
        // The place is told by us.
        let message = error.to_string();
        let message = message
            .split(" at line ")
            .next()
            .unwrap_or(&message)
            .to_owned();
        Trouble::line(place, Fault::Json(message))
    })
}

/// The whole file.
struct RuleSet<'o>(&'o mut Reading);

impl<'de> DeserializeSeed<'de> for RuleSet<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for RuleSet<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a rule set: an object with `version` and `rules`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        const NEWEST: u64 = srs::NEWEST as u64;
        let mut rules = false;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "version" => {
                    let version: u64 = map.next_value()?;
                    if !(1..=NEWEST).contains(&version) {
                        let fault = Fault::Version {
                            found: version,
                            known: NEWEST,
                        };
                        return Err(A::Error::custom(fault));
                    }
                }
                "rules" => {
                    rules = true;
                    map.next_value_seed(Rules(self.0))?;
                }
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        if rules {
            Ok(())
        } else {
            Err(A::Error::missing_field("rules"))
        }
    }
}

struct Rules<'o>(&'o mut Reading);

impl<'de> DeserializeSeed<'de> for Rules<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Rules<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of rules")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut rules: A) -> Result<(), A::Error> {
        while rules.next_element_seed(Rule(&mut *self.0))?.is_some() {}
        Ok(())
    }
}

struct Rule<'o>(&'o mut Reading);

impl<'de> DeserializeSeed<'de> for Rule<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Rule<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a rule: an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let out = self.0;
        // What a rule says counts only if nothing else in it speaks against that, which may come last.
        let mut part = Reading::default();
        let (mut inverted, mut conditions, mut logical, mut any) = (false, false, false, false);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "domain" => map.next_value_seed(Texts(&mut |text| part.full_name(text)))?,
                "domain_suffix" => {
                    map.next_value_seed(Texts(&mut |text| suffix(text, &mut part)))?;
                }
                "domain_keyword" => map.next_value_seed(Texts(&mut |text| part.keyword(text)))?,
                "domain_regex" => map.next_value_seed(Texts(&mut |text| part.regex(text)))?,
                "ip_cidr" => {
                    map.next_value_seed(Texts(&mut |text| part.masked_prefix_text(text)))?;
                }
                "invert" => inverted = map.next_value()?,
                "type" => logical = map.next_value::<String>()? == "logical",
                "mode" => any = map.next_value::<String>()? == "or",
                "rules" => map.next_value_seed(Rules(&mut part))?,
                _ => {
                    conditions = true;
                    map.next_value::<IgnoredAny>()?;
                }
            }
            part.room().map_err(A::Error::custom)?;
        }
        match (logical, inverted) {
            (false, true) => out.pass_over(INVERTED),
            (false, false) if conditions => out.pass_over(CONDITIONS),
            (true, _) if inverted || !any => out.pass_over(JOINED),
            _ => out.append(part),
        }
        out.room().map_err(A::Error::custom)
    }
}

fn suffix(text: &str, out: &mut Reading) -> Result<(), EntryError> {
    match text.strip_prefix('.') {
        Some(name) => out.below(name),
        None => out.suffix(text),
    }
}

/// One text or a list of them.
struct Texts<'t>(&'t mut dyn FnMut(&str) -> Result<(), EntryError>);

impl<'de> DeserializeSeed<'de> for Texts<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Texts<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text or a list of texts")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<(), E> {
        let excerpt = crate::policy::prefix::excerpt;
        (self.0)(text).map_err(|reason| E::custom(format_args!("`{}`: {reason}", excerpt(text))))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while list.next_element_seed(Texts(&mut *self.0))?.is_some() {}
        Ok(())
    }
}
