//! What is wrong with a configuration, for people and for programs.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Serialize, Serializer};

use super::source::{Position, Snippet};

/// How many findings the text of an error shows.
const SHOWN: usize = 20;

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The configuration file.
    #[serde(serialize_with = "lossy_path")]
    pub file: PathBuf,
    /// Where in the file. None if the file could not be read at all.
    #[serde(flatten)]
    pub position: Option<Position>,
    /// What is wrong.
    pub message: String,
    /// What to do about it, if that can be told.
    pub help: Option<String>,
    /// The line itself.
    #[serde(skip)]
    pub(super) snippet: Option<Snippet>,
}

/// Why there is no configuration. `Display` shows each finding with its line, as a compiler does.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("reading the configuration {} failed: {}", .0.file.display(), ReadFailure(.0))]
    Read(Box<Finding>),
    /// The file was read and refused.
    #[error("{0}")]
    Invalid(Findings),
}

/// What is wrong with one file, in the order of the lines. Never empty.
#[derive(Debug)]
pub struct Findings {
    pub(super) file: PathBuf,
    pub(super) list: Vec<Finding>,
    /// How many more there are.
    pub(super) more: usize,
}

impl ConfigError {
    /// Everything that was found, in the order of the lines. When a file is wrong in hundreds of
    /// places, not all of them.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        match self {
            Self::Read(finding) => std::slice::from_ref(finding),
            Self::Invalid(findings) => &findings.list,
        }
    }

    pub(super) fn read(file: &Path, error: &io::Error) -> Self {
        let help = match error.kind() {
            io::ErrorKind::NotFound => "name another file with -c",
            io::ErrorKind::PermissionDenied => "run it as root, or make the file readable",
            io::ErrorKind::IsADirectory => "name a file in it",
            _ => "see if the file is in order",
        };
        Self::Read(Box::new(Finding {
            file: file.to_owned(),
            position: None,
            message: error.to_string(),
            help: Some(help.to_owned()),
            snippet: None,
        }))
    }
}

struct ReadFailure<'f>(&'f Finding);

impl fmt::Display for ReadFailure<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        if let Some(help) = &self.0.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.display();
        match self.list.len() + self.more {
            1 => write!(f, "the configuration {file} has an error")?,
            count => write!(f, "the configuration {file} has {count} errors")?,
        }
        let shown = &self.list[..self.list.len().min(SHOWN)];
        for finding in shown {
            write!(f, "\n\n{finding}")?;
        }
        let more = self.list.len() - shown.len() + self.more;
        if more > 0 {
            write!(f, "\n\nand {more} more")?;
        }
        Ok(())
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let number = self.position.map_or(0, |position| position.line);
        let gutter = number.to_string().len();
        write!(f, "\n{:gutter$}--> {}", "", self.file.display())?;
        if let Some(Position { line, column }) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if let Some(snippet) = &self.snippet {
            let (indent, mark) = (snippet.indent, "^".repeat(snippet.width));
            write!(f, "\n{:gutter$} |", "")?;
            write!(f, "\n{number} | {}", snippet.text)?;
            write!(f, "\n{:gutter$} | {:indent$}{mark}", "", "")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n{:gutter$} = help: {help}", "")?;
        }
        Ok(())
    }
}

/// A path for JSON, where every string has to be UTF-8.
pub(super) fn lossy_path<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}
