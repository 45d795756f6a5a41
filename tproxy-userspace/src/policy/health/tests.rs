use super::*;

const INTERVAL: Duration = Duration::from_secs(60);

fn checked() -> (Health, Instant) {
    let now = Instant::now();
    let mut health = Health::new(now);
    health.check_every(Some(INTERVAL), now);
    (health, now)
}

fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

fn state(health: &Health) -> State {
    health.standing().state
}

#[test]
fn it_is_checked_at_once_then_by_the_interval_and_sooner_while_down() {
    let (mut health, start) = checked();
    assert!(health.take_due(start));
    assert!(
        !health.take_due(start) && health.next_due().is_none(),
        "one is under way"
    );
    health.answered(ms(20), start);
    assert_eq!(health.next_due(), Some(start + INTERVAL));
    let mut now = start;
    for pause in [5, 10, 20, 40, 60, 60] {
        health.missed("it timed out", now);
        assert_eq!(health.next_due(), Some(now + seconds(pause)));
        now += seconds(pause);
    }
    assert_eq!((state(&health), health.since()), (State::Down, start));
    assert_eq!(health.error(), Some("it timed out"));
    health.answered(ms(30), now);
    assert_eq!((state(&health), health.since()), (State::Up, now));
    assert_eq!(health.error(), None);
    assert_eq!(health.standing().delay, Some(ms(30)));
    assert_eq!(health.next_due(), Some(now + INTERVAL));
}

#[test]
fn failing_connections_bring_the_check_forward_and_then_count_themselves() {
    let (mut health, start) = checked();
    health.take_due(start);
    health.answered(ms(1), start);
    let now = start + seconds(2);
    health.failed("refused", now);
    assert_eq!(state(&health), State::Up, "one may be an accident");
    assert!(health.take_due(now));
    health.worked(now);
    health.failed("refused", now);
    assert_eq!(state(&health), State::Up, "it has worked in between");
    health.failed("refused", now);
    assert_eq!(state(&health), State::Down);
    health.worked(now);
    assert_eq!(state(&health), State::Down, "only a check brings it back");
    health.answered(ms(1), now);
    assert_eq!(state(&health), State::Up);
}

#[test]
fn a_flood_of_failures_makes_no_flood_of_checks() {
    let (mut health, start) = checked();
    let mut checks = 0;
    for step in 0..1000 {
        let now = start + ms(10 * step);
        health.doubted(now);
        health.failed("refused", now);
        if health.take_due(now) {
            checks += 1;
            health.answered(ms(1), now);
        }
    }
    assert!((9..=11).contains(&checks), "{checks} in ten seconds");
}

#[test]
fn without_checks_connections_alone_decide() {
    let now = Instant::now();
    let mut health = Health::new(now);
    health.failed("refused", now);
    assert_eq!((state(&health), health.next_due()), (State::Unknown, None));
    health.failed("refused", now);
    assert_eq!(state(&health), State::Down);
    health.worked(now);
    assert_eq!((state(&health), health.error()), (State::Up, None));
    health.check_every(Some(INTERVAL), now);
    assert!(health.take_due(now));
    health.answered(ms(1), now);
    // A reload with the same interval changes nothing.
    health.check_every(Some(INTERVAL), now);
    assert_eq!(health.next_due(), Some(now + INTERVAL));
    health.check_every(None, now);
    assert_eq!(health.next_due(), None);
}

#[test]
fn what_carries_no_such_protocol_never_changes() {
    let now = Instant::now();
    let mut health = Health::unsupported(now);
    health.check_every(Some(INTERVAL), now);
    assert_eq!(health.next_due(), None);
    health.worked(now);
    health.failed("refused", now);
    health.failed("refused", now);
    assert_eq!(state(&health), State::Unsupported);
}
