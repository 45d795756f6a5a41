//! Every seed goes through its target, without any fuzzer. What once broke a parser is among them.

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fuzz_targets::{CORPUS, Target};

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn no_seed_breaks_its_target() {
    let mut broken = Vec::new();
    for target in Target::all() {
        let seeds = files(&Path::new(CORPUS).join(target.name()));
        assert!(!seeds.is_empty(), "{} has no seeds", target.name());
        for seed in seeds {
            let bytes = fs::read(&seed).unwrap();
            if catch_unwind(AssertUnwindSafe(|| target.check(&bytes))).is_err() {
                broken.push(seed);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn the_corpus_is_small_and_all_of_it_is_used() {
    const MOST: u64 = 300 << 10;
    let targets: BTreeSet<String> = Target::all().iter().map(Target::name).collect();
    let mut total = 0;
    for folder in files(Path::new(CORPUS)) {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        assert!(targets.contains(&name), "{name} is no target");
        total += files(&folder)
            .iter()
            .map(|file| fs::metadata(file).unwrap().len())
            .sum::<u64>();
    }
    assert!(total < MOST, "{total} bytes");
}
