//! `fuzz`: every parser of foreign bytes under LLVM's libFuzzer, for some seconds each.
//!
//! The coverage comes from the compiler's own pass, which stable compilers have too; so neither a nightly nor cargo-fuzz is
//! needed. Only what runs in the target is instrumented: with `--target` cargo keeps the flags from build
//! scripts and macros. The build has a folder of its own below the usual one, so neither spoils the other.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail};

use crate::setup::{self, Need};
use crate::shell;

/// What cargo-fuzz hands to the compiler, but for what only a nightly takes.
const FLAGS: [&str; 6] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// The variable by which the program learns its target.
const TARGET: &str = "FUZZ_TARGET";

/// What is to be done.
#[derive(clap::Args)]
pub struct Options {
    /// Only the targets whose name contains one of these.
    targets: Vec<String>,
    /// How long each target is tried.
    #[arg(long, default_value = "10", conflicts_with = "input")]
    seconds: NonZeroU64,
    /// Give this file to the one target that is named, and nothing else: to see a finding again.
    #[arg(long, requires = "targets")]
    input: Option<PathBuf>,
}

/// Builds the targets and tries them.
///
/// # Errors
/// The build fails, or no target has such a name.
pub fn run(options: &Options) -> Result<ExitCode> {
    setup::ensure(Need::Build)?;
    let program = build()?;
    let output = Command::new(&program).env_remove(TARGET).output();
    let output = output.with_context(|| format!("starting {} failed", program.display()))?;
    let all = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(input) = &options.input {
        let [target] = &options.targets[..] else {
            bail!("`--input` takes one target");
        };
        let status = shell::status(Command::new(&program).env(TARGET, target).arg(input))?;
        return Ok(code(status.success()));
    }
    let names = chosen(&all, &options.targets)?;

    let workers = thread::available_parallelism().map_or(1, |count| count.get().min(names.len()));
    shell::say(&format!(
        "{} targets, {} s each, {workers} at a time",
        names.len(),
        options.seconds
    ));
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = one(&program, name, options.seconds);
                    let mut results = results.lock().expect("no worker panics with the lock");
                    if let Ok(Err(finding)) = &result {
                        eprintln!("{finding}");
                    }
                    results.push((*name, result));
                }
            });
        }
    });
    let mut results = results
        .into_inner()
        .expect("no worker panics with the lock");
    results.sort_by_key(|(name, _)| *name);

    println!(
        "{}",
        Row(
            "target",
            ["executions", "a second", "edges", "corpus"].map(str::to_owned)
        )
    );
    let mut failed = Vec::new();
    for (name, result) in results {
        match result.with_context(|| format!("fuzzing {name}"))? {
            Ok(figures) => println!("{}", figures.row(name)),
            Err(_) => failed.push(name),
        }
    }
    if failed.is_empty() {
        println!("fuzz: nothing found");
    } else {
        println!("fuzz: findings in {}", failed.join(", "));
    }
    Ok(code(failed.is_empty()))
}

fn code(success: bool) -> ExitCode {
    if success {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The program, for this machine and with what it needs to tell the fuzzer where it went.
fn build() -> Result<PathBuf> {
    let host = shell::host()?;
    let folder = shell::target().join("fuzz");
    let mut command = shell::cargo(["build", "--package=fuzz-targets", "--bin=fuzz"]);
    command
        .args(["--features=libfuzzer", "--profile=fuzz", "--target", &host])
        .arg("--target-dir")
        .arg(&folder)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", FLAGS.join(" "));
    shell::run(&mut command)?;
    Ok(folder.join(host).join("fuzz/fuzz"))
}

/// Those of the names that contain one of the filters.
fn chosen<'a>(all: &'a str, filters: &[String]) -> Result<Vec<&'a str>> {
    let fits = |name: &str| filters.is_empty() || filters.iter().any(|part| name.contains(part));
    let names: Vec<&str> = all.lines().filter(|name| fits(name)).collect();
    if names.is_empty() {
        let all: Vec<&str> = all.lines().collect();
        bail!(
            "no target has a name with {filters:?} in it; there are {}",
            all.join(", ")
        );
    }
    Ok(names)
}

