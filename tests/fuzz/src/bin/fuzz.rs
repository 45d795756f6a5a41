//! Tries what libFuzzer thinks of on the target that the environment names.
//!
//! `cargo xtask fuzz` builds and starts it. Without `FUZZ_TARGET` it prints the names of the targets.

#![no_main]

use std::sync::OnceLock;

use fuzz_targets::Target;
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

/// The target that is asked for, or the end of the process.
fn choose() {
    let Some(wanted) = std::env::var_os("FUZZ_TARGET") else {
        for target in Target::all() {
            println!("{}", target.name());
        }
        std::process::exit(0);
    };
    let target = Target::all()
        .into_iter()
        .find(|target| wanted == *target.name());
    let Some(target) = target else {
        eprintln!("there is no target {}", wanted.display());
        std::process::exit(2);
    };
    TARGET.get_or_init(|| target);
}

fuzz_target!(
    init: choose(),
    |bytes: &[u8]| {
        let target = TARGET.get().expect("it was chosen at the start");
        target.check(bytes);
    }
);
