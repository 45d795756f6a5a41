//! `exempt`: who on the gateway goes direct, edited on the pinned maps, daemon or not.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};
use tproxy_common::abi::{Link, Origin};
use tproxy_userspace::config;
use tproxy_userspace::control::bpf::{self, Maps};
use tproxy_userspace::control::cgroup;
use tproxy_userspace::control::exempt::{self, Entry, Exemption};
use tproxy_userspace::control::place::{Lock, Place};

use super::output::{self, Table};
use super::{ExemptCommand, WhoArgs, pinned_maps};

/// What a shell ends with when there is no such command, and when it cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

pub fn exempt(command: ExemptCommand) -> Result<ExitCode> {
    // Whatever can be wrong with the words is found before anything is opened.
    match command {
        ExemptCommand::Add(who) => {
            let who = who.parse()?;
            edit(|maps| {
                exempt::add(maps, &who, Origin::Command)?;
                Ok(format!("{} added", exemptions(who.len())))
            })
        }
        ExemptCommand::Del(who) => {
            let who = who.parse()?;
            edit(|maps| {
                exempt::remove(maps, &who)?;
                Ok(format!("{} removed", exemptions(who.len())))
            })
        }
        ExemptCommand::List(read) => list(read.json),
        ExemptCommand::Run { command } => run(&command),
    }
}

