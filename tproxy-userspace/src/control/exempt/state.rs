//! Who is exempt, as it stands in the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use tproxy_common::abi::{
    EXEMPT_CAPACITY, EXEMPT_MARKS, EXEMPT_TEXT_BYTES, Exempt, ExemptKey, ExemptKind, ExemptMark,
    ExemptMarks, Origin,
};

use super::super::bpf::Maps;
use super::super::cgroup;
use super::{Entry, Error, Exemption};
use crate::config::{CgroupPath, Mark};

/// What is in the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    pub(super) makers: BTreeMap<ExemptKey, Exempt>,
    pub(super) marks: ExemptMarks,
}

impl State {
    pub(super) fn read(maps: &Maps) -> Result<Self, Error> {
        Ok(Self {
            makers: maps.exempt().map_err(Error::Map)?.into_iter().collect(),
            marks: maps.exempt_marks().map_err(Error::Map)?,
        })
    }

    /// Who is exempt by it. What another version may have written and is not understood is left out.
    pub(super) fn entries(&self) -> Vec<Entry> {
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
    pub(super) fn of(&self, entries: &[Entry], root: Option<&Path>) -> Result<Self, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::IdOrName;

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
}
