//! Edits of who is exempt. Each edit is done whole or not at all.
//!
//! A cgroup is remembered by its path ([`ExemptKind::CgroupPath`]), which survives without a daemon, whether
//! it is there or not. From the paths follow the ids that the programs ask for: every edit brings them up
//! to date, and so does a running proxy when a cgroup comes or goes ([`refresh`]).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User};
use tproxy_common::abi::{
    EXEMPT_CAPACITY, EXEMPT_MARKS, EXEMPT_TEXT_BYTES, Exempt, ExemptKey, ExemptKind, ExemptMark,
    ExemptMarks, Origin,
};

use super::bpf::{self, Maps};
use super::cgroup;
use crate::config::{self, CgroupPath, IdOrName, Mark, Refusal};

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
        reason: nix::Error,
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
            Self::Gid(gid) => Some(Group::from_gid(Gid::from_raw(*gid)).ok()??.name),
            Self::Uid(uid) => Some(User::from_uid(Uid::from_raw(*uid)).ok()??.name),
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
    let find = |name: &str| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()));
    number(group, "group", find)
}

fn uid_of(user: &IdOrName) -> Result<u32, Error> {
    let find = |name: &str| Ok(User::from_name(name)?.map(|user| user.uid.as_raw()));
    number(user, "user", find)
}