/// Tries one target. The seeds are read, and what is found beside them is kept for the next time.
fn one(program: &Path, name: &str, seconds: NonZeroU64) -> Result<Result<Figures, Finding>> {
    let folder = shell::target().join("fuzz");
    let (corpus, findings) = (
        folder.join("corpus").join(name),
        folder.join("findings").join(name),
    );
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder)
            .with_context(|| format!("making {} failed", folder.display()))?;
    }
    let mut command = Command::new(program);
    command
        .current_dir(shell::root())
        .env(TARGET, name)
        // The message says what is wrong; `--input` shows the way there.
        .env("RUST_BACKTRACE", "0")
        .arg(&corpus)
        .arg(Path::new("tests/fuzz/corpus").join(name))
        .arg(format!("-max_total_time={seconds}"))
        .args(["-timeout=10", "-rss_limit_mb=2048"])
        .arg(format!("-artifact_prefix={}/", findings.display()));
    shell::show(&command);
    let output = command.output().context("starting it failed")?;
    let report = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        return Figures::from_report(&report)
            .map(Ok)
            .with_context(|| format!("it says nothing of what it did:\n{report}"));
    }
    Ok(Err(Finding::from_report(name, &report)))
}

/// What a run came to.
#[derive(Debug, PartialEq, Eq)]
struct Figures {
    executions: u64,
    per_second: u64,
    /// Places in the code that were reached, in libFuzzer's count.
    edges: u64,
    /// Inputs that each reach something more.
    corpus: u64,
}

impl Figures {
    /// From libFuzzer's last line of figures: `#524288 DONE cov: 12 ft: 34 corp: 5/67b … exec/s: 890 rss: 40Mb`.
    fn from_report(report: &str) -> Option<Self> {
        let is_last = |line: &&str| line.split_whitespace().nth(1) == Some("DONE");
        let line = report.lines().rfind(is_last)?;
        let mut words = line.split_whitespace();
        let executions = words.next()?.strip_prefix('#')?.parse().ok()?;
        let mut number = |name: &str| -> Option<u64> {
            words.find(|word| *word == name)?;
            words.next()?.split('/').next()?.parse().ok()
        };
        Some(Self {
            executions,
            edges: number("cov:")?,
            corpus: number("corp:")?,
            per_second: number("exec/s:")?,
        })
    }

    fn row<'n>(&self, name: &'n str) -> Row<'n> {
        let figures = [self.executions, self.per_second, self.edges, self.corpus];
        Row(name, figures.map(|figure| figure.to_string()))
    }
}

struct Row<'n>(&'n str, [String; 4]);

impl Display for Row<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(name, [executions, per_second, edges, corpus]) = self;
        write!(
            f,
            "{name:<20} {executions:>12} {per_second:>10} {edges:>8} {corpus:>8}"
        )
    }
}

/// Bytes that broke something.
#[derive(Debug)]
struct Finding {
    /// What libFuzzer and the program said, without the figures of how it went on.
    said: String,
    /// How to see it again.
    again: String,
}

impl Finding {
    fn from_report(name: &str, report: &str) -> Self {
        let progress = |line: &&str| !line.starts_with('#') && !line.starts_with("INFO:");
        let said: Vec<&str> = report.lines().filter(progress).collect();
        let file = report.split("Test unit written to ").nth(1);
        let file = file.and_then(|rest| rest.lines().next());
        Self {
            said: said.join("\n"),
            again: file.map_or_else(
                || "no file was written".to_owned(),
                |file| format!("cargo xtask fuzz {name} --input {file}"),
            ),
        }
    }
}

impl Display for Finding {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nto see it again: {}", self.said, self.again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_come_from_the_last_line_of_the_fuzzer() {
        let report = "INFO: seed\n#2\tINITED cov: 1 ft: 1 corp: 1/1b exec/s: 0 rss: 40Mb\n\
                      #524288\tDONE   cov: 12 ft: 34 corp: 5/67b lim: 4096 exec/s: 890 rss: 41Mb\nDone 524288 runs in 10 second(s)\n";
        let figures = Figures {
            executions: 524_288,
            per_second: 890,
            edges: 12,
            corpus: 5,
        };
        assert_eq!(Figures::from_report(report), Some(figures));
        assert_eq!(Figures::from_report("INFO: seed\n"), None);
    }

    #[test]
    fn a_finding_says_how_to_see_it_again() {
        let report = "INFO: seed\n#2\tINITED cov: 1\nthread panicked\nTest unit written to /x/crash-1\nBase64: AA==\n";
        let finding = Finding::from_report("dns-query", report);
        assert_eq!(
            finding.to_string(),
            "thread panicked\nTest unit written to /x/crash-1\nBase64: AA==\n\
             to see it again: cargo xtask fuzz dns-query --input /x/crash-1"
        );
    }

    #[test]
    fn a_filter_that_fits_nothing_is_told_what_there_is() {
        let filter = |part: &str| [part.to_owned()];
        assert_eq!(chosen("list-srs\nsocks\n", &filter("s")).unwrap().len(), 2);
        assert_eq!(
            chosen("list-srs\nsocks\n", &filter("list")).unwrap(),
            ["list-srs"]
        );
        let error = chosen("list-srs\nsocks\n", &filter("x")).unwrap_err();
        assert!(error.to_string().contains("list-srs, socks"), "{error}");
    }
}
