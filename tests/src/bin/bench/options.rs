//! The command line.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use clap::Parser;
use lab::SingBox;

use crate::{
    guard::Guard,
    kernel, lists, outbounds,
    rows::{ROWS, Row},
    top,
    ways::{PLAIN, WAYS, Way},
};

/// Measures tproxy-bpf in a lab of network namespaces, as ratios to plain forwarding.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
pub struct Options {
    /// How often every figure is taken; medians are shown. [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// How long a run lasts, in seconds. [default: 3]
    #[arg(long, value_name = "S", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// Only the rows whose name contains one of these.
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Also writes everything, each single figure included, to a file.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Also draws the ratios of the rows about forwarding, as bars.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Only the rows that this file has accepted ratios for; fails when one has lost more than a fifth.
    #[arg(long, value_name = "FILE")]
    pub guard: Option<PathBuf>,
    /// One round of one second: does it work, and roughly how fast.
    #[arg(long)]
    pub quick: bool,
    /// Other proxies, too, in the rows about forwarding; `cargo xtask bench` gets them.
    #[arg(long)]
    pub peers: bool,
    /// Lists ways and rows and ends.
    #[arg(long)]
    pub list: bool,
}

impl Options {
    /// How often every figure is taken.
    pub fn rounds(&self) -> u32 {
        self.rounds.unwrap_or(if self.quick { 1 } else { 5 })
    }

    /// The length of a run, in whole seconds.
    pub fn seconds(&self) -> u32 {
        self.seconds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    /// The same as a duration.
    pub fn time(&self) -> Duration {
        Duration::from_secs(self.seconds().into())
    }

    /// Is this name asked for?
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    /// Is this asked for, which is no row?
    pub fn wants_beside(&self, name: &str) -> bool {
        self.guard.is_none() && self.wants(name)
    }

    /// The rows that are asked for.
    ///
    /// # Errors
    /// When a word of `--only` is in no name.
    pub fn rows(&self, guard: Option<&Guard>) -> Result<Vec<&'static Row>> {
        for part in &self.only {
            let names =
                ROWS.iter()
                    .map(|row| row.name)
                    .chain([kernel::NAME, lists::NAME, top::NAME]);
            ensure!(
                names.clone().any(|name| name.contains(part.as_str())),
                "--only {part}: no row is called so; there are {}",
                names.collect::<Vec<_>>().join(", ")
            );
        }
        let mut rows: Vec<_> = ROWS.iter().filter(|row| self.wants(row.name)).collect();
        rows.retain(|row| guard.is_none_or(|guard| guard.knows(row.name)));
        let by_server = |row: &&Row| row.name.starts_with(outbounds::NAME);
        // It is the server of these rows.
        if rows.iter().any(by_server) && SingBox::or_skip()?.is_none() {
            rows.retain(|row| !by_server(row));
        }
        Ok(rows)
    }

    /// The ways that these rows compare, plain forwarding first.
    pub fn ways(&self, rows: &[&Row]) -> Vec<&'static Way> {
        WAYS.iter()
            .filter(|way| self.peers || !way.is_rival())
            .filter(|way| rows.iter().any(|row| row.concerns(way)) || way.name == PLAIN)
            .collect()
    }
}
