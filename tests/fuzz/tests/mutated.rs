//! What nobody thought of, without a fuzzer: for a fixed time each target gets its seeds with changes made by chance.
//!
//! It finds less than `cargo xtask fuzz`, which sees where bytes lead, and needs no build of its own. `FUZZ_MILLISECONDS`
//! is the time for each target.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuzz_targets::{CORPUS, Target};
use rand::rngs::ThreadRng;
use rand::{RngExt as _, rng};

/// For each target, unless somebody wants another.
const TIME: Duration = Duration::from_millis(400);
/// Longer inputs only take longer.
const LONGEST: usize = 4096;
/// So many changes at most from a seed to an input.
const CHANGES: usize = 8;
/// Numbers at which parsers go wrong.
const EDGES: [u64; 9] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    u64::MAX,
];

fn seeds(target: &Target) -> Vec<Vec<u8>> {
    let folder = Path::new(CORPUS).join(target.name());
    let files = fs::read_dir(folder).expect("a folder of seeds");
    files
        .map(|file| fs::read(file.unwrap().path()).unwrap())
        .collect()
}

/// One change at a place of chance.
fn change(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], chance: &mut ThreadRng) {
    let at = chance.random_range(0..=bytes.len());
    let end = (at + chance.random_range(1..=16)).min(bytes.len());
    match chance.random_range(0..9) {
        0 if at < bytes.len() => bytes[at] ^= 1 << chance.random_range(0..8),
        1 if at < bytes.len() => bytes[at] = chance.random(),
        2 => {
            let count = chance.random_range(1..=8);
            let new: Vec<u8> = (0..count).map(|_| chance.random()).collect();
            bytes.splice(at..at, new);
        }
        3 => drop(bytes.drain(at..end)),
        4 => bytes.truncate(at),
        5 => {
            let again = bytes[at..end].to_vec();
            bytes.splice(end..end, again);
        }
        6 => {
            // A part of another seed.
            let other = &seeds[chance.random_range(0..seeds.len())];
            let from = chance.random_range(0..=other.len());
            let to = (from + chance.random_range(1..=64)).min(other.len());
            bytes.splice(at..end, other[from..to].iter().copied());
        }
        7 => {
            // A number at the edge of what fits, in either order of its bytes.
            let width = [1, 2, 4, 8][chance.random_range(0..4)];
            let edge = EDGES[chance.random_range(0..EDGES.len())];
            let (big, little) = (edge.to_be_bytes(), edge.to_le_bytes());
            let new = if chance.random() {
                &big[8 - width..]
            } else {
                &little[..width]
            };
            let end = (at + width).min(bytes.len());
            bytes.splice(at..end, new.iter().copied());
        }
        _ => {
            // A letter or sign of text.
            let letters = b"0159afzAZ.:,;/@#[]{}()\"'\\ =-_*?+^$\n\r\t";
            let new = letters[chance.random_range(0..letters.len())];
            bytes.splice(at..at, [new]);
        }
    }
    bytes.truncate(LONGEST);
}

/// Tries for so long. Gives how many inputs it were, or one that broke the target.
fn tried(target: &Target, time: Duration) -> Result<u64, Vec<u8>> {
    let seeds = seeds(target);
    let mut chance = rng();
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < time {
        let mut bytes = seeds[chance.random_range(0..seeds.len())].clone();
        for _ in 0..chance.random_range(1..=CHANGES) {
            change(&mut bytes, &seeds, &mut chance);
        }
        if catch_unwind(AssertUnwindSafe(|| target.check(&bytes))).is_err() {
            return Err(bytes);
        }
        count += 1;
    }
    Ok(count)
}

/// Keeps what broke a target.
fn keep(target: &Target, bytes: &[u8]) -> PathBuf {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("broke-{}", target.name()));
    fs::write(&file, bytes).unwrap();
    file
}

#[test]
fn no_changed_seed_breaks_its_target() {
    let told = std::env::var("FUZZ_MILLISECONDS").ok();
    let told = told.map(|told| told.parse().expect("FUZZ_MILLISECONDS is a number"));
    let time = told.map_or(TIME, Duration::from_millis);
    let mut broken = Vec::new();
    for target in Target::all() {
        match tried(&target, time) {
            Ok(count) => {
                println!("{:<20} {count:>9} inputs", target.name());
                assert!(count > 0);
            }
            Err(bytes) => {
                let file = keep(&target, &bytes);
                broken.push(format!(
                    "cargo xtask fuzz {} --input {}",
                    target.name(),
                    file.display()
                ));
            }
        }
    }
    assert!(broken.is_empty(), "to see it again:\n{}", broken.join("\n"));
}

#[test]
fn changes_make_seeds_longer_and_shorter() {
    let seeds = [b"seed".to_vec()];
    let mut chance = rng();
    let mut lengths = (0..1000).map(|_| {
        let mut bytes = seeds[0].clone();
        change(&mut bytes, &seeds, &mut chance);
        bytes.len()
    });
    let (shorter, longer) = (
        lengths.any(|length| length < 4),
        lengths.any(|length| length > 4),
    );
    assert!(shorter && longer);
}
