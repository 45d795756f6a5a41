//! Groups of outbounds: which member a connection takes, by what is known of their health.
//!
//! Members are numbered as they are configured. TCP and UDP are apart: a server may carry one and not the other.

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use serde::Serialize;

use super::health::{Standing, State};
use super::rule::Protocol;

/// How a group chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The member that was chosen by a person, whatever its health.
    Select,
    /// The first that is up.
    Fallback,
    /// The one whose checks are answered fastest. Another one takes its place only if it is faster by more than this.
    Fastest {
        /// The difference that does not count.
        tolerance: Duration,
    },
    /// All that are up, each for its share of the keys. A key keeps its member while that is up.
    Balance(Key),
}

impl Kind {
    /// The word for it in a configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Select => "select",
            Self::Fallback => "fallback",
            Self::Fastest { .. } => "url-test",
            Self::Balance(_) => "load-balance",
        }
    }
}

/// What a member is chosen by where members share the work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Key {
    /// The name that the device asks for, or else the address.
    #[default]
    Destination,
    /// The device.
    Source,
}

/// A group.
#[derive(Debug)]
pub struct Group {
    kind: Kind,
    /// What the keys of a member go by: its name, so that the order in the configuration does not matter.
    seeds: Vec<u64>,
    /// The member that was chosen, or is the fastest, of each protocol.
    chosen: [usize; 2],
}

impl Group {
    /// A group of members with these names.
    #[must_use]
    pub fn new<'n>(kind: Kind, members: impl Iterator<Item = &'n str>) -> Self {
        Self {
            kind,
            seeds: members.map(hash).collect(),
            chosen: [0; 2],
        }
    }

    /// All members, the one to take first; the next are for when that fails. `standings` are of all members in their
    /// order. Where members share the work, `key` decides.
    #[must_use]
    pub fn order(
        &mut self,
        protocol: Protocol,
        key: impl Hash,
        standings: &[Standing],
    ) -> Vec<usize> {
        let mut order: Vec<usize> = (0..standings.len()).collect();
        match self.kind {
            Kind::Select => order = vec![self.chosen[protocol as usize]],
            Kind::Fallback => order.sort_by_key(|member| rank(standings[*member])),
            Kind::Fastest { tolerance } => {
                let chosen = &mut self.chosen[protocol as usize];
                *chosen = fastest(standings, *chosen, tolerance);
                order.sort_by_key(|member| {
                    let standing = standings[*member];
                    let delay = standing.delay.unwrap_or(Duration::MAX);
                    (rank(standing), member != chosen, delay)
                });
            }
            Kind::Balance(_) => {
                let key = hash(key);
                // Rendezvous hashing: the keys of a member that is gone go to the others in equal parts, and no other
                // key moves.
                order.sort_by_cached_key(|member| {
                    let drawn = hash((self.seeds[*member], key));
                    (rank(standings[*member]), Reverse(drawn))
                });
            }
        }
        order
    }

    /// The member that a person chose. None: nobody chooses in such a group.
    #[must_use]
    pub fn chosen(&self) -> Option<usize> {
        (self.kind == Kind::Select).then_some(self.chosen[0])
    }

    /// From now on it is this member. False if there is none of that number, or nobody chooses in such a group.
    pub fn select(&mut self, member: usize) -> bool {
        let can = self.kind == Kind::Select && member < self.seeds.len();
        if can {
            self.chosen = [member; 2];
        }
        can
    }
}

/// What comes first: 0.
fn rank(standing: Standing) -> u8 {
    match standing.state {
        State::Unknown | State::Up => 0,
        State::Down => 1,
        State::Unsupported => 2,
    }
}

/// The fastest member. It is `chosen` unless another is faster by more than the tolerance, and while nobody is up.
fn fastest(standings: &[Standing], chosen: usize, tolerance: Duration) -> usize {
    let is_up = |member: &usize| standings[*member].state == State::Up;
    let delay = |member: &usize| standings[*member].delay.unwrap_or(Duration::MAX);
    let up = (0..standings.len()).filter(is_up);
    let Some(fastest) = up.min_by_key(delay) else {
        return chosen;
    };
    if !is_up(&chosen) || delay(&fastest).saturating_add(tolerance) < delay(&chosen) {
        fastest
    } else {
        chosen
    }
}

fn hash(what: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    what.hash(&mut hasher);
    hasher.finish()
}
