//! Ratios that were reached once, and that no change may lose by more than a fifth.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result, bail};

use crate::{results::RowResult, rows::ROWS, ways::PROXIED};

/// How much of an accepted ratio must be left.
const LEFT: f64 = 0.8;
/// How often a row is measured that has lost more: the machine may have been busy.
pub const TRIES: u32 = 3;

/// The accepted ratios of our proxy to plain forwarding, by row.
#[derive(Debug)]
pub struct Guard(BTreeMap<String, f64>);

impl Guard {
    /// Reads them from a file: an object of JSON.
    ///
    /// # Errors
    /// When it cannot be read, or names a row that there is not.
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| format!("reading {}", path.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let accepted: BTreeMap<String, f64> = serde_json::from_str(text)?;
        for name in accepted.keys() {
            if !ROWS.iter().any(|row| row.name == name) {
                bail!("no row is called {name}; `cargo xtask bench --list` names them");
            }
        }
        Ok(Self(accepted))
    }

    /// Is there a ratio for the row of this name?
    pub fn knows(&self, row: &str) -> bool {
        self.0.contains_key(row)
    }

    /// What to say of a row that has lost too much.
    pub fn complaint(&self, result: &RowResult) -> Option<String> {
        let accepted = *self.0.get(result.row.name)?;
        let name = result.row.name;
        match result.compared(PROXIED) {
            Some(ratio) if ratio >= LEFT * accepted => None,
            Some(ratio) => Some(format!(
                "{name} has fallen: {ratio:.2} of plain forwarding, and {accepted:.2} was accepted"
            )),
            None => Some(format!(
                "{name} gave no figure, and {accepted:.2} was accepted"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rows::RATE, ways::WAYS};

    fn measured(name: &str, ratio: f64) -> RowResult {
        let row = ROWS.iter().find(|row| row.name == name).expect("a row");
        let mut result = RowResult::new(row);
        for (way, value) in [("plain", 200.0), (PROXIED, 200.0 * ratio)] {
            let way = WAYS.iter().find(|one| one.name == way).expect("a way");
            result.add(&RATE, way, 0, value);
        }
        result
    }

    #[test]
    fn a_fifth_may_be_lost_and_no_more() {
        let guard = Guard::parse(r#"{"connections-50": 0.5}"#).expect("right");
        assert_eq!(guard.complaint(&measured("connections-50", 0.41)), None);
        assert_eq!(
            guard.complaint(&measured("udp-full", 0.1)),
            None,
            "not guarded"
        );
        let complaint = guard.complaint(&measured("connections-50", 0.39));
        assert_eq!(
            complaint.as_deref(),
            Some("connections-50 has fallen: 0.39 of plain forwarding, and 0.50 was accepted")
        );
        let nothing = RowResult::new(measured("connections-50", 1.0).row);
        assert!(
            guard
                .complaint(&nothing)
                .is_some_and(|words| words.contains("no figure"))
        );
    }

    #[test]
    fn the_file_of_the_project_is_right_and_names_are_checked() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/accepted.json");
        let guard = Guard::read(Path::new(path)).expect("right");
        assert!(guard.knows("udp-full"));
        let error = Guard::parse(r#"{"udp-ful": 0.5}"#).expect_err("no such row");
        assert!(error.to_string().starts_with("no row is called udp-ful;"));
    }
}
