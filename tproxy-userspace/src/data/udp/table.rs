//! Associations and flows by their keys, in the order of use. No I/O and no clock: the caller says what time it is.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::data::{dns, shares};

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

/// Something that a device has.
pub trait OfDevice {
    /// Its address.
    fn device(&self) -> IpAddr;
}

/// Values by key, with one queue for each [`Class`] and one for each device that have the longest unused in front.
#[derive(Debug)]
pub struct Table<K, V> {
    index: HashMap<K, u32>,
    slots: Vec<Slot<K, V>>,
    free: Vec<u32>,
    queues: [Queue; 2],
    devices: Devices,
    capacity: usize,
    idle: [Duration; 2],
}

#[derive(Debug)]
struct Slot<K, V> {
    /// None: free.
    entry: Option<(K, V)>,
    class: Class,
    /// The place of its device among all.
    device: u32,
    used: Instant,
    /// Its neighbours in the queue of its class, and in that of its device.
    links: [Link; 2],
}

/// Which of the two queues that a value is in.
#[derive(Clone, Copy)]
enum By {
    Class,
    Device,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    after: u32,
}

#[derive(Clone, Copy, Debug)]
struct Queue {
    oldest: u32,
    newest: u32,
}

const EMPTY: Queue = Queue {
    oldest: NOBODY,
    newest: NOBODY,
};

/// The devices that have values.
#[derive(Debug, Default)]
struct Devices {
    index: HashMap<IpAddr, u32>,
    all: Vec<Device>,
    free: Vec<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Device {
    queue: Queue,
    count: usize,
}

impl Devices {
    /// The place of a device, which has one value more.
    fn enter(&mut self, address: IpAddr) -> u32 {
        let at = *self.index.entry(address).or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.all.push(Device {
                    queue: EMPTY,
                    count: 0,
                });
                (self.all.len() - 1) as u32
            })
        });
        self.all[at as usize].count += 1;
        at
    }

    /// A device has one value less.
    fn leave(&mut self, address: IpAddr) {
        if let Some(at) = self.index.get(&address).copied() {
            let device = &mut self.all[at as usize];
            device.count -= 1;
            if device.count == 0 {
                self.index.remove(&address);
                self.free.push(at);
            }
        }
    }

    fn get(&self, address: IpAddr) -> Option<&Device> {
        let at = *self.index.get(&address)?;
        self.all.get(at as usize)
    }
}

