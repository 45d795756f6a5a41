//! Readers for single values: a TOML value to a typed one, or a finding about it. Each knows what it takes, which
//! the schema is made of.

use std::ops::RangeInclusive;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::read::Faults;
use super::schema::Shape;
use super::{Refusal, duration, nearest};
use crate::policy::prefix::excerpt;

/// A value and where it stands.
pub(super) type Value<'i> = Spanned<DeValue<'i>>;

/// Reads a value, and tells which ones it takes.
pub(super) struct Reader<F> {
    read: F,
    shape: Shape,
}

impl<F> Reader<F> {
    /// One that reads by `read` what has this shape.
    pub fn new<T>(shape: Shape, read: F) -> Self
    where
        F: Fn(&Value<'_>, &Faults) -> Option<T>,
    {
        Self { read, shape }
    }

    /// What it takes.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The value, or none and a finding.
    pub fn read<T>(&self, value: &Value<'_>, faults: &Faults) -> Option<T>
    where
        F: Fn(&Value<'_>, &Faults) -> Option<T>,
    {
        (self.read)(value, faults)
    }

    /// The same for a key that has no default.
    pub fn some<T>(self) -> Reader<impl Fn(&Value<'_>, &Faults) -> Option<Option<T>>>
    where
        F: Fn(&Value<'_>, &Faults) -> Option<T>,
    {
        Reader {
            read: move |value: &Value<'_>, faults: &Faults| (self.read)(value, faults).map(Some),
            shape: self.shape,
        }
    }
}

/// What a TOML value is, in the words of a person.
pub(super) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date or time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

fn expected(what: &str, value: &Value<'_>, help: Option<String>, faults: &Faults) {
    faults.add(
        value.span(),
        format!("expected {what}, found {}", kind(value.get_ref())),
        help,
    );
}

/// `true` or `false`.
pub(super) fn boolean() -> Reader<impl Fn(&Value<'_>, &Faults) -> Option<bool>> {
    Reader::new(Shape::Boolean, read_boolean)
}

fn read_boolean(value: &Value<'_>, faults: &Faults) -> Option<bool> {
    let found = value.get_ref().as_bool();
    if found.is_none() {
        let help = match value.get_ref().as_str() {
            Some(text @ ("true" | "false")) => format!("write {text} without quotes"),
            _ => "write true or false".to_owned(),
        };
        expected("true or false", value, Some(help), faults);
    }
    found
}

/// A whole number in a range; `what` names it.
pub(super) fn integer<T: TryFrom<i128>>(
    what: &'static str,
    range: RangeInclusive<i128>,
) -> Reader<impl Fn(&Value<'_>, &Faults) -> Option<T>> {
    let shape = Shape::Integer(range.clone());
    Reader::new(shape, move |value, faults| {
        let bounds = format!("from {} to {}", range.start(), range.end());
        let Some(integer) = value.get_ref().as_integer() else {
            let help = match value.get_ref().as_str() {
                Some(text) if text.parse::<i128>().is_ok() => {
                    format!("write {text} without quotes")
                }
                _ => format!("write a number {bounds}"),
            };
            expected(what, value, Some(help), faults);
            return None;
        };
        // None here is a number of more than 128 bits.
        let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
        let fitting = number
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok());
        if fitting.is_none() {
            faults.add(
                value.span(),
                format!("{integer} is not {what}"),
                Some(format!("write a number {bounds}")),
            );
        }
        fitting
    })
}

/// A string that `parse` accepts; `what` names it and `example` shows it.
pub(super) fn text<T, E: Into<Refusal>>(
    what: &'static str,
    example: &'static str,
    parse: impl Fn(&str) -> Result<T, E>,
) -> Reader<impl Fn(&Value<'_>, &Faults) -> Option<T>> {
    Reader::new(Shape::Text { example }, move |value, faults| {
        let Some(text) = value.get_ref().as_str() else {
            expected(what, value, Some(format!("write \"{example}\"")), faults);
            return None;
        };
        parse(text)
            .map_err(|refusal| {
                let Refusal { message, help } = refusal.into();
                faults.add(value.span(), message, help);
            })
            .ok()
    })
}

/// A whole number, or a string, that `parse` accepts; `what` names it and `example` shows a string.
pub(super) fn number_or_text<T>(
    what: &'static str,
    example: &'static str,
    parse: impl Fn(&str) -> Result<T, Refusal>,
) -> Reader<impl Fn(&Value<'_>, &Faults) -> Option<T>> {
    let shape = Shape::Either(vec![Shape::Number, Shape::Text { example }]);
    Reader::new(shape, move |value, faults| match value.get_ref() {
        DeValue::Integer(integer) => {
            let number = i128::from_str_radix(integer.as_str(), integer.radix()).ok();
            // What does not fit is shown as it was written.
            let written = number.map_or_else(|| integer.to_string(), |number| number.to_string());
            parse(&written)
                .map_err(|Refusal { message, help }| faults.add(value.span(), message, help))
                .ok()
        }
        _ => text(what, example, &parse).read(value, faults),
    })
}

/// A duration with a least value.
pub(super) fn at_least(
    least: Duration,
) -> Reader<impl Fn(&Value<'_>, &Faults) -> Option<Duration>> {
    within(least..=duration::LONGEST)
}

/// A duration in a range.
pub(super) fn within(
    range: RangeInclusive<Duration>,
) -> Reader<impl Fn(&Value<'_>, &Faults) -> Option<Duration>> {
    let text = text("a duration like \"10s\"", "10s", move |text| {
        let found = duration::parse_duration(text)?;
        let (least, most) = range.clone().into_inner();
        let bound = if found < least {
            format!("at least {}", duration::format_duration(least))
        } else if found > most {
            format!("at most {}", duration::format_duration(most))
        } else {
            return Ok(found);
        };
        Err(Refusal::new(
            format!(
                "`{}` is too {}",
                excerpt(text),
                if found < least { "short" } else { "long" }
            ),
            format!("write {bound}"),
        ))
    });
    Reader::new(Shape::Duration, move |value, faults| {
        text.read(value, faults)
    })
}

/// One of a few words.
pub(super) fn choice<T: Copy>(
    words: &'static [(&'static str, T)],
) -> Reader<impl Fn(&Value<'_>, &Faults) -> Option<T>> {
    let names: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    let all = names
        .iter()
        .map(|name| format!("{name:?}"))
        .collect::<Vec<_>>()
        .join(" or ");
    Reader::new(Shape::Words(names.clone()), move |value, faults| {
        let Some(text) = value.get_ref().as_str() else {
            expected(&all, value, Some(format!("write {all}")), faults);
            return None;
        };
        if let Some((_, meant)) = words.iter().find(|(word, _)| *word == text) {
            return Some(*meant);
        }
        let help = match nearest(text, &names) {
            Some(near) => format!("did you mean {near:?}?"),
            None => format!("write {all}"),
        };
        faults.add(
            value.span(),
            format!("expected {all}, found {:?}", excerpt(text)),
            Some(help),
        );
        None
    })
}

/// An array of values. One bad element does not keep the others from being looked at.
pub(super) fn list<T>(
    what: &'static str,
    one: Reader<impl Fn(&Value<'_>, &Faults) -> Option<T>>,
) -> Reader<impl Fn(&Value<'_>, &Faults) -> Option<Vec<T>>> {
    let shape = Shape::List(Box::new(one.shape().clone()));
    Reader::new(shape, move |value, faults| {
        let Some(elements) = value.get_ref().as_array() else {
            let help = match value.get_ref() {
                DeValue::String(_) => "put it in brackets: [\"…\"]".to_owned(),
                _ => format!("write {what} in brackets: [\"…\", \"…\"]"),
            };
            expected(&format!("an array of {what}"), value, Some(help), faults);
            return None;
        };
        let found: Vec<Option<T>> = elements
            .iter()
            .map(|element| one.read(element, faults))
            .collect();
        found.into_iter().collect()
    })
}

/// The same, with at least one element: where an empty list would match nothing, it is a slip.
pub(super) fn some<T>(
    what: &'static str,
    one: Reader<impl Fn(&Value<'_>, &Faults) -> Option<T>>,
) -> Reader<impl Fn(&Value<'_>, &Faults) -> Option<Vec<T>>> {
    let shape = Shape::Some(Box::new(one.shape().clone()));
    let list = list(what, one);
    Reader::new(shape, move |value, faults| {
        let found = list.read(value, faults)?;
        if found.is_empty() {
            faults.add(
                value.span(),
                "an empty list matches nothing".to_owned(),
                Some("leave the key out if anything may match".to_owned()),
            );
        }
        Some(found)
    })
}
