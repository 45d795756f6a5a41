//! `[[group]]`: several outbounds as one.

use std::ops::Range;
use std::time::Duration;

use documented::DocumentedFields;
use serde::Serialize;

use super::outbound::{self, Outbound};
use super::read::Table;
use super::value::{at_least, choice, some, text};
use super::{Refusal, duration};
use crate::policy::group::{Key, Kind};
use crate::policy::prefix::excerpt;

/// Several outbounds, of which each connection takes one. Rules name it as they name an outbound.
#[derive(Clone, Debug, DocumentedFields, PartialEq, Eq, Serialize)]
pub struct Group {
    /// `name`: as of an outbound; required.
    pub name: String,
    /// `kind`: how the member is chosen; required.
    pub kind: GroupKind,
    /// `members`: the names of outbounds and other groups, in their order; required.
    pub members: Vec<String>,
    /// `tolerance`: of a "url-test", by how much another member must be faster to take the place of the one that is
    /// used. Default 50ms.
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "serialize_some"
    )]
    pub tolerance: Option<Duration>,
    /// `by`: of a "load-balance", whether all connections to a "destination" take the same member, or all of a
    /// "source". Default "destination".
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<Key>,
    /// `default`: of a "select", the member that is taken until a person chooses another. Default: the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
}

/// How a group chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum GroupKind {
    /// "select": the member that a person chose.
    Select,
    /// "fallback": the first that is up.
    Fallback,
    /// "url-test": the one whose checks are answered fastest.
    UrlTest,
    /// "load-balance": each that is up for its share.
    LoadBalance,
}

const KINDS: &[(&str, GroupKind)] = &[
    ("select", GroupKind::Select),
    ("fallback", GroupKind::Fallback),
    ("url-test", GroupKind::UrlTest),
    ("load-balance", GroupKind::LoadBalance),
];

/// Differences that are mostly chance.
const TOLERANCE: Duration = Duration::from_millis(50);

impl Group {
    /// How it chooses, with what belongs to that.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.kind {
            GroupKind::Select => Kind::Select,
            GroupKind::Fallback => Kind::Fallback,
            GroupKind::UrlTest => Kind::Fastest {
                tolerance: self.tolerance.unwrap_or(TOLERANCE),
            },
            GroupKind::LoadBalance => Kind::Balance(self.by.unwrap_or_default()),
        }
    }
}

fn serialize_some<S: serde::Serializer>(
    tolerance: &Option<Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match tolerance {
        Some(tolerance) => duration::serialize(tolerance, serializer),
        None => serializer.serialize_none(),
    }
}

/// Reads each `[[group]]`.
pub(super) fn read(root: &mut Table<'_>, outbounds: &[Outbound]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut places: Vec<Option<Range<usize>>> = Vec::new();
    root.tables("group", |table| {
        let name = table.required("name", text("a name", "auto", outbound::outbound_name));
        let kind = table.required("kind", choice(KINDS));
        // Whether they are there is known when all are read.
        let member = || {
            text(
                "the name of an outbound or group",
                "proxy",
                outbound::outbound_name,
            )
        };
        let members = table.required("members", some("names", member()));
        let mut group = Group {
            name: String::new(),
            kind: GroupKind::Fallback,
            members: Vec::new(),
            tolerance: None,
            by: None,
            default: None,
        };
        let time = at_least(Duration::ZERO);
        table.optional("tolerance", &mut group.tolerance, time.some());
        let keys = choice(&[("destination", Key::Destination), ("source", Key::Source)]);
        table.optional("by", &mut group.by, keys.some());
        let default = member();
        table.optional("default", &mut group.default, default.some());
        let Some(name) = name else { return };
        let taken = outbounds.iter().any(|one| one.name == *name.get_ref())
            || groups.iter().any(|one| one.name == *name.get_ref())
            || [Outbound::DIRECT, Outbound::BLOCK].contains(&&**name.get_ref());
        if taken {
            table.fault(
                name.span(),
                format!(
                    "there is an outbound or group of the name `{}` already",
                    name.get_ref()
                ),
                Some("give each a name of its own".to_owned()),
            );
        }
        group.name = name.into_inner();
        if let Some(kind) = kind {
            group.kind = kind.into_inner();
            fits(table, &group);
        }
        group.members = members.map(toml::Spanned::into_inner).unwrap_or_default();
        if let (Some(default), Some(place)) = (&group.default, table.place("default"))
            && !group.members.contains(default)
        {
            let message = format!("`{default}` is not a member of the group");
            table.fault(place, message, Some("name one of them".to_owned()));
        }
        places.push(table.place("members"));
        groups.push(group);
    });
    let names = names(outbounds, &groups);
    let mut faults = Vec::new();
    for (group, place) in groups.iter().zip(places) {
        let place = place.unwrap_or_default();
        for (at, member) in group.members.iter().enumerate() {
            let again = group.members[..at].contains(member).then(|| {
                let message = format!("`{member}` is a member twice");
                Refusal::new(message, "name each once")
            });
            let unknown = outbound::known(member, &names).err();
            if let Some(refusal) = again.or(unknown) {
                faults.push((place.clone(), refusal));
            }
        }
        if let Some(circle) = circle(group, &groups) {
            faults.push((place, circle));
        }
    }
    for (place, Refusal { message, help }) in faults {
        root.fault(place, message, help);
    }
    groups
}

/// The names that rules may use.
pub(super) fn names<'c>(outbounds: &'c [Outbound], groups: &'c [Group]) -> Vec<&'c str> {
    let mut names = outbound::names(outbounds);
    names.extend(groups.iter().map(|group| &*group.name));
    names
}

/// Wants that each key is of use with the kind.
fn fits(table: &Table<'_>, group: &Group) {
    for (key, kind) in [
        ("tolerance", GroupKind::UrlTest),
        ("by", GroupKind::LoadBalance),
        ("default", GroupKind::Select),
    ] {
        if let Some(place) = table.place(key)
            && group.kind != kind
        {
            let word = KINDS.iter().find(|(_, one)| *one == kind);
            let word = word.map_or("", |(word, _)| word);
            table.fault(
                place,
                format!("`{key}` is of use only in a group of the kind \"{word}\""),
                Some("leave it out".to_owned()),
            );
        }
    }
}

/// Is the group a member of itself, by whatever way? A circle is told of once, at the first group of it.
fn circle(group: &Group, all: &[Group]) -> Option<Refusal> {
    let of = |name: &str| all.iter().position(|one| one.name == name);
    let own = of(&group.name)?;
    let mut reached = vec![false; all.len()];
    let mut next: Vec<usize> = group.members.iter().filter_map(|name| of(name)).collect();
    while let Some(place) = next.pop() {
        // One that comes before it tells of it.
        if place >= own && !std::mem::replace(&mut reached[place], true) {
            next.extend(all[place].members.iter().filter_map(|name| of(name)));
        }
    }
    reached[own].then(|| {
        Refusal::new(
            format!(
                "the group `{}` would be a member of itself",
                excerpt(&group.name)
            ),
            "leave the group out that leads back to it",
        )
    })
}
