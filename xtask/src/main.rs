//! `cargo xtask`: gets what the project needs, builds, shows, tests and measures it. It says what it
//! runs and only spawns.

mod book;
mod bpf_toolchain;
mod dist;
mod elf;
mod faults;
mod fuzz;
mod lint;
mod run;
mod setup;
mod shell;
mod test;
mod vm;
mod wheel;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use setup::Need;

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about, version)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Gets what is missing on this machine: BPF compiler and linker, the programs of the lab.
    ///
    /// The other verbs call it themselves, each for what it needs. A second call does nothing.
    Setup,
    /// Shows tproxy-bpf at work in a lab of network namespaces, which leaves this machine alone.
    ///
    /// With arguments after `--` it runs `tproxy-bpf` with them on this very machine instead:
    /// `cargo xtask run -- run --lan eth0 --outbound direct://`.
    Run {
        /// End after the show instead of keeping the lab up until Ctrl-C.
        #[arg(long, conflicts_with = "arguments")]
        once: bool,
        /// What `tproxy-bpf` is started with.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// Tests everything, the parts that need root included, and sums up in one line.
    ///
    /// `test faults` tries every fault that there is a test for, which takes some minutes, and prints the table of what
    /// devices see; it is also in target/faults.md.
    Test {
        /// Only the tests whose name contains one of these. `faults` alone: all faults, and the table.
        filters: Vec<String>,
    },
    /// Tests on Linux 6.1, in a virtual machine that needs nothing of this one's processor.
    ///
    /// Debian's kernel and QEMU are fetched if they are not there. Nothing of that kernel is installed here.
    Vm(vm::Options),
    /// Formatting, clippy for both halves, rustdoc, the documentation, licences and sources of the dependencies.
    Lint,
    /// Builds the documentation into target/book.
    Book {
        /// Show it in a browser.
        #[arg(long)]
        open: bool,
    },
    /// Gives foreign bytes to every parser of them, in search of some that break it. Fails if there are any.
    Fuzz(fuzz::Options),
    /// Makes what is handed to others: a statically linked program in a tarball and a Debian package.
    Dist(dist::Options),
    /// Measures in the lab, as ratios to plain forwarding.
    Bench {
        /// Handed on to the bench; `--help` lists them.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match dispatch(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup => {
            if setup::ensure(Need::Everything)? == setup::Outcome::NothingToDo {
                println!("Everything is in place.");
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::Run { once, arguments } if arguments.is_empty() => run::show(once),
        Verb::Run { arguments, .. } => run::here(&arguments),
        Verb::Test { filters } if filters == [faults::WORD] => faults::all(),
        Verb::Test { filters } => test::all(&filters),
        Verb::Vm(options) => vm::run(&options),
        Verb::Lint => lint::all(),
        Verb::Book { open } => book::build(open),
        Verb::Fuzz(options) => fuzz::run(&options),
        Verb::Dist(options) => dist::run(&options),
        Verb::Bench { arguments } => run::bench(&arguments),
    }
}
