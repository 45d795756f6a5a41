//! Associations and flows by their keys, in the order of use. No I/O and no clock: the caller says what time it is.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::data::dns;

/// What an association or a flow is used for. It decides how long it may idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Only ever port 53.
    Dns,
    /// Anything.
    General,
}

impl Class {
    /// What this port is used for.
    #[must_use]
    pub fn of_port(port: u16) -> Self {
        if port == dns::PORT {
            Self::Dns
        } else {
            Self::General
        }
    }
}

/// The end of a queue.
const NOBODY: u32 = u32::MAX;

/// Values by key, with one queue for each [`Class`] that has the longest unused in front.
#[derive(Debug)]
pub struct Table<K, V> {
    index: HashMap<K, u32>,
    slots: Vec<Slot<K, V>>,
    free: Vec<u32>,
    queues: [Queue; 2],
    capacity: usize,
    idle: [Duration; 2],
}

#[derive(Debug)]
struct Slot<K, V> {
    /// None: free.
    entry: Option<(K, V)>,
    class: Class,
    used: Instant,
    before: u32,
    after: u32,
}

#[derive(Clone, Copy, Debug)]
struct Queue {
    oldest: u32,
    newest: u32,
}

impl<K: Clone + Eq + Hash, V> Table<K, V> {
    /// An empty table for at most `capacity` values.
    #[must_use]
    pub fn new(capacity: usize, dns_idle: Duration, idle: Duration) -> Self {
        let empty = Queue {
            oldest: NOBODY,
            newest: NOBODY,
        };
        Self {
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            queues: [empty; 2],
            capacity: capacity.clamp(1, NOBODY as usize - 1),
            idle: [dns_idle, idle],
        }
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// All values, in no order, without using them.
    pub fn iter(&self) -> impl Iterator<Item = &V> {
        let entries = self.slots.iter().filter_map(|slot| slot.entry.as_ref());
        entries.map(|(_, value)| value)
    }

    /// The value of this key, without using it.
    #[must_use]
    pub fn get(&self, key: &K) -> Option<&V> {
        let at = *self.index.get(key)?;
        self.value(at)
    }

    /// Uses the value of this key. An association that once spoke to another port than 53 stays
    /// [`Class::General`].
    pub fn touch(&mut self, key: &K, class: Class, now: Instant) -> Option<&V> {
        let at = *self.index.get(key)?;
        let class = self.slots[at as usize].class.max(class);
        let newest = self.queues[class as usize].newest == at;
        if newest {
            self.slots[at as usize].used = now;
        } else {
            self.unlink(at);
            self.append(at, class, now);
        }
        self.value(at)
    }

    /// Adds a value for a key that has none. Returns the one that made room for it.
    pub fn insert(&mut self, key: K, value: V, class: Class, now: Instant) -> Option<V> {
        let replaced = self.remove(&key);
        let evicted = if self.len() >= self.capacity {
            self.longest_unused().and_then(|at| self.take(at))
        } else {
            None
        };
        let slot = Slot {
            entry: Some((key.clone(), value)),
            class,
            used: now,
            before: NOBODY,
            after: NOBODY,
        };
        let at = if let Some(at) = self.free.pop() {
            self.slots[at as usize] = slot;
            at
        } else {
            self.slots.push(slot);
            (self.slots.len() - 1) as u32
        };
        self.index.insert(key, at);
        self.append(at, class, now);
        replaced.or(evicted)
    }

    /// Removes the value of this key.
    pub fn remove(&mut self, key: &K) -> Option<V> {
        let at = *self.index.get(key)?;
        self.take(at)
    }

    /// Removes one value that was unused for longer than its class allows.
    pub fn pop_idle(&mut self, now: Instant) -> Option<V> {
        for (queue, idle) in self.queues.into_iter().zip(self.idle) {
            if let Some(slot) = self.slots.get(queue.oldest as usize)
                && now.saturating_duration_since(slot.used) >= idle
            {
                return self.take(queue.oldest);
            }
        }
        None
    }

    /// Removes any value; for emptying the table.
    pub fn pop(&mut self) -> Option<V> {
        self.longest_unused().and_then(|at| self.take(at))
    }

    fn longest_unused(&self) -> Option<u32> {
        self.queues
            .iter()
            .filter_map(|queue| Some((self.slots.get(queue.oldest as usize)?.used, queue.oldest)))
            .min()
            .map(|(_, at)| at)
    }

    fn take(&mut self, at: u32) -> Option<V> {
        self.unlink(at);
        let (key, value) = self.slots[at as usize].entry.take()?;
        self.index.remove(&key);
        self.free.push(at);
        Some(value)
    }

    fn value(&self, at: u32) -> Option<&V> {
        let entry = self.slots[at as usize].entry.as_ref();
        entry.map(|(_, value)| value)
    }

    fn unlink(&mut self, at: u32) {
        let Slot {
            before,
            after,
            class,
            ..
        } = self.slots[at as usize];
        let queue = &mut self.queues[class as usize];
        match self.slots.get_mut(before as usize) {
            Some(slot) => slot.after = after,
            None => queue.oldest = after,
        }
        match self.slots.get_mut(after as usize) {
            Some(slot) => slot.before = before,
            None => queue.newest = before,
        }
    }

    fn append(&mut self, at: u32, class: Class, now: Instant) {
        let queue = &mut self.queues[class as usize];
        let before = queue.newest;
        queue.newest = at;
        match self.slots.get_mut(before as usize) {
            Some(slot) => slot.after = at,
            None => queue.oldest = at,
        }
        let slot = &mut self.slots[at as usize];
        slot.class = class;
        slot.used = now;
        slot.before = before;
        slot.after = NOBODY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    const DNS: Duration = Duration::from_secs(10);
    const LONG: Duration = Duration::from_secs(300);

    /// A key of two parts, of which neither alone tells one from the other.
    fn key(number: u16) -> (u16, bool) {
        (number / 2, number % 2 == 1)
    }

    #[test]
    fn dns_idles_shorter_until_another_port_is_spoken_to() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut table = Table::new(8, DNS, LONG);
        for number in 1..=3 {
            table.insert(key(number), number, Class::Dns, start);
        }
        assert_eq!(table.touch(&key(2), Class::General, after(1)), Some(&2));
        assert_eq!(table.touch(&key(3), Class::Dns, after(5)), Some(&3));
        // A later query does not make it a DNS association again.
        assert_eq!(table.touch(&key(2), Class::Dns, after(6)), Some(&2));
        assert_eq!(table.pop_idle(after(9)), None);
        assert_eq!(table.pop_idle(after(10)), Some(1));
        assert_eq!(table.pop_idle(after(14)), None);
        assert_eq!(table.pop_idle(after(15)), Some(3));
        assert_eq!(table.pop_idle(after(305)), None);
        assert_eq!(table.pop_idle(after(306)), Some(2));
        assert_eq!(table.len(), 0);
    }

    #[test]
    fn the_longest_unused_of_both_classes_makes_room() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut table = Table::new(2, DNS, LONG);
        assert_eq!(table.insert(key(1), 1, Class::General, start), None);
        assert_eq!(table.insert(key(2), 2, Class::Dns, after(1)), None);
        table.touch(&key(1), Class::General, after(2));
        assert_eq!(table.insert(key(3), 3, Class::Dns, after(3)), Some(2));
        assert_eq!(table.insert(key(4), 4, Class::Dns, after(4)), Some(1));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn a_key_is_let_go_with_its_value() {
        let mut table = Table::new(2, DNS, LONG);
        let key = Rc::new(1);
        table.insert(Rc::clone(&key), 1, Class::Dns, Instant::now());
        assert_eq!(table.remove(&key), Some(1));
        assert_eq!(Rc::strong_count(&key), 1);
    }

    proptest! {
        /// Against a plain map that is searched from end to end.
        #[test]
        fn behaves_like_a_plain_map(steps in proptest::collection::vec((0..4u8, 0..12u16, any::<bool>()), 1..200)) {
            let start = Instant::now();
            let mut table = Table::new(6, DNS, LONG);
            let mut plain: BTreeMap<u16, (Class, u64)> = BTreeMap::new();
            for (second, (step, number, dns)) in steps.into_iter().enumerate() {
                let second = second as u64;
                let now = start + Duration::from_secs(second);
                let class = if dns { Class::Dns } else { Class::General };
                match step {
                    0 if !plain.contains_key(&number) => {
                        let oldest = plain.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| *key);
                        let expected = oldest.filter(|_| plain.len() == 6);
                        expected.map(|key| plain.remove(&key));
                        plain.insert(number, (class, second));
                        prop_assert_eq!(table.insert(key(number), number, class, now), expected);
                    }
                    0 | 1 => {
                        if let Some(entry) = plain.get_mut(&number) {
                            *entry = (entry.0.max(class), second);
                        }
                        let touched = table.touch(&key(number), class, now).copied();
                        prop_assert_eq!(touched, plain.get(&number).map(|_| number));
                    }
                    2 => {
                        let removed = table.remove(&key(number));
                        prop_assert_eq!(removed, plain.remove(&number).map(|_| number));
                    }
                    _ => {
                        while let Some(value) = table.pop_idle(now) {
                            let (class, used) = plain.remove(&value).expect("known");
                            let idle = if class == Class::Dns { DNS } else { LONG };
                            prop_assert!(second - used >= idle.as_secs());
                        }
                        let idle = |class: Class| if class == Class::Dns { 10 } else { 300 };
                        prop_assert!(plain.values().all(|(class, used)| second - used < idle(*class)));
                    }
                }
                prop_assert_eq!(table.len(), plain.len());
            }
        }
    }
}
