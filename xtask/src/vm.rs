//! `vm`: tests on an older kernel than this machine has, in a virtual machine whose processor is emulated, so that none
//! of its own is needed.
//!
//! The root of this machine is the root of that one, read-only and with a layer of memory on top. So the programs that were
//! built here run there as they are, and nothing they do is seen here.

mod image;
mod kernel;

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::lint::HOST;
use crate::setup::{self, Need};
use crate::{run, shell};

use kernel::Kernel;

/// What is tested, as test program and filters; without filters all of it.
type Set = &'static [(&'static str, &'static [&'static str])];

/// The kernel takes the programs, they decide rightly, and a proxy comes, carries TCP and UDP of both families, is killed,
/// is followed by another and leaves nothing.
const SMALL: Set = &[
    ("kernel", &["destinations_decide"]),
    ("lifecycle", &["killed_with_pass_new_traffic_goes_direct"]),
];

/// What depends on the kernel. The rest differs in userspace, which the kernel is the same for.
const LARGE: Set = &[
    ("faults", &["clock"]),
    ("kernel", &[]),
    ("lifecycle", &[]),
    (
        "tcp",
        &[
            "each_side_may_end_its_direction_first",
            "a_reset_reaches_the_other_side",
            "nobody_upstream_is_a_reset_at_once",
        ],
    ),
    (
        "udp",
        &[
            "every_size_comes_back_whole",
            "anyone_may_write_to_a_mapped_port",
        ],
    ),
    (
        "own",
        &[
            "all_kinds_go_through_the_proxy_without",
            "datagrams_of_all_sizes",
            "a_session_from_before",
            "roles_of_a_link",
        ],
    ),
];

/// How many times as long as here the tests wait there.
const PATIENCE: u32 = 20;
/// For the first sign of life; it comes after ten seconds on an idle machine.
const BOOT: Duration = Duration::from_mins(3);
/// How much of the kernel's words is shown when it did not come up.
const LAST_WORDS: usize = 25;

/// What `vm` is told.
#[derive(clap::Args)]
pub struct Options {
    /// Only what a change should not go without: some two minutes.
    #[arg(long)]
    small: bool,
    /// A shell in the virtual machine instead of tests. It ends with the shell.
    #[arg(long, conflicts_with_all = ["small", "tests"])]
    shell: bool,
    /// How many minutes the tests may take in all.
    #[arg(long, default_value_t = 120)]
    minutes: u64,
    /// Other tests: the name of a test program of the lab, or `PROGRAM::FILTER`.
    #[arg(conflicts_with = "small")]
    tests: Vec<String>,
}

/// Boots it, and runs there what was asked for.
///
/// # Errors
/// The kernel or QEMU cannot be had, the build fails, or the virtual machine does not come up or to an end.
pub fn run(options: &Options) -> Result<ExitCode> {
    if std::env::consts::ARCH != "x86_64" {
        bail!(
            "the virtual machine runs the programs of this one, and there is a kernel for x86_64 only"
        );
    }
    setup::ensure(Need::Vm)?;
    let folder = shell::target().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("making {} failed", folder.display()))?;
    let kernel = Kernel::get(&folder)?;
    let program = match std::env::var_os(run::PROGRAM) {
        // Whoever names one has built it.
        Some(program) => PathBuf::from(program),
        None => {
            run::build()?;
            shell::release("tproxy-bpf")
        }
    };
    let job = if options.shell {
        job(
            &program,
            &["exec setsid --ctty sh -c 'stty sane; exec sh -i'".to_owned()],
        )
    } else {
        let wanted = wanted(options);
        job(&program, &lines(&wanted, &build()?)?)
    };
    let image = image::make(&folder, &kernel, &job)?;
    let console = folder.join("console.log");
    // Else the words of another kernel would be taken for this one's.
    let _ = fs::remove_file(&console);
    let mut machine = machine(&kernel, &image, &console);
    if options.shell {
        return shell::exec(&mut machine);
    }
    let limit = Duration::from_secs(60 * options.minutes);
    shell::say(&format!(
        "Linux {} on an emulated processor; what the kernel says goes to {}",
        kernel.release,
        console.display()
    ));
    let start = Instant::now();
    let code = watch(machine.stdin(Stdio::null()), limit, &console)?;
    println!(
        "vm: Linux {}, {} s",
        kernel.release,
        start.elapsed().as_secs()
    );
    Ok(code)
}

/// Test programs and their filters.
fn wanted(options: &Options) -> Vec<(String, Vec<String>)> {
    if !options.tests.is_empty() {
        let parts = options
            .tests
            .iter()
            .map(|test| match test.split_once("::") {
                Some((program, filter)) => (program.to_owned(), vec![filter.to_owned()]),
                None => (test.clone(), Vec::new()),
            });
        return parts.collect();
    }
    let set = if options.small { SMALL } else { LARGE };
    set.iter()
        .map(|(program, filters)| {
            let filters = filters.iter().map(ToString::to_string).collect();
            ((*program).to_owned(), filters)
        })
        .collect()
}

/// All test programs of the lab. Built as `test` builds them: to leave some out changes the features of dependencies, which
/// would be built again.
fn build() -> Result<Vec<PathBuf>> {
    let mut command = shell::cargo(["test", "--no-run"]);
    command.args(HOST);
    command.arg("--message-format=json-render-diagnostics");
    shell::show(&command);
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo test failed")?;
    if !output.status.success() {
        bail!("cargo test failed ({})", output.status);
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().filter_map(executable).collect())
}

