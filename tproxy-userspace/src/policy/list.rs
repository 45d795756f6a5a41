//! Lists from files: read in any of the [`formats`], all of them or nothing.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Serialize;

use super::aggregate::aggregate;
use super::domain::Domain;
use super::formats::{self, Entries, Fault, Place, Troubles};
use super::source::{STANDARD_INPUT, Source};

/// How many problems a [`ListError`] describes; it counts the others.
const PROBLEMS_SHOWN: usize = 5;
/// Larger files (in bytes) are no lists: the largest in use, databases of places, have a half of it.
const LARGEST_FILE: u64 = 256 << 20;

/// Why lists were refused, all of them: what is wrong in which file and where.
#[derive(Debug, Default, Serialize)]
pub struct ListError {
    problems: Vec<Problem>,
    /// How many were found beside `problems`.
    more: usize,
}

/// One thing that is wrong with a list.
#[derive(Debug, Serialize)]
pub struct Problem {
    /// The file, or `-` for standard input.
    pub file: PathBuf,
    /// Where in it, if the problem has a place: in JSON `line`, `byte` or `unpacked_byte`.
    #[serde(flatten)]
    pub place: Option<Place>,
    /// What is wrong.
    #[serde(rename = "message", serialize_with = "message")]
    pub kind: ProblemKind,
}

/// What is wrong with a list.
#[derive(Debug, thiserror::Error)]
pub enum ProblemKind {
    /// The file cannot be read.
    #[error("reading it failed: {0}")]
    Read(#[source] io::Error),
    /// It is far larger than any list.
    #[error("it is larger than {} MiB, so it is no list", LARGEST_FILE >> 20)]
    TooLarge,
    /// Standard input was named a second time.
    #[error("standard input can be read only once")]
    Twice,
    /// There are domains where prefixes are wanted.
    #[error(
        "it holds domains only ({0} of them), and this is about prefixes; name a list of prefixes"
    )]
    DomainsOnly(usize),
    /// There are prefixes where domains are wanted.
    #[error(
        "it holds prefixes only ({0} of them), and this is about domains; name a list of domains"
    )]
    PrefixesOnly(usize),
    /// There is neither.
    #[error("it holds no prefix and no domain but {0}; name another list")]
    Others(String),
    /// What it holds.
    #[error(transparent)]
    Content(#[from] Fault),
}

impl ListError {
    fn push(&mut self, file: &Path, place: Option<Place>, kind: ProblemKind) {
        if self.problems.len() < PROBLEMS_SHOWN {
            self.problems.push(Problem {
                file: file.to_owned(),
                place,
                kind,
            });
        } else {
            self.more += 1;
        }
    }

    fn push_all(&mut self, file: &Path, troubles: Troubles) {
        for trouble in troubles.list {
            self.push(file, trouble.place, trouble.fault.into());
        }
        self.more += troubles.more;
    }

    /// The first few problems, in the order of the files and lines.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// How many there are in all.
    #[must_use]
    pub fn count(&self) -> usize {
        self.problems.len() + self.more
    }
}

impl std::error::Error for ListError {}

impl std::fmt::Display for ListError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let several = self.count() > 1;
        if several {
            write!(f, "the lists have {} errors:", self.count())?;
        }
        for problem in &self.problems {
            if several {
                f.write_str("\n  ")?;
            }
            write!(f, "{}", problem.file.display())?;
            if let Some(place) = problem.place {
                write!(f, "{place}")?;
            }
            write!(f, ": {}", problem.kind)?;
        }
        if self.more > 0 {
            write!(f, "\n  and {} more", self.more)?;
        }
        Ok(())
    }
}

fn message<S: serde::Serializer>(kind: &ProblemKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(kind)
}

/// What lists came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded<T> {
    /// The entries of all of them.
    pub entries: Vec<T>,
    /// What was passed over, a sentence for each list that it stands in.
    pub notes: Vec<String>,
}

/// How far the reading is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The list that is read next.
    pub source: &'a Source,
    /// Bytes of the files that are read before it.
    pub done: u64,
    /// Bytes of all files, as far as they have a size.
    pub total: u64,
}

