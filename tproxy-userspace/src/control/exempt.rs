//! Edits of who is exempt. Each edit is done whole or not at all.
//!
//! A cgroup is remembered by its path ([`ExemptKind::CgroupPath`]), which survives without a daemon, whether
//! it is there or not. From the paths follow the ids that the programs ask for: every edit brings them up
//! to date, and so does a running proxy when a cgroup comes or goes ([`refresh`]).

mod state;

use std::collections::BTreeSet;
use std::fmt;
use std::io;

use tproxy_common::abi::{ExemptKind, Origin};

use super::accounts::Accounts;
use super::bpf::{self, Maps};
use super::cgroup;
use crate::config::{self, CgroupPath, IdOrName, Mark, Refusal};

use state::State;

/// Why an edit was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What is to be exempt needs cgroup2.
    #[error(
        "cannot exempt {0}: no cgroup2 file system is mounted, and sockets are told apart there; \
         exempt a mark instead, or a destination with `tproxy-bpf bypass add`; or mount it \
         (mkdir -p /run/cgroup2 && mount -t cgroup2 none /run/cgroup2) and start again"
    )]
    NoCgroup2(String),
    /// A name that nobody has.
    #[error(
        "cannot exempt the {kind} {name:?}: there is none of this name; write its number, or make it first"
    )]
    NoSuchName {
        /// "user" or "group".
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// The system does not say who has a name.
    #[error("cannot look up the {kind} {name:?}: {reason}; write its number")]
    Lookup {
        /// "user" or "group".
        kind: &'static str,
        /// The name.
        name: String,
        /// Why.
        reason: io::Error,
    },
    /// The path of a cgroup that cannot be remembered.
    #[error(transparent)]
    Path(#[from] Refusal),
    /// The machine.
    #[error(transparent)]
    Machine(#[from] super::Error),
    /// What is to be removed is not there.
    #[error("the {0} is not exempt, so nothing was removed; `tproxy-bpf exempt list` shows who is")]
    Absent(Exemption),
    /// More than there is room for.
    #[error(
        "there is room for {room} exempt {what}, and {wanted} were wanted; nothing was changed"
    )]
    Full {
        /// Marks, or the others.
        what: &'static str,
        /// How many there may be.
        room: usize,
        /// How many there would be.
        wanted: usize,
    },
    /// A map operation failed. What had been changed was taken back.
    #[error("{0}; nothing was changed")]
    Map(#[source] bpf::Error),
    /// A map operation failed, and so did taking back what had been changed.
    #[error("{edit}; taking back what had been changed failed as well: {undo}")]
    HalfDone {
        /// The first failure.
        #[source]
        edit: Box<bpf::Error>,
        /// The second.
        undo: Box<bpf::Error>,
    },
}

/// Who is exempt.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Exemption {
    /// Sockets made by a process with this real group.
    Gid(u32),
    /// Sockets made by a process with this real user.
    Uid(u32),
    /// Sockets made by a process in this cgroup (its path below the root of cgroup2) or one below it.
    Cgroup(CgroupPath),
    /// Packets, or sockets, with this mark.
    Mark(Mark),
}

impl Exemption {
    /// The word for what it goes by.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Gid(_) => "gid",
            Self::Uid(_) => "uid",
            Self::Cgroup(_) => "cgroup",
            Self::Mark(_) => "mark",
        }
    }

    /// Is it told by the socket's maker? That needs cgroup2.
    #[must_use]
    pub const fn is_by_maker(&self) -> bool {
        !matches!(self, Self::Mark(_))
    }

    /// The name that goes with a gid or uid, if it has one.
    #[must_use]
    pub fn name(&self) -> Option<String> {
        match self {
            Self::Gid(gid) => Accounts::Groups.name(*gid).ok()?,
            Self::Uid(uid) => Accounts::Users.name(*uid).ok()?,
            Self::Cgroup(_) | Self::Mark(_) => None,
        }
    }
}

impl fmt::Display for Exemption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind())?;
        match self {
            Self::Gid(id) | Self::Uid(id) => id.fmt(f),
            Self::Cgroup(path) => path.fmt(f),
            Self::Mark(mark) => mark.fmt(f),
        }
    }
}