/// The program of the lab that a message of cargo tells of. Other packages have tests of the same names.
fn executable(message: &str) -> Option<PathBuf> {
    if !message.contains("#lab@") {
        return None;
    }
    let (_, rest) = message.split_once("\"executable\":\"")?;
    Some(PathBuf::from(rest.split_once('"')?.0))
}

/// The commands that run the tests.
fn lines(wanted: &[(String, Vec<String>)], programs: &[PathBuf]) -> Result<Vec<String>> {
    let mut lines = vec!["failed=0".to_owned()];
    for (name, filters) in wanted {
        // cargo appends a hash.
        let is_it = |path: &&PathBuf| {
            path.file_name()
                .and_then(|file| file.to_str()?.rsplit_once('-'))
                .is_some_and(|(stem, _)| stem == name)
        };
        let Some(program) = programs.iter().find(is_it) else {
            bail!("cargo built no test program {name:?}");
        };
        let filters: String = filters
            .iter()
            .map(|filter| format!(" '{filter}'"))
            .collect();
        lines.push(format!("echo '{name}{filters}'"));
        lines.push(format!(
            "'{}' --test-threads=2{filters} || failed=1",
            program.display()
        ));
    }
    lines.push("exit $failed".to_owned());
    Ok(lines)
}

/// What the virtual machine does when it is up.
fn job(program: &Path, lines: &[String]) -> String {
    let exports = [
        ("PATH", std::env::var("PATH").unwrap_or_default()),
        ("HOME", "/root".to_owned()),
        ("RUST_BACKTRACE", "0".to_owned()),
        ("LAB_PATIENCE", PATIENCE.to_string()),
        // Nobody else goes by it, so a test may set it.
        ("LAB_OWN_CLOCK", "1".to_owned()),
        (run::PROGRAM, program.display().to_string()),
    ];
    let mut job = format!("cd '{}/tests'\n", shell::root().display());
    for (name, value) in exports {
        job += &format!("export {name}='{value}'\n");
    }
    job += &lines.join("\n");
    job + "\n"
}

/// QEMU. The kernel has one serial line to itself, the tests another.
fn machine(kernel: &Kernel, image: &Path, console: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max"])
        .args(["-smp", "2", "-m", "3072"])
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none"])
        .arg("-kernel")
        .arg(&kernel.program)
        .arg("-initrd")
        .arg(image)
        .args(["-append", "console=ttyS0 panic=-1 mitigations=off"])
        .arg("-virtfs")
        .arg("local,path=/,mount_tag=outside,security_model=none,readonly=on,multidevs=remap")
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio"]);
    command
}

/// Ends with this, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs it, shows what the tests say, and says how they ended.
fn watch(machine: &mut Command, limit: Duration, console: &Path) -> Result<ExitCode> {
    shell::show(machine);
    let child = machine.stdout(Stdio::piped()).spawn();
    let mut child = Running(child.context("starting qemu-system-x86_64 failed")?);
    let (say, hear) = mpsc::channel();
    if let Some(output) = child.0.stdout.take() {
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if say.send(line).is_err() {
                    break;
                }
            }
        });
    }
    let mut until = (Instant::now() + BOOT, "come up", BOOT);
    loop {
        let left = until.0.saturating_duration_since(Instant::now());
        let line = match hear.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => bail!(
                "the virtual machine did not {} within {} s and was ended{}",
                until.1,
                until.2.as_secs(),
                last_words(console)
            ),
            Err(RecvTimeoutError::Disconnected) => bail!(
                "the virtual machine ended before its tests did{}",
                last_words(console)
            ),
        };
        let Some(word) = line.strip_prefix("vm: ") else {
            if line.trim_end() == "running 0 tests" {
                bail!("no test has the name in the line above");
            }
            println!("{}", line.trim_end());
            continue;
        };
        if word.starts_with("up") {
            until = (
                Instant::now() + limit,
                "come to the end of its tests",
                limit,
            );
        } else if let Some(code) = word.trim_end().strip_prefix("exit ") {
            return Ok(match code {
                "0" => ExitCode::SUCCESS,
                _ => ExitCode::FAILURE,
            });
        } else {
            bail!(
                "the virtual machine could not be set up: {word}{}",
                last_words(console)
            );
        }
    }
}

/// What the kernel said last.
fn last_words(console: &Path) -> String {
    let Ok(file) = File::open(console) else {
        return String::new();
    };
    let lines: Vec<String> = BufReader::new(file).lines().map_while(Result::ok).collect();
    let last = &lines[lines.len().saturating_sub(LAST_WORDS)..];
    format!(
        ". The kernel's last words, all of which are in {}:\n{}",
        console.display(),
        last.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_program_is_found_by_its_name() {
        let message = r#"{"package_id":"path+file:///x/tests#lab@0.1.0","executable":"/x/deps/kernel-0af1","fresh":true}"#;
        let programs: Vec<PathBuf> = [
            r#"{"package_id":"path+file:///x/other#0.1.0","executable":"/x/deps/kernel-1"}"#,
            message,
            r#"{"package_id":"path+file:///x/tests#lab@0.1.0","executable":null}"#,
        ]
        .into_iter()
        .filter_map(executable)
        .collect();
        assert_eq!(programs, [Path::new("/x/deps/kernel-0af1")]);
        let wanted = |name: &str| vec![(name.to_owned(), vec!["some".to_owned()])];
        let all = lines(&wanted("kernel"), &programs).unwrap().join("\n");
        assert!(all.contains("'/x/deps/kernel-0af1' --test-threads=2 'some' || failed=1"));
        assert!(lines(&wanted("kern"), &programs).is_err());
    }
}