/// Reads lists into one set of the fewest prefixes that cover all of theirs, in order. Domains in them are
/// passed over, which a note tells.
///
/// # Errors
/// All or nothing: when one file cannot be read or one entry is bad, there is no set, and the error
/// names the first of the problems in all of the files. A file without a prefix is an error too,
/// since it is more often a failed download than intended.
pub fn load_prefixes(
    sources: &[Source],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Loaded<IpNet>, ListError> {
    let mut loaded = load(sources, progress, |entries| {
        match (entries.prefixes.len(), entries.domains.len()) {
            (0, 0) => Err(ProblemKind::Others(others(&entries))),
            (0, domains) => Err(ProblemKind::DomainsOnly(domains)),
            (_, 0) => Ok((entries.prefixes, None)),
            (_, domains) => Ok((entries.prefixes, Some(counted(domains, "domains")))),
        }
    })?;
    loaded.entries = aggregate(&loaded.entries);
    if loaded.entries.len() > formats::MOST_PREFIXES {
        let mut error = ListError::default();
        let last = sources.last().map_or(Path::new(""), Source::named);
        error.push(
            last,
            None,
            Fault::TooManyPrefixes(formats::MOST_PREFIXES).into(),
        );
        return Err(error);
    }
    Ok(loaded)
}

/// Reads lists of domains, in order and without doubles. Prefixes in them are passed over, which a note
/// tells.
///
/// # Errors
/// As [`load_prefixes`].
pub fn load_domains(
    sources: &[Source],
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Loaded<Domain>, ListError> {
    let mut loaded = load(sources, progress, |entries| {
        match (entries.domains.len(), entries.prefixes.len()) {
            (0, 0) => Err(ProblemKind::Others(others(&entries))),
            (0, prefixes) => Err(ProblemKind::PrefixesOnly(prefixes)),
            (_, 0) => Ok((entries.domains, None)),
            (_, prefixes) => Ok((entries.domains, Some(counted(prefixes, "prefixes")))),
        }
    })?;
    loaded.entries.sort_unstable();
    loaded.entries.dedup();
    Ok(loaded)
}

fn load<T>(
    sources: &[Source],
    progress: &mut dyn FnMut(Progress<'_>),
    pick: impl Fn(Entries) -> Result<(Vec<T>, Option<String>), ProblemKind>,
) -> Result<Loaded<T>, ListError> {
    let sizes: Vec<u64> = sources.iter().map(size).collect();
    let total = sizes.iter().sum();
    let mut done = 0;
    let mut loaded = Loaded {
        entries: Vec::new(),
        notes: Vec::new(),
    };
    let mut error = ListError::default();
    let mut standard_input_read = false;
    for (source, size) in sources.iter().zip(sizes) {
        progress(Progress {
            source,
            done,
            total,
        });
        done += size;
        let Some(entries) = read_source(source, &mut standard_input_read, &mut error) else {
            continue;
        };
        let passed_over = others(&entries);
        match pick(entries) {
            Ok((picked, left)) => {
                loaded.entries.extend(picked);
                let left: Vec<String> = left
                    .into_iter()
                    .chain((!passed_over.is_empty()).then_some(passed_over))
                    .collect();
                if !left.is_empty() {
                    loaded
                        .notes
                        .push(format!("{source}: passed over {}", left.join(", ")));
                }
            }
            Err(kind) => error.push(source.named(), None, kind),
        }
    }
    if error.count() > 0 {
        Err(error)
    } else {
        Ok(loaded)
    }
}

/// What is neither a prefix nor a domain.
fn others(entries: &Entries) -> String {
    let kinds: Vec<String> = entries
        .passed_over
        .iter()
        .map(|kind| counted(kind.count, kind.what))
        .collect();
    kinds.join(", ")
}

fn counted(count: usize, what: &str) -> String {
    format!("{what} ({count})")
}

fn is_file(path: &Path) -> bool {
    path.try_exists().unwrap_or(false)
}

fn size(source: &Source) -> u64 {
    let (file, _) = source.resolve(is_file);
    file.metadata().map_or(0, |metadata| metadata.len())
}

fn read_source(
    source: &Source,
    standard_input_read: &mut bool,
    error: &mut ListError,
) -> Option<Entries> {
    let (file, selector) = source.resolve(is_file);
    let contents = if file.as_os_str() != STANDARD_INPUT {
        File::open(file).map_err(ProblemKind::Read).and_then(read)
    } else if std::mem::replace(standard_input_read, true) {
        Err(ProblemKind::Twice)
    } else {
        read(io::stdin().lock())
    };
    let bytes = match contents {
        Ok(bytes) => bytes,
        Err(kind) => {
            error.push(file, None, kind);
            return None;
        }
    };
    match formats::read(file, &bytes, selector.as_ref()) {
        Ok(entries) => Some(entries),
        Err(troubles) => {
            error.push_all(file, troubles);
            None
        }
    }
}

fn read(source: impl Read) -> Result<Vec<u8>, ProblemKind> {
    let mut bytes = Vec::new();
    source
        .take(LARGEST_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(ProblemKind::Read)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(ProblemKind::TooLarge);
    }
    Ok(bytes)
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
