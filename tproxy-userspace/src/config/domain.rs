//! Names, and lists of names, as a configuration has them.

use std::fmt;
use std::path::Path;

use serde::{Serialize, Serializer};

use super::Refusal;
use super::parse::file;
use super::read::Faults;
use super::value::{Reader, Value, text};
use crate::policy::domain::Domain;
use crate::policy::source::Source;

/// The ends of names that are files, not domains: none is a top-level domain.
const EXTENSIONS: [&str; 14] = [
    "conf", "dat", "db", "gz", "json", "list", "lst", "mmdb", "mrs", "srs", "txt", "yaml", "yml",
    "zst",
];

/// Where names come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DomainSource {
    /// Names by a pattern.
    Domain(Domain),
    /// A list.
    List(Source),
}

impl DomainSource {
    /// Reads one. A text with a `/`, with a `:` that follows none of the words of [`Domain`], or that ends like a
    /// file (`.txt`, `.dat`, `.list` and the like) is a list; any other is a name. `folder` is where relative
    /// paths start.
    pub(crate) fn parse(text: &str, folder: &Path) -> Result<Self, Refusal> {
        let form = text.split_once(':').map(|(form, _)| form);
        let is_pattern = matches!(form, Some("full" | "keyword" | "regexp"));
        let last = text.rsplit_once('.').map_or("", |(_, last)| last);
        let is_file = EXTENSIONS
            .iter()
            .any(|known| known.eq_ignore_ascii_case(last));
        if !is_pattern && (is_file || text.contains(['/', ':'])) {
            return file(folder, text).map(Self::List);
        }
        Ok(Self::Domain(text.parse()?))
    }
}

impl fmt::Display for DomainSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Domain(domain) => domain.fmt(f),
            Self::List(source) => source.fmt(f),
        }
    }
}

impl Serialize for DomainSource {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a list of them is called, and how one is read.
pub(super) fn domains(
    folder: &Path,
) -> (
    &'static str,
    Reader<impl Fn(&Value<'_>, &Faults) -> Option<DomainSource>>,
) {
    let read = text("a name or a list", "example.com", move |text| {
        DomainSource::parse(text, folder)
    });
    ("names and lists", read)
}
