//! `test`: everything, and one line that sums it up.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context as _, Result};

use crate::lint::HOST;
use crate::run;
use crate::setup::{self, Need};
use crate::shell;

/// Unit tests, the lab and the examples in the documentation.
///
/// # Errors
/// A build fails, or there is no way to be root.
pub fn all(filters: &[String]) -> Result<ExitCode> {
    // Asked before the long build.
    shell::as_root("true", "the lab of network namespaces")?;
    setup::ensure(Need::Lab)?;
    run::build()?;

    let mut counts = Counts::default();
    if setup::find_tool("cargo-nextest").is_some() {
        counts += with_nextest(filters)?;
    } else {
        counts += with_cargo(&["--all-targets"], filters)?;
    }
    counts += with_cargo(&["--doc"], filters)?;
    if !filters.is_empty() {
        // What the filter left out is not skipped.
        counts.skipped = 0;
    }
    if counts.passed + counts.failed == 0 {
        eprintln!("error: no test ran: none has a name that contains {filters:?}");
    }
    println!("{counts}");
    Ok(counts.exit_code())
}

/// A cargo command that runs test programs, as root.
pub fn tests(verb: &[&str]) -> Result<Command> {
    let mut command = shell::cargo(verb);
    command
        .args(HOST)
        .env(run::PROGRAM, shell::release("tproxy-bpf"));
    if !shell::is_root() {
        // Cargo and its files stay with the user.
        command.env(runner_variable()?, "sudo -E");
    }
    Ok(command)
}

/// The same for a verb that may be of the project's own folder.
pub fn with_own_tools(verb: &[&str]) -> Result<Command> {
    // Cargo finds its own programs by PATH alone.
    let own = crate::bpf_toolchain::tools(&shell::root()).join("bin");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::env::split_paths(&path).chain([own]))
        .context("PATH cannot be extended")?;
    let mut command = tests(verb)?;
    command.env("PATH", path);
    Ok(command)
}

fn with_nextest(filters: &[String]) -> Result<Counts> {
    let report = shell::target().join("nextest/default/junit.xml");
    // An old report must not count when the build fails.
    match fs::remove_file(&report) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {} failed", report.display()));
        }
        _ => {}
    }
    let mut run = with_own_tools(&["nextest", "run"])?;
    run.args(["--no-fail-fast", "--no-tests=pass"])
        .args(filters);
    let success = shell::status(&mut run)?.success();
    let mut counts = match fs::read_to_string(&report) {
        Ok(text) => Counts::from_junit(&text)
            .with_context(|| format!("{} has no counts in it", report.display()))?,
        Err(_) => Counts::default(),
    };
    counts.note_exit(success);
    if filters.is_empty() && success {
        let mut list = with_own_tools(&["nextest", "list"])?;
        list.args([
            "--run-ignored=only",
            "--message-format=oneline",
            "--cargo-quiet",
        ])
        .stderr(Stdio::inherit());
        let output = list.output().context("listing the ignored tests failed")?;
        counts.skipped += String::from_utf8_lossy(&output.stdout).lines().count();
    }
    Ok(counts)
}

/// Libtest itself, whose results come on standard output.
fn with_cargo(which: &[&str], filters: &[String]) -> Result<Counts> {
    let mut command = tests(&["test", "--quiet", "--no-fail-fast"])?;
    command.args(which).arg("--").args(filters);
    if which == ["--all-targets"] {
        // The limit that nextest's configuration sets for the lab.
        command.arg("--test-threads=2");
    }
    shell::show(&command);
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo test failed")?;
    let mut counts = Counts::default();
    if let Some(output) = child.stdout.take() {
        for line in BufReader::new(output).lines() {
            let line = line.context("reading what cargo test says failed")?;
            if let Some(counted) = Counts::from_libtest(&line) {
                counts += counted;
            }
            println!("{line}");
        }
    }
    let status = child.wait().context("waiting for cargo test failed")?;
    counts.note_exit(status.success());
    Ok(counts)
}

/// The variable by which cargo is told what starts the programs it built.
fn runner_variable() -> Result<String> {
    let host = shell::host()?.to_uppercase().replace(['-', '.'], "_");
    Ok(format!("CARGO_TARGET_{host}_RUNNER"))
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl Counts {
    /// From the root element of a JUnit report.
    fn from_junit(text: &str) -> Option<Self> {
        let root = text.split_once("<testsuites ")?.1.split_once('>')?.0;
        let number = |name: &str| {
            let (_, rest) = root.split_once(&format!("{name}=\""))?;
            rest.split_once('"')?.0.parse::<usize>().ok()
        };
        let failed = number("failures")? + number("errors")?;
        Some(Self {
            passed: number("tests")?.checked_sub(failed)?,
            failed,
            skipped: 0,
        })
    }

    /// From libtest's last line, if it is this one.
    fn from_libtest(line: &str) -> Option<Self> {
        let rest = line.strip_prefix("test result: ")?.split_once(". ")?.1;
        let number = |name: &str| {
            rest.split("; ")
                .find_map(|part| part.strip_suffix(name)?.trim().parse::<usize>().ok())
        };
        Some(Self {
            passed: number("passed")?,
            failed: number("failed")?,
            skipped: number("ignored")?,
        })
    }

    /// A run that failed without a failed test (the build broke, the list of tests did) is one.
    fn note_exit(&mut self, success: bool) {
        if !success && self.failed == 0 {
            self.failed = 1;
        }
    }

    fn exit_code(self) -> ExitCode {
        if self.failed == 0 && self.passed > 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Display for Counts {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn counts(passed: usize, failed: usize, skipped: usize) -> Counts {
        Counts {
            passed,
            failed,
            skipped,
        }
    }

    #[test]
    fn counts_come_from_the_root_of_a_junit_report() {
        let report = r#"<?xml version="1.0"?>
            <testsuites name="nextest-run" tests="7" failures="2" errors="1" time="0.1">
                <testsuite name="lab" tests="99" failures="9" errors="9"/></testsuites>"#;
        assert_eq!(Counts::from_junit(report), Some(counts(4, 3, 0)));
        assert_eq!(Counts::from_junit("<testsuites tests=\"1\">"), None);
        assert_eq!(Counts::from_junit(""), None);
    }

    #[test]
    fn counts_come_from_the_last_line_of_libtest() {
        let line = "test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 5 filtered out; finished in 0.00s";
        assert_eq!(Counts::from_libtest(line), Some(counts(3, 1, 2)));
        assert_eq!(Counts::from_libtest("test a::b ... ok"), None);
    }

    #[test]
    fn the_last_line_names_skips_only_when_there_are_some() {
        assert_eq!(counts(4, 0, 0).to_string(), "4 passed, 0 failed");
        assert_eq!(counts(4, 1, 2).to_string(), "4 passed, 1 failed, 2 skipped");
    }

    #[test]
    fn a_run_that_breaks_before_its_tests_has_failed() {
        let mut broken = counts(0, 0, 0);
        broken.note_exit(false);
        assert_eq!(broken, counts(0, 1, 0));
        let mut counted = counts(2, 3, 0);
        counted.note_exit(false);
        assert_eq!(counted, counts(2, 3, 0));
    }

    #[test]
    fn success_takes_a_test_that_passed() {
        let code = |counts: Counts| format!("{:?}", counts.exit_code());
        assert_eq!(code(counts(1, 0, 5)), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code(counts(0, 0, 5)), format!("{:?}", ExitCode::FAILURE));
        assert_eq!(code(counts(9, 1, 0)), format!("{:?}", ExitCode::FAILURE));
    }
}
