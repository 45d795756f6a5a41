//! What a rule names: an outbound, or a group of them.

#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::time::Instant;

use super::outbound::{Blame, DialError, Dialer, Target};
use super::stream::Stream;
use super::way::Way;
use crate::policy::group::{self, Key, Kind};
use crate::policy::health::{Standing, State};
use crate::policy::rule::{Protocol, Query};

/// A group as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedGroup {
    /// Its name, for people.
    pub name: String,
    /// How it chooses.
    pub kind: Kind,
    /// The names of outbounds and other groups. Never empty.
    pub members: Vec<String>,
    /// The member that is taken first where a person chooses. None: the first.
    pub default: Option<String>,
}

/// A group in use.
#[derive(Debug)]
pub struct Group {
    /// Its name.
    pub name: Arc<str>,
    /// As it is configured.
    spec: NamedGroup,
    members: Vec<Exit>,
    choosing: Mutex<group::Group>,
}

/// See the module.
#[derive(Clone, Debug)]
pub enum Exit {
    /// An outbound.
    Way(Arc<Way>),
    /// A group of them.
    Group(Arc<Group>),
}

/// Which way something takes.
#[derive(Clone, Debug)]
pub struct Choice {
    /// What was chosen: an outbound, or a group.
    pub exit: Exit,
    /// The outbound. Of a group the member that is used.
    pub way: Arc<Way>,
    /// The rule that says so. None: no rule is about it, so it is the default.
    pub rule: Option<Arc<str>>,
}

impl Choice {
    /// By this exit, as things are now.
    #[must_use]
    pub fn new(exit: &Exit, rule: Option<&Arc<str>>, query: &Query<'_>) -> Self {
        Self {
            way: exit.first(query),
            exit: exit.clone(),
            rule: rule.cloned(),
        }
    }

    /// The group's name.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        match &self.exit {
            Exit::Way(_) => None,
            Exit::Group(group) => Some(&group.name),
        }
    }

    /// Is the outbound down, and would another one be taken now?
    #[must_use]
    pub fn is_stranded(&self, query: &Query<'_>) -> bool {
        let is_down = |way: &Way| way.standing(query.protocol).state == State::Down;
        matches!(self.exit, Exit::Group(_))
            && is_down(&self.way)
            && !is_down(&self.exit.first(query))
    }
}

impl Exit {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        match self {
            Self::Way(way) => &way.name,
            Self::Group(group) => &group.name,
        }
    }

    /// The outbound to take.
    #[must_use]
    pub fn first(&self, query: &Query<'_>) -> Arc<Way> {
        match self {
            Self::Way(way) => Arc::clone(way),
            Self::Group(group) => group.member(query).first(query),
        }
    }

    /// The outbound to take, and those to take when it fails.
    #[must_use]
    pub fn ways(&self, query: &Query<'_>) -> Vec<Arc<Way>> {
        match self {
            Self::Way(way) => vec![Arc::clone(way)],
            Self::Group(group) => {
                let order = group.order(query).into_iter();
                order
                    .flat_map(|member| group.members[member].ways(query))
                    .collect()
            }
        }
    }

    /// All outbounds.
    pub(super) fn all(&self) -> Vec<&Arc<Way>> {
        match self {
            Self::Way(way) => vec![way],
            Self::Group(group) => group.members.iter().flat_map(Self::all).collect(),
        }
    }

    /// Is it of use? A group is if one of its members is.
    #[must_use]
    pub fn standing(&self, protocol: Protocol) -> Standing {
        match self {
            Self::Way(way) => way.standing(protocol),
            Self::Group(group) => {
                let all = group.members.iter().map(|one| one.standing(protocol));
                // Delays that are not known come last.
                let key = |one: &Standing| (one.state, one.delay.is_none(), one.delay);
                all.min_by_key(key).unwrap_or_default()
            }
        }
    }

    /// Is it the same as if there were no proxy, whatever happens?
    #[must_use]
    pub fn is_plainly_direct(&self) -> bool {
        match self {
            Self::Way(way) => way.is_plainly_direct(),
            Self::Group(_) => false,
        }
    }

    /// Is it this one, not just one like it?
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Way(one), Self::Way(other)) => Arc::ptr_eq(one, other),
            (Self::Group(one), Self::Group(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Group {
    /// A group of these members, which are those that `spec` names. What was chosen in `previous`, the group of the
    /// same name before, stays so while that is a member.
    #[must_use]
    pub fn open(spec: NamedGroup, members: Vec<Exit>, previous: Option<&Arc<Self>>) -> Arc<Self> {
        if let Some(previous) = previous
            && previous.spec == spec
            && members.iter().zip(&previous.members).all(|(a, b)| a.is(b))
        {
            return Arc::clone(previous);
        }
        let names = members.iter().map(|member| &**member.name());
        let mut choosing = group::Group::new(spec.kind, names);
        let same_default = |previous: &&Arc<Self>| previous.spec.default == spec.default;
        let kept = previous.filter(same_default).and_then(|previous| {
            let chosen = previous.choosing().chosen()?;
            Some(previous.members[chosen].name().to_string())
        });
        let place = |name: &String| members.iter().position(|one| **one.name() == **name);
        let chosen = kept.as_ref().and_then(place);
        if let Some(chosen) = chosen.or_else(|| spec.default.as_ref().and_then(place)) {
            choosing.select(chosen);
        }
        Arc::new(Self {
            name: (&*spec.name).into(),
            spec,
            members,
            choosing: Mutex::new(choosing),
        })
    }

    /// From now on this member is taken.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn select(&self, member: &str) -> Result<(), String> {
        let names: Vec<&str> = self.members.iter().map(|one| &**one.name()).collect();
        let kind = self.kind();
        if self.spec.kind != Kind::Select {
            return Err(format!(
                "the group \"{}\" chooses by itself ({kind}); only in a group of the kind select a person does",
                self.name
            ));
        }
        let place = names.iter().position(|name| *name == member);
        if place.is_some_and(|place| self.choosing().select(place)) {
            return Ok(());
        }
        Err(format!(
            "the group \"{}\" has no member \"{member}\"; it has {}",
            self.name,
            names.join(", ")
        ))
    }

    /// The word for how it chooses.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.spec.kind.word()
    }

    fn member(&self, query: &Query<'_>) -> &Exit {
        &self.members[self.order(query)[0]]
    }

    fn order(&self, query: &Query<'_>) -> Vec<usize> {
        let standings = self.members.iter();
        let standings: Vec<Standing> = standings.map(|one| one.standing(query.protocol)).collect();
        let mut choosing = self.choosing();
        match (self.spec.kind, query.name) {
            (Kind::Balance(Key::Source), _) => {
                choosing.order(query.protocol, query.source.ip(), &standings)
            }
            (Kind::Balance(Key::Destination), Some(name)) => {
                choosing.order(query.protocol, name, &standings)
            }
            _ => choosing.order(query.protocol, query.destination.ip(), &standings),
        }
    }

    fn choosing(&self) -> MutexGuard<'_, group::Group> {
        // No code that can panic runs under the lock.
        self.choosing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it does now.
    #[must_use]
    pub fn status(&self) -> GroupStatus {
        let now = |protocol| {
            let standings = self.members.iter().map(|one| one.standing(protocol));
            let standings: Vec<Standing> = standings.collect();
            // Where members share the work there is no one member.
            if matches!(self.spec.kind, Kind::Balance(_)) {
                return None;
            }
            let first = self.choosing().order(protocol, 0, &standings)[0];
            Some(self.members[first].name().to_string())
        };
        GroupStatus {
            name: self.name.to_string(),
            kind: self.kind(),
            members: self.spec.members.clone(),
            tcp: now(Protocol::Tcp),
            udp: now(Protocol::Udp),
        }
    }
}

