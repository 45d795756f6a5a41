use proptest::prelude::*;

use super::*;

const INTERVAL: Duration = Duration::from_secs(60);

fn group(kind: Kind, members: usize) -> (Group, Instant) {
    let now = Instant::now();
    (Group::new(kind, members, INTERVAL, now), now)
}

fn tcp(member: usize) -> Due {
    Due {
        member,
        protocol: Protocol::Tcp,
    }
}

fn first(group: &Group) -> usize {
    group.order(Protocol::Tcp, 0)[0]
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[test]
fn all_are_checked_at_once_then_by_the_interval_and_sooner_while_down() {
    let (mut group, start) = group(Kind::Fallback, 2);
    let due = group.take_due(start);
    assert_eq!(due.len(), 4, "two members, two protocols");
    assert_eq!((group.take_due(start), group.next_due()), (vec![], None));
    for due in due {
        group.answered(due, ms(20), start);
    }
    assert_eq!(group.next_due(), Some(start + INTERVAL));
    let mut now = start;
    for pause in [5, 10, 20, 40, 60, 60] {
        group.missed(tcp(0), "it timed out", now);
        assert_eq!(
            group.health(0, Protocol::Tcp).due,
            Some(now + seconds(pause))
        );
        now += seconds(pause);
    }
    let health = group.health(0, Protocol::Tcp);
    assert_eq!((health.state, health.since), (State::Down, start));
    assert_eq!(health.error.as_deref(), Some("it timed out"));
    group.answered(tcp(0), ms(30), now);
    let health = group.health(0, Protocol::Tcp);
    assert_eq!(
        (health.state, health.since, &health.error),
        (State::Up, now, &None)
    );
    assert_eq!(health.due, Some(now + INTERVAL));
    assert_eq!(group.health(0, Protocol::Udp).state, State::Up, "apart");
}

#[test]
fn fallback_takes_the_first_that_is_up_and_goes_back() {
    let (mut group, now) = group(Kind::Fallback, 3);
    assert_eq!(group.order(Protocol::Tcp, 0), [0, 1, 2]);
    group.missed(tcp(0), "refused", now);
    assert_eq!(group.order(Protocol::Tcp, 0), [1, 2, 0]);
    assert_eq!(group.order(Protocol::Udp, 0), [0, 1, 2]);
    group.missed(tcp(1), "refused", now);
    group.missed(tcp(2), "refused", now);
    assert_eq!(group.order(Protocol::Tcp, 0), [0, 1, 2], "none is better");
    group.answered(tcp(0), ms(1), now);
    assert_eq!(first(&group), 0);
}

#[test]
fn failing_connections_bring_the_check_forward_and_then_count_themselves() {
    let (mut group, start) = group(Kind::Fallback, 2);
    group.take_due(start);
    group.answered(tcp(0), ms(1), start);
    let now = start + seconds(1);
    group.failed(0, Protocol::Tcp, "refused", now);
    assert_eq!(first(&group), 0, "one may be an accident");
    assert_eq!(group.take_due(now), [tcp(0)]);
    group.worked(0, Protocol::Tcp);
    group.failed(0, Protocol::Tcp, "refused", now);
    assert_eq!(first(&group), 0, "it has worked in between");
    group.failed(0, Protocol::Tcp, "refused", now);
    assert_eq!(first(&group), 1);
    group.worked(0, Protocol::Tcp);
    assert_eq!(first(&group), 1, "only a check brings it back");
    group.answered(tcp(0), ms(1), now);
    assert_eq!(first(&group), 0);
}

#[test]
fn the_fastest_stays_until_another_is_faster_by_more_than_the_tolerance() {
    let kind = Kind::Fastest { tolerance: ms(50) };
    let (mut group, now) = group(kind, 3);
    for (member, delay) in [(0, 200), (1, 100), (2, 120)] {
        group.answered(tcp(member), ms(delay), now);
    }
    assert_eq!(group.order(Protocol::Tcp, 0), [1, 2, 0]);
    group.answered(tcp(2), ms(60), now);
    assert_eq!(first(&group), 1, "40 ms are not enough");
    group.answered(tcp(2), ms(40), now);
    assert_eq!(first(&group), 2);
    group.missed(tcp(2), "timeout", now);
    assert_eq!(group.order(Protocol::Tcp, 0), [1, 0, 2]);
}

#[test]
fn what_a_person_chose_is_kept_whatever_happens() {
    let (mut group, now) = group(Kind::Select, 3);
    assert_eq!(group.order(Protocol::Tcp, 0), [0]);
    assert!(group.select(2) && !group.select(3));
    group.missed(tcp(2), "refused", now);
    assert_eq!(group.order(Protocol::Tcp, 0), [2]);
    assert_eq!(group.order(Protocol::Udp, 0), [2]);
    assert!(!self::group(Kind::Fallback, 3).0.select(1));
}

#[test]
fn balance_gives_each_its_share_and_moves_only_what_it_must() {
    let (mut group, now) = group(Kind::Balance, 4);
    let all = |group: &Group| -> Vec<usize> {
        (0..4000)
            .map(|key| group.order(Protocol::Tcp, key)[0])
            .collect()
    };
    let before = all(&group);
    for member in 0..4 {
        let share = before.iter().filter(|taken| **taken == member).count();
        assert!((800..1200).contains(&share), "{member}: {share}");
    }
    group.missed(tcp(2), "refused", now);
    let after = all(&group);
    for (before, after) in before.iter().zip(&after) {
        assert!(*after != 2 && (before == after || *before == 2));
    }
    let moved = |to: usize| {
        let both = before.iter().zip(&after);
        both.filter(|(before, after)| **before == 2 && **after == to)
            .count()
    };
    assert!([0, 1, 3].into_iter().all(|to| moved(to) > 200));
    group.answered(tcp(2), ms(1), now);
    assert_eq!(all(&group), before);
}

proptest! {
    /// Whatever is reported, no member that is down goes before one that is not, and all are there.
    #[test]
    fn nothing_that_is_down_comes_first(
        which in 0..3_u8,
        steps in prop::collection::vec((0..4_u8, 0..5_usize, any::<bool>(), 0..500_u64), 0..60),
        key: u64,
    ) {
        let kind = match which {
            0 => Kind::Fallback,
            1 => Kind::Fastest { tolerance: ms(50) },
            _ => Kind::Balance,
        };
        let (mut group, start) = group(kind, 5);
        for (index, (step, member, udp, delay)) in steps.into_iter().enumerate() {
            let protocol = if udp { Protocol::Udp } else { Protocol::Tcp };
            let due = Due { member, protocol };
            let now = start + seconds(index as u64);
            match step {
                0 => group.answered(due, ms(delay), now),
                1 => group.missed(due, "no answer", now),
                2 => group.failed(member, protocol, "refused", now),
                _ => group.worked(member, protocol),
            }
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let order = group.order(protocol, key);
                let down: Vec<bool> = order.iter().map(|one| group.health(*one, protocol).is_down()).collect();
                prop_assert!(down.is_sorted(), "{:?}", down);
                let mut sorted = order.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, [0, 1, 2, 3, 4]);
                prop_assert_eq!(group.order(protocol, key), order);
            }
        }
    }
}