fn number(
    who: &IdOrName,
    kind: &'static str,
    find: impl FnOnce(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, Error> {
    let name = match who {
        IdOrName::Id(id) => return Ok(*id),
        IdOrName::Name(name) => name.clone(),
    };
    match find(&name) {
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

/// What is in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    makers: BTreeMap<ExemptKey, Exempt>,
    marks: ExemptMarks,
}

impl State {
    fn read(maps: &Maps) -> Result<Self, Error> {
        Ok(Self {
            makers: maps.exempt().map_err(Error::Map)?.into_iter().collect(),
            marks: maps.exempt_marks().map_err(Error::Map)?,
        })
    }

    /// Who is exempt by it. What another version may have written and is not understood is left out.
    fn entries(&self) -> Vec<Entry> {
        let makers = self.makers.iter().filter_map(|(key, value)| {
            let number = u32::try_from(key.id);
            let exemption = match key.kind {
                kind if kind == ExemptKind::Gid as u32 => Exemption::Gid(number.ok()?),
                kind if kind == ExemptKind::Uid as u32 => Exemption::Uid(number.ok()?),
                kind if kind == ExemptKind::CgroupPath as u32 => Exemption::Cgroup(path_in(value)?),
                _ => return None,
            };
            let origin = origin_of(value.origin);
            Some(Entry { exemption, origin })
        });
        let used = EXEMPT_MARKS.min(self.marks.count as usize);
        let marks = self.marks.marks[..used].iter().filter_map(|mark| {
            let origin = origin_of(mark.origin);
            let exemption = Exemption::Mark(Mark::new(mark.value, mark.mask).ok()?);
            Some(Entry { exemption, origin })
        });
        let mut entries: Vec<_> = makers.chain(marks).collect();
        entries.sort();
        entries
    }

    /// The ids by which the programs know a cgroup.
    fn ids_of(&self, path: &CgroupPath) -> Vec<u64> {
        let cgroups = self.makers.iter();
        let cgroups = cgroups.filter(|(key, _)| key.kind == ExemptKind::Cgroup as u32);
        cgroups
            .filter(|(_, value)| path_in(value).as_ref() == Some(path))
            .map(|(key, _)| key.id)
            .collect()
    }

    /// What is to be in the maps for these entries, cgroup2 being mounted at `root`. Paths keep the keys
    /// that they have here, and their ids where cgroup2 cannot be asked: a command may be in another mount
    /// namespace than the proxy.
    fn of(&self, entries: &[Entry], root: Option<&Path>) -> Result<Self, Error> {
        let mut state = Self::default();
        let by_path: BTreeMap<CgroupPath, ExemptKey> = self
            .makers
            .iter()
            .filter(|(key, _)| key.kind == ExemptKind::CgroupPath as u32)
            .filter_map(|(key, value)| Some((path_in(value)?, *key)))
            .collect();
        let taken: BTreeSet<u64> = by_path.values().map(|key| key.id).collect();
        let mut free = (1..).filter(|id| !taken.contains(id));
        let mut marks = Vec::new();
        for Entry { exemption, origin } in entries {
            let origin = *origin as u32;
            match exemption {
                Exemption::Gid(id) => {
                    let key = key(ExemptKind::Gid, (*id).into());
                    state.makers.insert(key, value(origin, ""));
                }
                Exemption::Uid(id) => {
                    let key = key(ExemptKind::Uid, (*id).into());
                    state.makers.insert(key, value(origin, ""));
                }
                Exemption::Cgroup(path) => {
                    let known = by_path.get(path).copied();
                    let by_path = known
                        .or_else(|| Some(key(ExemptKind::CgroupPath, free.next()?)))
                        .expect("more numbers than entries");
                    let value = value(origin, path.as_str());
                    state.makers.insert(by_path, value);
                    let ids = match root {
                        Some(root) => cgroup::id(root, path).into_iter().collect(),
                        None => self.ids_of(path),
                    };
                    for id in ids {
                        state.makers.insert(key(ExemptKind::Cgroup, id), value);
                    }
                }
                Exemption::Mark(mark) => marks.push(ExemptMark {
                    value: mark.value(),
                    mask: mark.mask(),
                    origin,
                }),
            }
        }
        let full = |what, room, wanted| Error::Full { what, room, wanted };
        // Each cgroup needs room for its path and its id.
        let cgroups = entries
            .iter()
            .filter(|entry| matches!(entry.exemption, Exemption::Cgroup(_)));
        let room = EXEMPT_CAPACITY as usize;
        let wanted = entries.len() - marks.len() + cgroups.count();
        if wanted > room {
            return Err(full(
                "gids, uids and cgroups (each of which counts twice)",
                room,
                wanted,
            ));
        }
        if marks.len() > EXEMPT_MARKS {
            return Err(full("marks", EXEMPT_MARKS, marks.len()));
        }
        state.marks.count = marks.len() as u32;
        state.marks.marks[..marks.len()].copy_from_slice(&marks);
        Ok(state)
    }
}

fn key(kind: ExemptKind, id: u64) -> ExemptKey {
    ExemptKey {
        kind: kind as u32,
        unused: 0,
        id,
    }
}

fn value(origin: u32, text: &str) -> Exempt {
    let mut value = Exempt {
        origin,
        unused: 0,
        text: [0; EXEMPT_TEXT_BYTES],
    };
    // `CgroupPath::below` has seen to it that it fits.
    let length = text.len().min(EXEMPT_TEXT_BYTES);
    value.text[..length].copy_from_slice(&text.as_bytes()[..length]);
    value
}

fn path_in(value: &Exempt) -> Option<CgroupPath> {
    let text = value.text.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn origin_of(number: u32) -> Origin {
    let all = [Origin::Config, Origin::Run];
    let known = all.into_iter().find(|origin| *origin as u32 == number);
    known.unwrap_or(Origin::Command)
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

    fn cgroup(path: &str) -> Exemption {
        Exemption::Cgroup(path.parse().unwrap())
    }

    fn mark(text: &str) -> Exemption {
        Exemption::Mark(text.parse().unwrap())
    }

    fn entries(exemptions: &[Exemption]) -> Vec<Entry> {
        let mut entries: Vec<_> = exemptions
            .iter()
            .zip(
                [Origin::Command, Origin::Config, Origin::Run]
                    .into_iter()
                    .cycle(),
            )
            .map(|(exemption, origin)| Entry {
                exemption: exemption.clone(),
                origin,
            })
            .collect();
        entries.sort();
        entries
    }

    #[test]
    fn what_is_stored_is_read_back() {
        let all = entries(&[
            Exemption::Gid(0),
            Exemption::Uid(0),
            Exemption::Gid(IdOrName::LARGEST),
            cgroup("/a"),
            cgroup(&format!("/{}", "b".repeat(EXEMPT_TEXT_BYTES - 1))),
            mark("0x10"),
            mark("0x80000/0xff0000"),
        ]);
        let state = State::default().of(&all, None).unwrap();
        assert_eq!(state.entries(), all);
        assert_eq!(state.makers.len(), 5);
        assert_eq!(state.of(&all, None).unwrap(), state);
    }

    #[test]
    fn a_cgroup_is_known_by_its_path_and_while_it_is_there_by_its_id() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("a");
        let ids = |state: &State| -> Vec<u64> {
            let cgroups = state.makers.keys();
            let cgroups = cgroups.filter(|key| key.kind == ExemptKind::Cgroup as u32);
            cgroups.map(|key| key.id).collect()
        };
        let both = entries(&[cgroup("/a"), cgroup("/b")]);
        let absent = State::default().of(&both, Some(root.path())).unwrap();
        assert!(ids(&absent).is_empty());
        std::fs::create_dir(&folder).unwrap();
        let there = absent.of(&both, Some(root.path())).unwrap();
        let id = cgroup::id(root.path(), &"/a".parse().unwrap()).unwrap();
        assert_eq!(ids(&there), [id]);
        assert_eq!(there.entries(), both);
        assert_eq!(there.of(&both, None).unwrap(), there);
        let other = there.of(&entries(&[cgroup("/b")]), None).unwrap();
        assert!(ids(&other).is_empty());
        // Paths keep their keys, and a new one gets another.
        let more = entries(&[cgroup("/0"), cgroup("/b")]);
        let next = there.of(&more, Some(root.path())).unwrap();
        assert_eq!(next.entries(), more);
        let key_of = |state: &State, path: &str| {
            let found = state.makers.iter();
            let mut found = found.filter(|(_, value)| path_in(value).unwrap().as_str() == path);
            *found.next().unwrap().0
        };
        assert_eq!(key_of(&next, "/b"), key_of(&there, "/b"));
        assert_ne!(key_of(&next, "/0"), key_of(&next, "/b"));
        // A file is no cgroup.
        std::fs::remove_dir(&folder).unwrap();
        std::fs::write(&folder, "").unwrap();
        assert!(ids(&there.of(&both, Some(root.path())).unwrap()).is_empty());
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let full = |exemptions: &[Exemption]| {
            State::default()
                .of(&entries(exemptions), None)
                .is_err_and(|error| matches!(error, Error::Full { .. }))
        };
        let marks = |count| (1..=count).map(|n| mark(&format!("{n}/0xff0f")));
        let sixteen: Vec<_> = (0x100..0x100 + EXEMPT_MARKS as u32)
            .map(|n| mark(&format!("{}/0xffffff00", n << 8)))
            .collect();
        assert!(!full(&sixteen));
        assert!(full(
            &[&sixteen[..], &marks(1).collect::<Vec<_>>()].concat()
        ));
        let gids: Vec<_> = (0..EXEMPT_CAPACITY).map(Exemption::Gid).collect();
        assert!(!full(&gids));
        assert!(full(&[&gids[1..], &[cgroup("/a")]].concat()));
        assert!(!full(&[&gids[2..], &[cgroup("/a")]].concat()));
    }

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
