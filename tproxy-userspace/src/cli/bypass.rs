//! `bypass`: the prefixes that go direct, edited on the pinned maps, daemon or not.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use serde::Serialize;
use tproxy_common::abi::Origin;
use tproxy_userspace::config::parse_duration;
use tproxy_userspace::control::bpf::BypassEntry;
use tproxy_userspace::control::bypass::{self, Terms};
use tproxy_userspace::control::place::Place;
use tproxy_userspace::policy::list::load_prefixes;
use tproxy_userspace::policy::prefix;
use tproxy_userspace::policy::source::Source;

use super::output::{self, Table};
use super::progress::Bar;
use super::{BypassCommand, TermsArgs, pinned_maps};

pub fn bypass(command: BypassCommand) -> Result<ExitCode> {
    // Whatever can be wrong with the words is found before anything is opened.
    match command {
        BypassCommand::Add { prefixes, terms } => {
            let (prefixes, terms) = (parse_all(&prefixes)?, terms.parse()?);
            edit(|maps| {
                bypass::add(maps, &prefixes, &terms)?;
                Ok(format!("{} added", output::prefixes(prefixes.len())))
            })
        }
        BypassCommand::Del { prefixes } => {
            let prefixes = parse_all(&prefixes)?;
            edit(|maps| {
                bypass::remove(maps, &prefixes)?;
                Ok(format!("{} removed", output::prefixes(prefixes.len())))
            })
        }
        BypassCommand::Load {
            files,
            replace,
            terms,
        } => load(&files, replace, &terms),
        BypassCommand::Flush => edit(|maps| {
            Ok(format!(
                "{} removed",
                output::prefixes(bypass::flush(maps)?)
            ))
        }),
        BypassCommand::List { hits, read } => list(hits, read.json),
    }
}

fn load(files: &[Source], replace: bool, terms: &TermsArgs) -> Result<ExitCode> {
    let terms = terms.parse()?;
    let started = Instant::now();
    let bar = Bar::new();
    let lists = load_prefixes(files, &mut |progress| {
        bar.set(
            &format!("reading {}", progress.source),
            progress.done,
            progress.total,
        );
    })
    .context("the bypass set was not changed")?;
    let prefixes = lists.entries;
    edit(|maps| {
        bar.wait(&format!("writing {}", output::prefixes(prefixes.len())));
        let text = if replace {
            let replaced = bypass::replace(maps, &prefixes, &terms, Origin::Command)?;
            format!(
                "{} loaded: {} new or changed, {} removed",
                output::prefixes(replaced.wanted),
                output::number(replaced.added as u64),
                output::number(replaced.removed as u64)
            )
        } else {
            bypass::add(maps, &prefixes, &terms)?;
            format!("{} loaded", output::prefixes(prefixes.len()))
        };
        drop(bar);
        let notes: String = lists.notes.iter().map(|note| format!("\n{note}")).collect();
        Ok(format!(
            "{text} ({} ms){notes}",
            started.elapsed().as_millis()
        ))
    })
}

/// Edits the maps while nobody else does, and says what was done.
fn edit(
    change: impl FnOnce(&mut tproxy_userspace::control::bpf::Maps) -> Result<String>,
) -> Result<ExitCode> {
    let place = Place::current()?;
    let mut maps = pinned_maps(&place)?;
    let _lock = place.lock()?;
    output::text_out(&format!("{}\n", change(&mut maps)?))?;
    Ok(ExitCode::SUCCESS)
}

fn parse_all(texts: &[String]) -> Result<Vec<IpNet>> {
    texts
        .iter()
        .map(|text| prefix::parse(text).map_err(anyhow::Error::from))
        .collect()
}

impl TermsArgs {
    fn parse(&self) -> Result<Terms> {
        let ttl = self
            .ttl
            .as_deref()
            .map(parse_duration)
            .transpose()
            .context("--ttl")?;
        if ttl.is_some_and(|ttl| ttl.is_zero()) {
            bail!("--ttl: an entry that holds for no time has no effect; leave --ttl out for ever");
        }
        Ok(Terms {
            ttl,
            note: self.comment.clone().unwrap_or_default(),
        })
    }
}

#[derive(Serialize)]
struct Row {
    prefix: IpNet,
    origin: &'static str,
    /// Seconds until it counts no more; null: never.
    expires_in: Option<u64>,
    packets: u64,
    bytes: u64,
    comment: String,
}

fn row(entry: BypassEntry, now: u64) -> Row {
    Row {
        prefix: entry.prefix,
        origin: Origin::ALL
            .into_iter()
            .find(|origin| *origin as u32 == entry.value.origin)
            .map_or("?", Origin::word),
        expires_in: bypass::time_left(&entry.value, now).map(|left| left.as_secs()),
        packets: entry.value.packets,
        bytes: entry.value.bytes,
        comment: entry.note,
    }
}

fn list(hits: bool, json: bool) -> Result<ExitCode> {
    let place = Place::current()?;
    let now = bypass::now();
    let mut rows: Vec<Row> = pinned_maps(&place)?
        .bypass()?
        .into_iter()
        .filter(|entry| entry.value.expires == 0 || entry.value.expires > now)
        .map(|entry| row(entry, now))
        .collect();
    rows.sort_by_key(|row| (hits.then_some(std::cmp::Reverse(row.packets)), row.prefix));
    if json {
        output::json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut headings = vec!["prefix", "origin", "expires in", "comment"];
    if hits {
        headings.extend(["packets", "bytes"]);
    }
    let mut table = Table::new(&headings, &[4, 5]);
    for row in rows {
        let expires = row.expires_in.map_or("never".into(), |seconds| {
            output::duration(std::time::Duration::from_secs(seconds))
        });
        let mut cells = vec![
            row.prefix.to_string(),
            row.origin.into(),
            expires,
            row.comment,
        ];
        if hits {
            cells.extend([output::number(row.packets), output::bytes(row.bytes)]);
        }
        table.row(cells);
    }
    output::text_out(&table.render())?;
    Ok(ExitCode::SUCCESS)
}