/// One that is exempt, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Who.
    pub exemption: Exemption,
    /// By whom.
    pub origin: Origin,
}

/// Finds the numbers of names and the paths below the root of cgroup2. In order, without doubles.
///
/// # Errors
/// [`Error::NoCgroup2`], [`Error::NoSuchName`], [`Error::Lookup`], [`Error::Path`].
pub fn resolve(wanted: &config::Exempt) -> Result<Vec<Exemption>, Error> {
    let root = cgroup::mount()?;
    let mut found = BTreeSet::new();
    for gid in &wanted.gids {
        found.insert(Exemption::Gid(gid_of(gid)?));
    }
    for uid in &wanted.uids {
        found.insert(Exemption::Uid(uid_of(uid)?));
    }
    for path in &wanted.cgroups {
        let path = match &root {
            Some(root) => path.below(root)?,
            None => path.clone(),
        };
        found.insert(Exemption::Cgroup(path));
    }
    found.extend(wanted.marks.iter().map(|mark| Exemption::Mark(*mark)));
    Ok(found.into_iter().collect())
}

fn gid_of(group: &IdOrName) -> Result<u32, Error> {
    number(group, "group", Accounts::Groups)
}

fn uid_of(user: &IdOrName) -> Result<u32, Error> {
    number(user, "user", Accounts::Users)
}

fn number(who: &IdOrName, kind: &'static str, accounts: Accounts) -> Result<u32, Error> {
    let name = match who {
        IdOrName::Id(id) => return Ok(*id),
        IdOrName::Name(name) => name.clone(),
    };
    match accounts.id(&name) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(Error::NoSuchName { kind, name }),
        Err(reason) => Err(Error::Lookup { kind, name, reason }),
    }
}

/// Says what would keep a configuration from being applied here.
///
/// # Errors
/// As [`resolve`], and [`Error::NoCgroup2`].
pub fn check(wanted: &config::Exempt) -> Result<(), Error> {
    check_machine(&resolve(wanted)?)
}

/// Refuses what cannot be exempt without cgroup2, when there is none.
fn check_machine(wanted: &[Exemption]) -> Result<(), Error> {
    let by_maker = wanted.iter().filter(|exemption| exemption.is_by_maker());
    let names: Vec<String> = by_maker.map(ToString::to_string).collect();
    if names.is_empty() || cgroup::mount()?.is_some() {
        return Ok(());
    }
    Err(Error::NoCgroup2(names.join(", ")))
}

/// All who are exempt, in order.
///
/// # Errors
/// [`Error::Map`].
pub fn list(maps: &Maps) -> Result<Vec<Entry>, Error> {
    Ok(State::read(maps)?.entries())
}

/// Exempts somebody, from the next socket or packet on. Who is exempt already is so by `origin` from now on.
///
/// # Errors
/// [`Error::NoCgroup2`], [`Error::Full`], [`Error::Map`].
pub fn add(maps: &mut Maps, added: &[Exemption], origin: Origin) -> Result<(), Error> {
    check_machine(added)?;
    edit(maps, |entries| {
        entries.retain(|entry| !added.contains(&entry.exemption));
        let new: BTreeSet<_> = added.iter().cloned().collect();
        entries.extend(new.into_iter().map(|exemption| Entry { exemption, origin }));
        Ok(())
    })
}

/// Ends exemptions, each of which must be there.
///
/// # Errors
/// [`Error::Absent`], [`Error::Map`].
pub fn remove(maps: &mut Maps, removed: &[Exemption]) -> Result<(), Error> {
    edit(maps, |entries| {
        let present = |who: &Exemption| entries.iter().any(|entry| entry.exemption == *who);
        if let Some(absent) = removed.iter().find(|who| !present(who)) {
            return Err(Error::Absent(absent.clone()));
        }
        entries.retain(|entry| !removed.contains(&entry.exemption));
        Ok(())
    })
}