impl WhoArgs {
    fn parse(&self) -> Result<Vec<Exemption>> {
        fn all<T>(texts: &[String], option: &'static str) -> Result<Vec<T>>
        where
            T: std::str::FromStr<Err = config::Refusal>,
        {
            let parse = |text: &String| text.parse::<T>().context(option);
            texts.iter().map(parse).collect()
        }
        Ok(exempt::resolve(&config::Exempt {
            gids: all(&self.gid, "--gid")?,
            uids: all(&self.uid, "--uid")?,
            cgroups: all(&self.cgroup, "--cgroup")?,
            marks: all(&self.mark, "--mark")?,
        })?)
    }
}

fn exemptions(count: usize) -> String {
    format!("{count} exemption{}", if count == 1 { "" } else { "s" })
}

/// The maps, while nobody else changes them.
pub(super) fn locked(place: &Place) -> Result<(Maps, Lock)> {
    // Asked first, since taking the lock makes folders.
    pinned_maps(place)?;
    let lock = place.lock()?;
    match pinned_maps(place) {
        Ok(maps) => Ok((maps, lock)),
        // They were removed while this waited.
        Err(error) => {
            place.remove(lock)?;
            Err(error)
        }
    }
}

/// Edits the maps and says what was done, and why it may be of no use.
fn edit(change: impl FnOnce(&mut Maps) -> Result<String>) -> Result<ExitCode> {
    let place = Place::current()?;
    let (mut maps, _lock) = locked(&place)?;
    let said = change(&mut maps)?;
    let force = Force::of(&place, &maps)?;
    let note = if force.wan && force.makers {
        String::new()
    } else {
        format!(" ({})", force.text())
    };
    output::text_out(&format!("{said}{note}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// What of the exemptions has an effect now.
#[derive(Clone, Copy, Serialize)]
pub struct Force {
    /// Is the gateway's own traffic looked at anywhere?
    pub wan: bool,
    /// Are sockets told apart by gid, uid and cgroup?
    pub makers: bool,
}

impl Force {
    pub fn of(place: &Place, maps: &Maps) -> Result<Self> {
        let is_wan = |link: &Link| link.flags & Link::WAN != 0;
        Ok(Self {
            wan: maps.links()?.iter().any(|(_, link)| is_wan(link)),
            makers: bpf::has_sock_create(place.pins()),
        })
    }

    pub fn text(self) -> &'static str {
        match (self.wan, self.makers) {
            (false, _) => {
                "not in force: no WAN link is attached, so all that the gateway itself sends goes direct"
            }
            (true, false) => {
                "by gid, uid, cgroup: not in force, cgroup2 was not mounted at the start; by mark: in force"
            }
            (true, true) => "by gid, uid, cgroup, mark: in force",
        }
    }
}

#[derive(Serialize)]
struct Row {
    kind: &'static str,
    /// The number of a gid or uid, the id of a cgroup (null while there is none), a mark as text.
    id: Value,
    /// The name of a gid or uid, the path of a cgroup.
    name: Option<String>,
    origin: &'static str,
    /// Of a cgroup: is it there?
    exists: Option<bool>,
    in_force: bool,
}

/// `known`: the ids by which the programs know cgroups.
fn row(entry: &Entry, force: Force, known: &BTreeSet<u64>) -> Result<Row> {
    let mut row = Row {
        kind: entry.exemption.kind(),
        id: Value::Null,
        name: entry.exemption.name(),
        origin: entry.origin.word(),
        exists: None,
        in_force: force.wan && (force.makers || !entry.exemption.is_by_maker()),
    };
    match &entry.exemption {
        Exemption::Gid(id) | Exemption::Uid(id) => row.id = json!(id),
        Exemption::Mark(mark) => row.id = json!(mark),
        Exemption::Cgroup(path) => {
            let id = cgroup::mount()?.and_then(|root| cgroup::id(&root, path));
            row.id = json!(id);
            row.name = Some(path.to_string());
            row.exists = Some(id.is_some());
            row.in_force &= id.is_some_and(|id| known.contains(&id));
        }
    }
    Ok(row)
}

fn list(json: bool) -> Result<ExitCode> {
    let place = Place::current()?;
    let maps = pinned_maps(&place)?;
    let force = Force::of(&place, &maps)?;
    let rows = exempt::list(&maps)?;
    let known = exempt::cgroup_ids(&maps)?;
    let rows = rows.iter().map(|entry| row(entry, force, &known));
    let rows = rows.collect::<Result<Vec<_>>>()?;
    if json {
        output::json(&rows)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["kind", "id", "name", "origin", "remark"], &[]);
    for row in rows {
        let id = match row.id {
            Value::Null => "-".to_owned(),
            Value::String(text) => text,
            other => other.to_string(),
        };
        let remark = match row.exists {
            Some(false) => "does not exist yet",
            // Nobody follows cgroups while no proxy runs.
            Some(true) if force.makers && !row.in_force => {
                "made anew: exempt from the next edit on"
            }
            _ => "",
        };
        table.row([
            row.kind.to_owned(),
            id,
            row.name.unwrap_or_else(|| "-".to_owned()),
            row.origin.to_owned(),
            remark.to_owned(),
        ]);
    }
    output::text_out(&format!("{}{}\n", table.render(), force.text()))?;
    Ok(ExitCode::SUCCESS)
}

/// Becomes the command, in the gateway's own exempt cgroup.
fn run(command: &[OsString]) -> Result<ExitCode> {
    let (program, args) = command.split_first().context("no command is named")?;
    enter()?;
    let error = Command::new(program).args(args).exec();
    eprintln!(
        "tproxy-bpf: cannot run {}: {error}; name a program that is in PATH, or its path",
        program.display()
    );
    Ok(if error.kind() == std::io::ErrorKind::NotFound {
        NOT_FOUND.into()
    } else {
        NOT_RUN.into()
    })
}

fn enter() -> Result<()> {
    let place = Place::current()?;
    let (mut maps, _lock) = locked(&place)?;
    let path = cgroup::own(place.namespace());
    let own = Exemption::Cgroup(path.clone());
    let Some(root) = cgroup::mount()? else {
        return Err(exempt::Error::NoCgroup2(own.to_string()).into());
    };
    cgroup::make(&root, &path)?;
    if exempt::cgroups(&maps)?.contains(&path) {
        exempt::refresh(&mut maps)?;
    } else {
        exempt::add(&mut maps, &[own], Origin::Run)?;
    }
    Ok(cgroup::enter(&root, &path)?)
}
