//! Plain prefix lists: one prefix, address or range a line.
//!
//! ```text
//! # a comment; `;` starts one too
//! 192.0.2.0/24
//! 2001:db8::1                       # one address
//! 198.51.100.10 - 198.51.100.99     # both ends belong to it
//! ```
//!
//! Blank lines, spaces around an entry, a byte order mark and either kind of line end do not matter.

use std::fs::File;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use serde::Serialize;
use tproxy_common::abi::BYPASS_CAPACITY;

use super::prefix::{self, excerpt};

/// The path that stands for standard input.
pub const STANDARD_INPUT: &str = "-";

/// How many problems a [`ListError`] describes; it counts the others.
const PROBLEMS_SHOWN: usize = 5;
/// Larger files (in bytes) are no prefix lists: the kernel has room for a tenth of it.
const LARGEST_FILE: u64 = 64 << 20;
/// How many different prefixes the kernel could hold at most.
const MOST_PREFIXES: usize = 2 * BYPASS_CAPACITY as usize;

/// Why prefix lists were refused, all of them: what is wrong in which file and line.
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
    /// The line, counted from 1, if the problem has one.
    pub line: Option<usize>,
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
    /// It is far larger than any prefix list.
    #[error("it is larger than {} MiB, so it is no prefix list", LARGEST_FILE >> 20)]
    TooLarge,
    /// The lists together hold more than the kernel could.
    #[error(
        "the lists hold more than {MOST_PREFIXES} prefixes, which is all that the kernel half has room for"
    )]
    TooMany,
    /// Bytes that are no UTF-8.
    #[error("it is not UTF-8 text; a prefix list is plain text with one prefix a line")]
    NotText,
    /// Nothing but blank lines and comments.
    #[error("it holds no prefix; leave the file out if that is intended")]
    Empty,
    /// Standard input was named a second time.
    #[error("standard input can be read only once")]
    Twice,
    /// A line that is no entry.
    #[error("`{text}`: {reason}")]
    Entry {
        /// The line without its comment.
        text: String,
        /// Why not.
        reason: EntryError,
    },
}

/// Why a line is no entry.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// Neither a prefix nor an address.
    #[error(transparent)]
    Prefix(#[from] prefix::PrefixError),
    /// There is more than one word.
    #[error("more than one entry in a line; a comment starts with # or ;")]
    Words,
    /// One end of a range is not an address.
    #[error(
        "`{0}` is not an address; a range is written `first-last`, with an address at each end"
    )]
    End(String),
    /// A range from one family to the other.
    #[error("a range cannot begin with {0} and end with {1}, which is of the other address family")]
    Families(IpAddr, IpAddr),
    /// The last address lies before the first.
    #[error("the range ends before it begins; write {1}-{0}")]
    Backwards(IpAddr, IpAddr),
}

impl ListError {
    fn push(&mut self, file: &Path, line: Option<usize>, kind: ProblemKind) {
        if self.problems.len() < PROBLEMS_SHOWN {
            self.problems.push(Problem {
                file: file.to_owned(),
                line,
                kind,
            });
        } else {
            self.more += 1;
        }
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
            write!(f, "the prefix lists have {} errors:", self.count())?;
        }
        for problem in &self.problems {
            if several {
                f.write_str("\n  ")?;
            }
            write!(f, "{}", problem.file.display())?;
            if let Some(line) = problem.line {
                write!(f, ":{line}")?;
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

/// Reads prefix lists into one set, in order and without doubles. `-` is standard input.
///
/// # Errors
/// All or nothing: when one file cannot be read or one line is bad, there is no set, and the error
/// names the first of the problems in all of the files. A file without a prefix is an error too,
/// since it is more often a failed download than intended.
pub fn load_files<P: AsRef<Path>>(files: &[P]) -> Result<Vec<IpNet>, ListError> {
    let mut prefixes = Vec::new();
    let mut error = ListError::default();
    let mut standard_input_read = false;
    for file in files.iter().map(AsRef::as_ref) {
        let contents = if file.as_os_str() != STANDARD_INPUT {
            File::open(file).map_err(ProblemKind::Read).and_then(read)
        } else if standard_input_read {
            Err(ProblemKind::Twice)
        } else {
            standard_input_read = true;
            read(io::stdin().lock())
        };
        match contents {
            Ok(bytes) => parse_into(file, &bytes, &mut prefixes, &mut error),
            Err(kind) => error.push(file, None, kind),
        }
    }
    finish(prefixes, error)
}

/// Reads the contents of one prefix list; `file` is its name in errors.
///
/// # Errors
/// As [`load_files`].
pub fn parse(file: &Path, bytes: &[u8]) -> Result<Vec<IpNet>, ListError> {
    let mut prefixes = Vec::new();
    let mut error = ListError::default();
    parse_into(file, bytes, &mut prefixes, &mut error);
    finish(prefixes, error)
}

fn finish(mut prefixes: Vec<IpNet>, error: ListError) -> Result<Vec<IpNet>, ListError> {
    if error.count() > 0 {
        return Err(error);
    }
    prefix::normalize(&mut prefixes);
    Ok(prefixes)
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

fn parse_into(file: &Path, bytes: &[u8], prefixes: &mut Vec<IpNet>, error: &mut ListError) {
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(no_text) => {
            let before = &bytes[..no_text.valid_up_to()];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            error.push(file, Some(line), ProblemKind::NotText);
            return;
        }
    };
    let mut empty = true;
    for (index, line) in text.lines().enumerate() {
        let entry = line
            .find(['#', ';'])
            .map_or(line, |comment| &line[..comment])
            .trim();
        if entry.is_empty() {
            continue;
        }
        empty = false;
        if let Err(reason) = parse_entry(entry, prefixes) {
            error.push(
                file,
                Some(index + 1),
                ProblemKind::Entry {
                    text: excerpt(entry),
                    reason,
                },
            );
        }
        // A range may be hundreds of prefixes, so a hostile list could grow far beyond its size.
        if prefixes.len() > 2 * MOST_PREFIXES {
            prefix::normalize(prefixes);
            if prefixes.len() > MOST_PREFIXES {
                error.push(file, Some(index + 1), ProblemKind::TooMany);
                return;
            }
        }
    }
    if empty {
        error.push(file, None, ProblemKind::Empty);
    }
}

fn parse_entry(entry: &str, prefixes: &mut Vec<IpNet>) -> Result<(), EntryError> {
    // `-` occurs in no address, so it always means a range.
    if let Some((first, last)) = entry.split_once('-') {
        let (first, last) = (parse_end(first.trim())?, parse_end(last.trim())?);
        match (first, last) {
            _ if first > last && first.is_ipv4() == last.is_ipv4() => {
                return Err(EntryError::Backwards(first, last));
            }
            (IpAddr::V4(first), IpAddr::V4(last)) => {
                prefixes.extend(Ipv4Subnets::new(first, last, 0).map(IpNet::V4));
            }
            (IpAddr::V6(first), IpAddr::V6(last)) => {
                prefixes.extend(Ipv6Subnets::new(first, last, 0).map(IpNet::V6));
            }
            _ => return Err(EntryError::Families(first, last)),
        }
        return Ok(());
    }
    prefixes.push(prefix::parse(entry).map_err(|error| {
        if entry.contains(char::is_whitespace) {
            EntryError::Words
        } else {
            error.into()
        }
    })?);
    Ok(())
}

fn parse_end(text: &str) -> Result<IpAddr, EntryError> {
    text.parse().map_err(|_| EntryError::End(excerpt(text)))
}

#[cfg(test)]
#[path = "list_tests.rs"]
mod tests;