impl<K: Clone + Eq + Hash + OfDevice, V> Table<K, V> {
    /// An empty table for at most `capacity` values.
    #[must_use]
    pub fn new(capacity: usize, dns_idle: Duration, idle: Duration) -> Self {
        Self {
            index: HashMap::new(),
            slots: Vec::new(),
            free: Vec::new(),
            queues: [EMPTY; 2],
            devices: Devices::default(),
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
        let slot = &mut self.slots[at as usize];
        let class = slot.class.max(class);
        slot.used = now;
        let device = slot.device as usize;
        if self.queues[class as usize].newest != at {
            self.unlink(By::Class, at);
            self.slots[at as usize].class = class;
            self.append(By::Class, at);
        }
        if self.devices.all[device].queue.newest != at {
            self.unlink(By::Device, at);
            self.append(By::Device, at);
        }
        self.value(at)
    }

    /// Adds a value for a key that has none. Returns the one that made room for it: the longest unused of the same device, if
    /// that has its [share](shares::has_share) already, or of all if there is no room.
    pub fn insert(&mut self, key: K, value: V, class: Class, now: Instant) -> Option<V> {
        let replaced = self.remove(&key);
        let address = key.device();
        let of_device = self.devices.get(address).filter(|device| {
            let free = self.capacity.saturating_sub(self.len());
            !shares::has_share(device.count, free)
        });
        let leaves = match of_device {
            Some(device) => Some(device.queue.oldest),
            None if self.len() >= self.capacity => self.longest_unused(),
            None => None,
        };
        let evicted = leaves.and_then(|at| self.take(at));
        let nowhere = Link {
            before: NOBODY,
            after: NOBODY,
        };
        let slot = Slot {
            entry: Some((key.clone(), value)),
            class,
            device: self.devices.enter(address),
            used: now,
            links: [nowhere; 2],
        };
        let at = if let Some(at) = self.free.pop() {
            self.slots[at as usize] = slot;
            at
        } else {
            self.slots.push(slot);
            (self.slots.len() - 1) as u32
        };
        self.index.insert(key, at);
        self.append(By::Class, at);
        self.append(By::Device, at);
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
        self.unlink(By::Class, at);
        self.unlink(By::Device, at);
        let (key, value) = self.slots[at as usize].entry.take()?;
        self.index.remove(&key);
        self.devices.leave(key.device());
        self.free.push(at);
        Some(value)
    }

    fn value(&self, at: u32) -> Option<&V> {
        let entry = self.slots[at as usize].entry.as_ref();
        entry.map(|(_, value)| value)
    }

    fn unlink(&mut self, by: By, at: u32) {
        let Link { before, after } = self.slots[at as usize].links[by as usize];
        match self.slots.get_mut(before as usize) {
            Some(slot) => slot.links[by as usize].after = after,
            None => self.queue(by, at).oldest = after,
        }
        match self.slots.get_mut(after as usize) {
            Some(slot) => slot.links[by as usize].before = before,
            None => self.queue(by, at).newest = before,
        }
    }

    fn append(&mut self, by: By, at: u32) {
        let queue = self.queue(by, at);
        let before = std::mem::replace(&mut queue.newest, at);
        match self.slots.get_mut(before as usize) {
            Some(slot) => slot.links[by as usize].after = at,
            None => self.queue(by, at).oldest = at,
        }
        self.slots[at as usize].links[by as usize] = Link {
            before,
            after: NOBODY,
        };
    }

    /// The queue that the value at this place is in.
    fn queue(&mut self, by: By, at: u32) -> &mut Queue {
        let slot = &self.slots[at as usize];
        match by {
            By::Class => &mut self.queues[slot.class as usize],
            By::Device => &mut self.devices.all[slot.device as usize].queue,
        }
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

    impl OfDevice for (u16, bool) {
        fn device(&self) -> IpAddr {
            IpAddr::from([10, 0, 0, u8::from(self.1)])
        }
    }

    impl OfDevice for Rc<u8> {
        fn device(&self) -> IpAddr {
            IpAddr::from([10, 0, 0, **self])
        }
    }

    /// A key of two parts, of which neither alone tells one from the other; the second is the device.
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
        assert_eq!(table.insert(key(2), 2, Class::General, start), None);
        assert_eq!(table.insert(key(4), 4, Class::Dns, after(1)), None);
        table.touch(&key(2), Class::General, after(2));
        assert_eq!(table.insert(key(6), 6, Class::Dns, after(3)), Some(4));
        assert_eq!(table.insert(key(8), 8, Class::Dns, after(4)), Some(2));
        // Another device has none that could go first.
        assert_eq!(table.insert(key(1), 1, Class::Dns, after(5)), Some(6));
        assert_eq!(table.insert(key(3), 3, Class::Dns, after(6)), Some(1));
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn who_takes_all_it_can_displaces_none_but_its_own() {
        let start = Instant::now();
        let mut table = Table::new(1_700, DNS, LONG);
        table.insert(key(1), 1, Class::General, start);
        for number in 1..5_000 {
            let gone = table.insert(key(2 * number), 2 * number, Class::General, start);
            assert!(gone.is_none_or(|gone| gone % 2 == 0), "{gone:?}");
        }
        assert!((1_590..1_610).contains(&table.len()), "{}", table.len());
        assert_eq!(table.get(&key(1)), Some(&1));
        // The other one has room for more than it needs.
        for number in 1..80 {
            assert_eq!(
                table.insert(key(2 * number + 1), 2 * number + 1, Class::Dns, start),
                None
            );
        }
    }

    #[test]
    fn a_key_is_let_go_with_its_value() {
        let mut table = Table::new(2, DNS, LONG);
        let key = Rc::new(1_u8);
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
                        let mut oldest: Vec<_> = plain.iter().map(|(key, (_, used))| (*used, *key)).collect();
                        oldest.sort_unstable();
                        // The same device's first.
                        oldest.sort_by_key(|(_, key)| key % 2 != number % 2);
                        let expected = oldest.first().map(|(_, key)| *key).filter(|_| plain.len() == 6);
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
