//! The table of faults, a row each, which `cargo xtask test faults` prints.

use std::{
    fs::OpenOptions,
    io::Write,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{Leaves, Policy, Sight};

/// The folder that rows go to, in the environment. With it all faults are tried, without it those that a change should
/// not go without.
const FOLDER: &str = "LAB_FAULTS";

fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).map(PathBuf::from)
}

/// Are all faults to be tried?
#[must_use]
pub fn whole() -> bool {
    folder().is_some()
}

/// What came of a fault.
#[derive(Clone, Debug)]
pub struct Row<'r> {
    /// The part of the table.
    pub part: &'r str,
    /// Where it stands in there.
    pub place: usize,
    /// The fault.
    pub fault: String,
    /// What holds without a proxy.
    pub policy: Policy,
    /// What a device saw of new traffic.
    pub sees: String,
    /// What left by the WAN link.
    pub leaves: String,
    /// What became of connections that were proxied before, or of the fault's end.
    pub then: String,
    /// What was left.
    pub left: String,
}

impl<'r> Row<'r> {
    /// A row of which the rest is to come.
    #[must_use]
    pub fn new(part: &'r str, place: usize, fault: impl Into<String>, policy: Policy) -> Self {
        Self {
            part,
            place,
            fault: fault.into(),
            policy,
            sees: String::new(),
            leaves: String::new(),
            then: String::new(),
            left: String::new(),
        }
    }

    /// With what was seen.
    #[must_use]
    pub fn seen(mut self, sight: Sight, leaves: Leaves) -> Self {
        self.sees = sight.to_string();
        self.leaves = leaves.to_string();
        self
    }

    /// With what came then.
    #[must_use]
    pub fn then(mut self, then: &str) -> Self {
        then.clone_into(&mut self.then);
        self
    }

    /// With what was left, and tells it.
    ///
    /// # Errors
    /// When the folder cannot be written to.
    pub fn left(mut self, left: &str) -> Result<()> {
        left.clone_into(&mut self.left);
        let line = [
            self.part,
            &format!("{:03}", self.place),
            &self.fault,
            self.policy.word(),
            &self.sees,
            &self.leaves,
            &self.then,
            &self.left,
        ]
        .join("\t");
        eprintln!("{}", line.replace('\t', " | "));
        folder().map_or(Ok(()), |folder| append(&folder, &line))
    }
}

/// Each process has a file of its own.
fn append(folder: &Path, line: &str) -> Result<()> {
    let path = folder.join(format!("{}.tsv", std::process::id()));
    let open = OpenOptions::new().create(true).append(true).open(&path);
    open.and_then(|mut file| writeln!(file, "{line}"))
        .with_context(|| format!("writing {}", path.display()))
}