/// What a group does now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// How it chooses.
    pub kind: &'static str,
    /// The names of its members.
    pub members: Vec<String>,
    /// The member that TCP connections take now. None: it depends on the connection.
    pub tcp: Option<String>,
    /// The same of UDP.
    pub udp: Option<String>,
}

/// The most members of a group that share the time of one attempt to connect.
const MOST_SHARES: u32 = 3;

impl Dialer {
    /// Connects to the target by the outbound of a choice. If that fails, and not because of the destination, the next
    /// one of the group takes its place, in the choice, too.
    ///
    /// # Errors
    /// What failed last, on which machine.
    pub async fn connect_by<'t>(
        &self,
        choice: &mut Choice,
        query: &Query<'_>,
        target: impl Fn(&Way) -> Target<'t>,
    ) -> Result<Stream, DialError> {
        let Exit::Group(_) = choice.exit else {
            return self.connect(&choice.way, target(&choice.way)).await;
        };
        let deadline = Instant::now() + self.limit;
        let mut tried: Vec<Arc<Way>> = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let is_tried = |way: &Arc<Way>| tried.iter().any(|one| Arc::ptr_eq(one, way));
            let mut others = choice.exit.ways(query);
            others.retain(|way| !is_tried(way) && !Arc::ptr_eq(way, &choice.way));
            let is_live = |way: &&Arc<Way>| way.standing(query.protocol).state <= State::Up;
            let live = others.iter().filter(is_live).count() as u32;
            let dialer = Self {
                limit: left / (live + 1).min(MOST_SHARES),
                ..self.clone()
            };
            let connected = dialer.connect(&choice.way, target(&choice.way)).await;
            let Err(error) = connected else {
                return connected;
            };
            let is_over = Instant::now() >= deadline;
            if is_over || error.blame(&choice.way.outbound) == Blame::Destination {
                return Err(error);
            }
            // Who failed may have changed the order.
            let next = choice.exit.ways(query).into_iter();
            let mut next = next.filter(|way| !is_tried(way) && !Arc::ptr_eq(way, &choice.way));
            let Some(next) = next.next() else {
                return Err(error);
            };
            tracing::debug!(failed = &*choice.way.name, next = &*next.name, %error, "the next member of the group");
            tried.push(std::mem::replace(&mut choice.way, next));
        }
    }
}
