//! Walks through the tables of a TOML document, and notes what is wrong instead of stopping there.

use std::cell::{Cell, RefCell};
use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, Finding, Findings};
use super::nearest;
use super::schema::Shape;
use super::source::Source;
use super::value::{Reader, Value, kind};

/// A broken file may have as many faults as bytes; so many are described, the others counted.
const KEPT: usize = 200;

/// Collects what is wrong with a document.
#[derive(Default)]
pub(super) struct Faults {
    found: RefCell<Vec<Fault>>,
    more: Cell<usize>,
    unknown: RefCell<Vec<UnknownKey>>,
    /// Every key that exists, with the name of its table.
    keys: RefCell<Vec<(String, Key)>>,
}

/// A key that exists.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub name: &'static str,
    /// Whether its table cannot do without it.
    pub required: bool,
    pub shape: Shape,
}

struct Fault {
    span: Range<usize>,
    message: String,
    help: Option<String>,
}

struct UnknownKey {
    span: Range<usize>,
    key: String,
    table: String,
}

impl Faults {
    pub fn add(&self, span: Range<usize>, message: String, help: Option<String>) {
        let mut found = self.found.borrow_mut();
        if found.len() < KEPT {
            found.push(Fault {
                span,
                message,
                help,
            });
        } else {
            self.more.set(self.more.get() + 1);
        }
    }

    /// Unknown keys are explained when all tables have been read, since a key may only be in the
    /// wrong one.
    fn explain_unknown_keys(&self) {
        let keys = self.keys.borrow();
        for unknown in self.unknown.borrow().iter() {
            let here: Vec<&str> = keys
                .iter()
                .filter(|(table, _)| *table == unknown.table)
                .map(|(_, key)| key.name)
                .collect();
            let elsewhere = keys
                .iter()
                .find(|(table, key)| key.name == unknown.key && !table.is_empty());
            let help = if let Some(near) = nearest(&unknown.key, &here) {
                format!("did you mean `{near}`?")
            } else if let Some((table, key)) = elsewhere {
                format!("`{}` is a key of {table}", key.name)
            } else {
                format!("known here: {}", here.join(", "))
            };
            let place = if unknown.table.is_empty() {
                String::new()
            } else {
                format!(" in {}", unknown.table)
            };
            let key = crate::policy::prefix::excerpt(&unknown.key);
            self.add(
                unknown.span.clone(),
                format!("unknown key `{key}`{place}"),
                Some(help),
            );
        }
    }

    /// The error that reports all of it.
    pub fn into_error(self, text: &str, file: &Path) -> ConfigError {
        let source = Source::new(text);
        let mut found = self.found.into_inner();
        found.sort_by_key(|fault| (fault.span.start, fault.span.end));
        let list = found
            .into_iter()
            .map(|fault| Finding {
                file: file.to_owned(),
                position: Some(source.position(fault.span.start)),
                message: fault.message,
                help: fault.help,
                snippet: Some(source.snippet(&fault.span)),
            })
            .collect();
        ConfigError::Invalid(Findings {
            file: file.to_owned(),
            list,
            more: self.more.into_inner(),
        })
    }
}

/// Parses the text and hands its outermost table to `read`.
///
/// Where the text is no TOML, only the first place is reported: a bracket that was not closed makes
/// every line behind it look wrong.
pub(super) fn document<T>(
    text: &str,
    file: &Path,
    read: impl FnOnce(&mut Table<'_>) -> T,
) -> Result<T, ConfigError> {
    let faults = Faults::default();
    let document = match DeTable::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let span = error.span().unwrap_or_default();
            faults.add(span, error.message().to_owned(), None);
            return Err(faults.into_error(text, file));
        }
    };
    let value = outermost(&document, &faults, read);
    faults.explain_unknown_keys();
    if faults.found.borrow().is_empty() {
        return Ok(value);
    }
    Err(faults.into_error(text, file))
}

