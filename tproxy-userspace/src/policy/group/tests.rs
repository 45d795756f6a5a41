use proptest::prelude::*;

use super::*;

const NAMES: [&str; 5] = ["a", "b", "c", "d", "e"];

fn group(kind: Kind, members: usize) -> Group {
    Group::new(kind, NAMES[..members].iter().copied())
}

fn up(delay: u64) -> Standing {
    Standing {
        state: State::Up,
        delay: Some(Duration::from_millis(delay)),
    }
}

fn of(state: State) -> Standing {
    Standing { state, delay: None }
}

fn order(group: &mut Group, standings: &[Standing]) -> Vec<usize> {
    group.order(Protocol::Tcp, 0, standings)
}

#[test]
fn fallback_takes_the_first_that_is_up_and_goes_back() {
    let (unknown, down) = (of(State::Unknown), of(State::Down));
    let mut group = group(Kind::Fallback, 3);
    assert_eq!(order(&mut group, &[unknown; 3]), [0, 1, 2]);
    assert_eq!(order(&mut group, &[down, unknown, up(1)]), [1, 2, 0]);
    assert_eq!(order(&mut group, &[down; 3]), [0, 1, 2], "none is better");
    assert_eq!(order(&mut group, &[up(9), down, down]), [0, 1, 2]);
    let none = of(State::Unsupported);
    assert_eq!(order(&mut group, &[none, down, up(1)]), [2, 1, 0]);
}

#[test]
fn the_fastest_stays_until_another_is_faster_by_more_than_the_tolerance() {
    let tolerance = Duration::from_millis(50);
    let mut group = group(Kind::Fastest { tolerance }, 3);
    assert_eq!(order(&mut group, &[up(200), up(100), up(120)]), [1, 2, 0]);
    let almost = [up(200), up(100), up(60)];
    assert_eq!(order(&mut group, &almost)[0], 1, "40 ms are not enough");
    assert_eq!(order(&mut group, &[up(200), up(100), up(40)])[0], 2);
    let mut gone = [up(200), up(100), up(40)];
    gone[2].state = State::Down;
    assert_eq!(order(&mut group, &gone), [1, 0, 2]);
    // Of what was never answered nobody knows how fast it is.
    let udp = [of(State::Unknown), up(100), of(State::Unsupported)];
    assert_eq!(group.order(Protocol::Udp, 0, &udp), [1, 0, 2]);
}

#[test]
fn what_a_person_chose_is_kept_whatever_happens() {
    let mut chosen = group(Kind::Select, 3);
    assert_eq!(order(&mut chosen, &[up(1); 3]), [0]);
    assert!(chosen.select(2) && !chosen.select(3));
    assert_eq!(order(&mut chosen, &[up(1), up(1), of(State::Down)]), [2]);
    assert_eq!(chosen.order(Protocol::Udp, 0, &[up(1); 3]), [2]);
    assert!(!group(Kind::Fallback, 3).select(1));
}

#[test]
fn balance_gives_each_its_share_and_moves_only_what_it_must() {
    let mut group = group(Kind::Balance(Key::Destination), 4);
    let mut all = |standings: &[Standing]| -> Vec<usize> {
        let first = |key| group.order(Protocol::Tcp, key, standings)[0];
        (0..4000).map(first).collect()
    };
    let before = all(&[up(1); 4]);
    for member in 0..4 {
        let share = before.iter().filter(|taken| **taken == member).count();
        assert!((800..1200).contains(&share), "{member}: {share}");
    }
    let after = all(&[up(1), up(1), of(State::Down), up(1)]);
    for (before, after) in before.iter().zip(&after) {
        assert!(*after != 2 && (before == after || *before == 2));
    }
    let moved = |to: usize| {
        let both = before.iter().zip(&after);
        both.filter(|(before, after)| **before == 2 && **after == to)
            .count()
    };
    assert!([0, 1, 3].into_iter().all(|to| moved(to) > 200));
    assert_eq!(all(&[up(9); 4]), before);
    // Another order in the configuration moves nothing.
    let mut turned = Group::new(
        Kind::Balance(Key::Destination),
        ["d", "c", "b", "a"].into_iter(),
    );
    let first = |key| 3 - turned.order(Protocol::Tcp, key, &[up(1); 4])[0];
    assert_eq!((0..4000).map(first).collect::<Vec<_>>(), before);
}

fn standing() -> impl Strategy<Value = Standing> {
    let state = prop::sample::select(vec![
        State::Unknown,
        State::Up,
        State::Down,
        State::Unsupported,
    ]);
    (state, prop::option::of(0..500_u64)).prop_map(|(state, delay)| Standing {
        state,
        delay: delay.map(Duration::from_millis),
    })
}

proptest! {
    /// Whatever their health, no member that is down goes before one that is not, and all are there.
    #[test]
    fn nothing_that_is_down_comes_first(
        which in 0..3_u8,
        rounds in prop::collection::vec([standing(), standing(), standing(), standing(), standing()], 1..20),
        key: u64,
    ) {
        let mut group = group(match which {
            0 => Kind::Fallback,
            1 => Kind::Fastest { tolerance: Duration::from_millis(50) },
            _ => Kind::Balance(Key::Source),
        }, 5);
        for standings in rounds {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let order = group.order(protocol, key, &standings);
                let ranks: Vec<u8> = order.iter().map(|one| rank(standings[*one])).collect();
                prop_assert!(ranks.is_sorted(), "{:?}", ranks);
                let mut sorted = order.clone();
                sorted.sort_unstable();
                prop_assert_eq!(sorted, [0, 1, 2, 3, 4]);
                prop_assert_eq!(group.order(protocol, key, &standings), order);
            }
        }
    }
}