/// Makes those exempt by one origin be just these. Who is exempt by another origin stays so.
///
/// # Errors
/// As [`add`].
pub fn replace(maps: &mut Maps, wanted: &[Exemption], origin: Origin) -> Result<(), Error> {
    check_machine(wanted)?;
    edit(maps, |entries| {
        entries.retain(|entry| entry.origin != origin);
        let present: BTreeSet<_> = entries
            .iter()
            .map(|entry| entry.exemption.clone())
            .collect();
        let wanted: BTreeSet<_> = wanted.iter().cloned().collect();
        let new = wanted.difference(&present).cloned();
        entries.extend(new.map(|exemption| Entry { exemption, origin }));
        Ok(())
    })
}

/// Applies `[exempt]` of a configuration: what one said before and this one does not say ends. Only the difference
/// is written, so it can be called again.
///
/// # Errors
/// As [`resolve`] and [`replace`].
pub fn configure(maps: &mut Maps, wanted: &config::Exempt) -> Result<(), Error> {
    replace(maps, &resolve(wanted)?, Origin::Config)
}

/// The cgroups that are exempt, there or not.
///
/// # Errors
/// [`Error::Map`].
pub fn cgroups(maps: &Maps) -> Result<BTreeSet<CgroupPath>, Error> {
    let paths = list(maps)?
        .into_iter()
        .filter_map(|entry| match entry.exemption {
            Exemption::Cgroup(path) => Some(path),
            _ => None,
        });
    Ok(paths.collect())
}

/// The ids that the programs know exempt cgroups by.
///
/// # Errors
/// [`Error::Map`].
pub fn cgroup_ids(maps: &Maps) -> Result<BTreeSet<u64>, Error> {
    let keys = State::read(maps)?.makers.into_keys();
    let ids = keys.filter(|key| key.kind == ExemptKind::Cgroup as u32);
    Ok(ids.map(|key| key.id).collect())
}

/// Do the programs know the exempt cgroups by the ids that they have now?
///
/// # Errors
/// [`Error::Map`].
pub fn is_fresh(maps: &Maps) -> Result<bool, Error> {
    let state = State::read(maps)?;
    let root = cgroup::mount()?;
    Ok(state.of(&state.entries(), root.as_deref())? == state)
}

/// Finds the exempt cgroups again, which may have come, gone, or been made anew.
///
/// # Errors
/// [`Error::Map`].
pub fn refresh(maps: &mut Maps) -> Result<(), Error> {
    edit(maps, |_| Ok(()))
}
fn edit(
    maps: &mut Maps,
    change: impl FnOnce(&mut Vec<Entry>) -> Result<(), Error>,
) -> Result<(), Error> {
    let before = State::read(maps)?;
    let mut entries = before.entries();
    change(&mut entries)?;
    entries.sort();
    let root = cgroup::mount()?;
    let after = before.of(&entries, root.as_deref())?;
    let Err(edit) = apply(maps, &before, &after) else {
        return Ok(());
    };
    // How far it came is not known, so all of it is put back.
    let undone = State::read(maps).map(|now| apply(maps, &now, &before));
    match undone {
        Ok(Ok(())) => Err(Error::Map(edit)),
        Ok(Err(undo)) | Err(Error::Map(undo)) => Err(Error::HalfDone {
            edit: Box::new(edit),
            undo: Box::new(undo),
        }),
        Err(error) => Err(error),
    }
}

/// Additions before removals, so that who is exempt by an old and a new entry is so throughout.
fn apply(maps: &mut Maps, before: &State, after: &State) -> Result<(), bpf::Error> {
    for (key, value) in &after.makers {
        if before.makers.get(key) != Some(value) {
            maps.set_exempt(*key, Some(*value))?;
        }
    }
    if before.marks != after.marks {
        maps.set_exempt_marks(after.marks)?;
    }
    for key in before.makers.keys() {
        if !after.makers.contains_key(key) {
            maps.set_exempt(*key, None)?;
        }
    }
    Ok(())
}
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up() {
        let find = |name: &str| gid_of(&name.parse().unwrap());
        assert_eq!(find("root").unwrap(), 0);
        assert_eq!(find("7").unwrap(), 7);
        let error = find("no-such-group").unwrap_err().to_string();
        assert!(error.contains("the group \"no-such-group\""), "{error}");
        assert_eq!(uid_of(&"root".parse().unwrap()).unwrap(), 0);
        assert_eq!(Exemption::Uid(0).name().as_deref(), Some("root"));
    }
}