fn outermost<T>(
    document: &Spanned<DeTable<'_>>,
    faults: &Faults,
    read: impl FnOnce(&mut Table<'_>) -> T,
) -> T {
    let mut root = Table {
        faults,
        name: String::new(),
        place: document.span(),
        entries: Some(document.get_ref()),
        keys: Vec::new(),
    };
    let value = read(&mut root);
    root.finish();
    value
}

/// Every key that `read` knows, with the name of its table, in the order of reading.
pub(super) fn known<T>(read: impl FnOnce(&mut Table<'_>) -> T) -> Vec<(String, Key)> {
    let faults = Faults::default();
    outermost(&Spanned::new(0..0, DeTable::new()), &faults, read);
    faults.keys.into_inner()
}

/// A table that is being read. Each key that is asked for is known from then on; those that nobody
/// asked for are reported in the end.
pub(super) struct Table<'d> {
    faults: &'d Faults,
    /// As errors call it: `[lan]`. Empty for the outermost.
    name: String,
    place: Range<usize>,
    /// None if the document does not have this table.
    entries: Option<&'d DeTable<'d>>,
    keys: Vec<Key>,
}

impl<'d> Table<'d> {
    fn entry(&mut self, name: &'static str, required: bool, shape: Shape) -> Option<&'d Value<'d>> {
        self.keys.push(Key {
            name,
            required,
            shape,
        });
        self.entries?.get(name)
    }

    /// Reads a key that may be missing. `into` stays as it is when the key is missing or bad.
    pub fn optional<T>(
        &mut self,
        key: &'static str,
        into: &mut T,
        reader: Reader<impl Fn(&Value<'_>, &Faults) -> Option<T>>,
    ) {
        if let Some(value) = self.entry(key, false, reader.shape().clone())
            && let Some(value) = reader.read(value, self.faults)
        {
            *into = value;
        }
    }

    /// Reads a key that must be there, and tells where.
    pub fn required<T>(
        &mut self,
        key: &'static str,
        reader: Reader<impl Fn(&Value<'_>, &Faults) -> Option<T>>,
    ) -> Option<Spanned<T>> {
        match self.entry(key, true, reader.shape().clone()) {
            Some(value) => Some(Spanned::new(value.span(), reader.read(value, self.faults)?)),
            None if self.entries.is_some() => {
                self.fault(
                    self.place.clone(),
                    format!("`{key}` is missing in {}", self.name),
                    None,
                );
                None
            }
            None => None,
        }
    }

    /// The document has this table.
    pub fn exists(&self) -> bool {
        self.entries.is_some()
    }

    /// Where the value of a key stands, if it is there.
    pub fn place(&self, key: &str) -> Option<Range<usize>> {
        self.entries?.get(key).map(Spanned::span)
    }

    /// Reports a fault in this table.
    pub fn fault(&self, span: Range<usize>, message: String, help: Option<String>) {
        self.faults.add(span, message, help);
    }

    /// Reads `[key]`. `read` is called without the table too, to learn its keys.
    pub fn table(&mut self, key: &'static str, read: impl FnOnce(&mut Table<'d>)) {
        let name = format!("[{key}]");
        let value = self.entry(key, false, Shape::Table);
        if let Some(value) = value
            && !value.get_ref().is_table()
        {
            self.fault(
                value.span(),
                format!("expected a table, found {}", kind(value.get_ref())),
                Some(format!(
                    "write {name} in a line of its own, and its keys in the lines below"
                )),
            );
        }
        self.inner(name, value, read);
    }

    /// Reads each `[[key]]`. When there is none, `read` is called once to learn the keys.
    pub fn tables(&mut self, key: &'static str, mut read: impl FnMut(&mut Table<'d>)) {
        let name = format!("[[{key}]]");
        let value = self.entry(key, false, Shape::Tables);
        let Some(value) = value else {
            return self.inner(name, None, read);
        };
        let elements: Vec<&'d Value<'d>> = match value.get_ref() {
            DeValue::Array(elements) => elements.iter().collect(),
            _ => vec![value],
        };
        for element in elements {
            let found = kind(element.get_ref());
            if !element.get_ref().is_table() || std::ptr::eq(element, value) {
                self.fault(
                    element.span(),
                    format!("expected one of several tables {name}, found {found}"),
                    Some(format!(
                        "write {name} in a line of its own, and its keys in the lines below"
                    )),
                );
            }
            self.inner(name.clone(), Some(element), &mut read);
        }
    }

    fn inner(&self, name: String, value: Option<&'d Value<'d>>, read: impl FnOnce(&mut Table<'d>)) {
        let mut inner = Table {
            faults: self.faults,
            name,
            place: value.map_or(0..0, Spanned::span),
            entries: value.and_then(|value| value.get_ref().as_table()),
            keys: Vec::new(),
        };
        read(&mut inner);
        inner.finish();
    }

    fn finish(self) {
        for (key, _) in self.entries.into_iter().flatten() {
            if !self.keys.iter().any(|known| *key.get_ref() == known.name) {
                self.faults.unknown.borrow_mut().push(UnknownKey {
                    span: key.span(),
                    key: key.get_ref().clone().into_owned(),
                    table: self.name.clone(),
                });
            }
        }
        let mut known = self.faults.keys.borrow_mut();
        for key in self.keys {
            if !known
                .iter()
                .any(|(table, other)| *table == self.name && other.name == key.name)
            {
                known.push((self.name.clone(), key));
            }
        }
    }
}
