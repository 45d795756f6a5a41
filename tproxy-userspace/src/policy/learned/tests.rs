use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const HOLD: Duration = Duration::from_secs(300);

fn address(last: u8) -> IpAddr {
    [192, 0, 2, last].into()
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn bypass(last: u8, until: Instant, name: &str) -> Change {
    Change::Bypass {
        address: address(last),
        until,
        name: name.into(),
    }
}

#[test]
fn an_address_is_let_pass_for_the_ttl_but_long_enough() {
    let (mut learned, start) = (Learned::new(8, HOLD), Instant::now());
    let change = learned.learn("a.example", address(1), true, seconds(5), start);
    assert_eq!(change, Some(bypass(1, start + HOLD, "a.example")));
    let change = learned.learn("b.example", address(2), true, seconds(3600), start);
    assert_eq!(change, Some(bypass(2, start + seconds(3600), "b.example")));
    // Not earlier than was said.
    let change = learned.learn("b.example", address(2), true, seconds(1), start);
    assert_eq!(change, None);
    assert_eq!(learned.expire(start + HOLD - seconds(1), |_| false), []);
    let gone = learned.expire(start + HOLD, |_| false);
    assert_eq!(gone, [Change::Spare(address(1))]);
    let count = Count {
        bypassed: 1,
        spared: 0,
    };
    assert_eq!(learned.count(), count);
}

#[test]
fn an_address_that_is_shared_with_a_proxied_name_is_not_let_pass() {
    let (mut learned, start) = (Learned::new(8, HOLD), Instant::now());
    learned.learn("near.example", address(1), true, seconds(900), start);
    let change = learned.learn("far.example", address(1), false, seconds(600), start);
    assert_eq!(change, Some(Change::Spare(address(1))));
    let change = learned.learn("near.example", address(1), true, seconds(1200), start);
    assert_eq!(change, None, "the other name still stands for it");
    let later = start + seconds(600);
    let back = learned.expire(later, |_| false);
    assert_eq!(back, [bypass(1, start + seconds(1200), "near.example")]);
}

#[test]
fn what_is_used_holds_on() {
    let (mut learned, start) = (Learned::new(8, HOLD), Instant::now());
    learned.learn("a.example", address(1), true, seconds(0), start);
    let later = start + HOLD;
    let held = learned.expire(later, |used| used == address(1));
    assert_eq!(held, [bypass(1, later + HOLD, "a.example")]);
    let gone = learned.expire(later + HOLD, |_| false);
    assert_eq!(gone, [Change::Spare(address(1))]);
    assert_eq!(learned.count(), Count::default());
}

#[test]
fn other_rules_are_other_verdicts() {
    let (mut learned, start) = (Learned::new(8, HOLD), Instant::now());
    learned.learn("a.example", address(1), true, seconds(0), start);
    learned.learn("b.example", address(2), false, seconds(0), start);
    let mut changes = learned.reconsider(|name, _| name == "b.example");
    changes.sort_by_key(|change| matches!(change, Change::Spare(_)));
    let expected = [
        bypass(2, start + HOLD, "b.example"),
        Change::Spare(address(1)),
    ];
    assert_eq!(changes, expected);
    assert_eq!(learned.reconsider(|name, _| name == "b.example"), []);
}

#[test]
fn neither_addresses_nor_names_are_without_limit() {
    let (mut learned, start) = (Learned::new(2, HOLD), Instant::now());
    for last in 1..=3 {
        learned.learn("a.example", address(last), true, seconds(0), start);
    }
    assert_eq!(learned.count().bypassed, 2);
    assert_eq!(learned.refused(), 1);
    learned.learn("far.example", address(1), false, seconds(0), start);
    for number in 0..100 {
        let name = format!("{number}.example");
        let change = learned.learn(&name, address(1), true, seconds(900), start);
        assert_eq!(change, None, "the one that is proxied is not given up");
    }
    assert_eq!(learned.addresses[&address(1)].len(), MOST_NAMES);
}

proptest! {
    /// Whoever follows the changes lets just those addresses pass that a search through all that was said finds.
    #[test]
    fn changes_lead_to_what_a_plain_search_finds(
        steps in prop::collection::vec((0..5_u8, 0..4_u8, 0..4_u8, any::<bool>(), 0..1000_u64), 1..60),
    ) {
        let start = Instant::now();
        let mut learned = Learned::new(100, HOLD);
        let mut plain: BTreeMap<(u8, u8), (bool, Instant)> = BTreeMap::new();
        let mut passing: BTreeMap<IpAddr, Instant> = BTreeMap::new();
        let mut now = start;
        for (step, at, name, direct, time) in steps {
            let changes = match step {
                0 => {
                    now += seconds(time);
                    plain.retain(|_, (_, until)| *until > now);
                    learned.expire(now, |_| false)
                }
                1 => {
                    for ((_, known), (is_direct, _)) in &mut plain {
                        *is_direct = *known == name;
                    }
                    learned.reconsider(|text, _| text == name.to_string())
                }
                _ => {
                    let until = now + seconds(time).max(HOLD);
                    let entry = plain.entry((at, name)).or_insert((direct, until));
                    *entry = (direct, entry.1.max(until));
                    learned.learn(&name.to_string(), address(at), direct, seconds(time), now).into_iter().collect()
                }
            };
            for change in changes {
                match change {
                    Change::Bypass { address, until, .. } => { passing.insert(address, until); }
                    Change::Spare(address) => { passing.remove(&address); }
                }
            }
            for at in 0..4 {
                let names: Vec<_> = plain.iter().filter(|((other, _), _)| *other == at).map(|(_, name)| name).collect();
                let expected = if names.iter().all(|(direct, _)| *direct) {
                    names.iter().map(|(_, until)| *until).max()
                } else {
                    None
                };
                prop_assert_eq!(passing.get(&address(at)).copied(), expected);
            }
        }
    }
}
