//! `test faults`: the program and the machine around it fail in every way that there is a test for, and the table of what
//! came of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::setup::{self, Need};
use crate::{run, shell, test};

/// The word by which `test` is asked for it.
pub const WORD: &str = "faults";
/// The folder that the tests write rows to, in the environment. With it they try all faults.
const FOLDER: &str = "LAB_FAULTS";
/// The parts of the table, in the order in which a person wants them.
const PARTS: [&str; 10] = [
    "Start",
    "Start, with clsact",
    "Reload",
    "Takeover, the new process",
    "Takeover, the old process",
    "Stop",
    "Detach",
    "Links, addresses, rules of others",
    "What runs out",
    "The other side",
];

/// Runs all of it, and prints the table.
///
/// # Errors
/// A build fails, or there is no way to be root.
pub fn all() -> Result<ExitCode> {
    shell::as_root("true", "the lab of network namespaces")?;
    setup::ensure(Need::Lab)?;
    run::build()?;
    let rows = shell::target().join("faults.rows");
    match fs::remove_dir_all(&rows) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {} failed", rows.display()));
        }
        _ => {}
    }
    fs::create_dir_all(&rows).with_context(|| format!("making {} failed", rows.display()))?;
    let select = ["--test", WORD];
    let mut tests = match setup::find_tool("cargo-nextest") {
        Some(_) => {
            let mut run = test::with_own_tools(&["nextest", "run", "--no-fail-fast"])?;
            run.args(select);
            run
        }
        None => {
            let mut run = test::tests(&["test", "--no-fail-fast"])?;
            run.args(select).args(["--", "--test-threads=2"]);
            run
        }
    };
    let success = shell::status(tests.env(FOLDER, &rows))?.success();
    let table = table(&read(&rows)?, &machine());
    let file = shell::target().join("faults.md");
    fs::write(&file, &table).with_context(|| format!("writing {} failed", file.display()))?;
    println!("\n{table}");
    println!("The table is in {}", file.display());
    Ok(match success {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// What it was measured on.
fn machine() -> String {
    let release = Command::new("uname").arg("-r").output();
    let release = release.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    format!(
        "Linux {}, links: veth pairs in network namespaces",
        release.unwrap_or_else(|_| "unknown".to_owned())
    )
}

/// The lines of all tests.
fn read(folder: &Path) -> Result<String> {
    let mut text = String::new();
    let entries =
        fs::read_dir(folder).with_context(|| format!("reading {} failed", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        text += &fs::read_to_string(&path)
            .with_context(|| format!("reading {} failed", path.display()))?;
    }
    Ok(text)
}

/// What came of a fault, by one policy.
#[derive(Clone, Debug, Default)]
struct Outcome {
    sees: String,
    leaves: String,
    then: String,
    left: String,
}

/// By place and fault: what came of it with `pass`, and with `drop`.
type Part = BTreeMap<(String, String), [Option<Outcome>; 2]>;

/// The table as Markdown. Rows: part, place, fault, policy, what is seen, what leaves, what then, what is left.
fn table(rows: &str, machine: &str) -> String {
    let mut parts = BTreeMap::<usize, Part>::new();
    for line in rows.lines() {
        let [part, place, fault, policy, sees, leaves, then, left] =
            line.split('\t').collect::<Vec<_>>()[..]
        else {
            continue;
        };
        let index = PARTS.iter().position(|known| *known == part);
        let part = parts.entry(index.unwrap_or(PARTS.len())).or_default();
        let row = part
            .entry((place.to_owned(), fault.to_owned()))
            .or_default();
        row[usize::from(policy == "drop")] = Some(Outcome {
            sees: sees.to_owned(),
            leaves: leaves.to_owned(),
            then: then.to_owned(),
            left: left.to_owned(),
        });
    }
    let mut text = format!("Measured on {machine}.\n");
    for (part, rows) in parts {
        let name = PARTS.get(part).unwrap_or(&"Others");
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "\n### {name}\n\n\
             | fault | pass: a device sees | leaves by the WAN | drop: a device sees | leaves by the WAN | then | left |\n\
             |---|---|---|---|---|---|---|\n"
        );
        for ((_, fault), outcomes) in rows {
            let cell = |outcome: &Option<Outcome>, text: fn(&Outcome) -> &str| {
                let text = outcome.as_ref().map_or("", text);
                if text.is_empty() { "–" } else { text }.to_owned()
            };
            let [pass, drop] = &outcomes;
            let both = |text: fn(&Outcome) -> &str| {
                let mut all: Vec<_> = [pass, drop].map(|one| cell(one, text)).into();
                all.retain(|text| text != "–");
                all.dedup();
                match all.is_empty() {
                    true => "–".to_owned(),
                    false => all.join("; "),
                }
            };
            let _ = writeln!(
                text,
                "| {fault} | {} | {} | {} | {} | {} | {} |",
                cell(pass, |one| &one.sees),
                cell(pass, |one| &one.leaves),
                cell(drop, |one| &one.sees),
                cell(drop, |one| &one.leaves),
                both(|one| &one.then),
                both(|one| &one.left),
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_policies_share_a_row() {
        let rows = "Stop\t001\tx: stop\tdrop\tno answer\tnothing\t\tnothing\n\
                    Stop\t000\tx: kill\tpass\tdirect\tthe device's\tserves\tnothing\n\
                    Stop\t001\tx: stop\tpass\tdirect\tthe device's\tgoes on\tnothing\n\
                    broken\n\
                    Start\t000\ty: kill\tdrop\tdirect\tthe device's\t\tnothing\n";
        let table = table(rows, "a kernel");
        let lines: Vec<_> = table.lines().filter(|line| line.contains(": ")).collect();
        assert_eq!(
            lines[1..],
            [
                "| y: kill | – | – | direct | the device's | – | nothing |",
                lines[2],
                "| x: kill | direct | the device's | – | – | serves | nothing |",
                "| x: stop | direct | the device's | no answer | nothing | goes on | nothing |",
            ]
        );
        assert!(table.contains("Measured on a kernel."));
    }
}
