use std::time::Duration;

use proptest::prelude::*;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};
use tproxy_common::abi::Reason;

use super::super::columns;
use super::super::testing::{PID, Samples, flow, press, status};
use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn key(code: KeyCode) -> KeyEvent {
    KeyEvent::new(code, KeyModifiers::NONE)
}

/// The numbers of the flows, from above.
fn ids(state: &mut State) -> Vec<u64> {
    let rows = state.window(1_000).0.to_vec();
    let flow = |row: &Row| match row.key(&state.model) {
        Key::Flow(id) => id,
        other => panic!("{other:?} is no flow"),
    };
    rows.iter().map(flow).collect()
}

fn chosen(state: &State) -> Option<Key> {
    state.chosen().map(|row| row.key(&state.model))
}

/// Three flows; a second later they have bytes.
fn three() -> (Samples, State) {
    let samples = Samples::default();
    let mut state = State::new(SECOND, View::Flows);
    let flows = |one: u64| {
        [
            flow(
                1,
                0,
                one,
                json!({ "client": "10.0.0.9:1", "name": "a.example.org" }),
            ),
            flow(
                2,
                0,
                3 * one,
                json!({ "client": "10.0.0.10:1", "protocol": "udp" }),
            ),
            flow(
                3,
                0,
                2 * one,
                json!({ "client": "[2001:db8::1]:1", "name": null, "rule": "Video" }),
            ),
        ]
    };
    state.take(samples.flows(0, &flows(0)));
    state.take(samples.flows(1_000, &flows(100)));
    (samples, state)
}

#[test]
fn rows_are_in_the_order_that_is_asked_for() {
    let (_, mut state) = three();
    assert_eq!(state.order(), (Column::Down, false));
    assert_eq!(ids(&mut state), [2, 3, 1]);
    press(&mut state, "r");
    assert_eq!(ids(&mut state), [1, 3, 2]);
    press(&mut state, "ss");
    assert_eq!(state.order(), (Column::Age, false));
    // All of one age: in the order of their numbers.
    assert_eq!(ids(&mut state), [1, 2, 3]);
    press(&mut state, "s");
    assert_eq!(state.order(), (Column::Device, false));
    assert_eq!(ids(&mut state), [1, 2, 3], "as addresses, not as text");
    press(&mut state, "ss");
    assert_eq!(state.order(), (Column::Destination, false));
    assert_eq!(ids(&mut state), [3, 1, 2]);
    // Each view has an order of its own.
    press(&mut state, "2");
    assert_eq!(
        (state.view(), state.order().0),
        (View::Devices, Column::Down)
    );
    press(&mut state, "1");
    assert_eq!(state.order().0, Column::Destination);
}

#[test]
fn a_filter_is_live_and_escape_clears_it() {
    let (_, mut state) = three();
    for (filter, wanted) in [
        ("EXAMPLE.ORG", vec![1]),
        ("10.0.0", vec![2, 1]),
        ("video", vec![3]),
        ("203.0.113.1:443", vec![2, 3, 1]),
        ("udp", vec![2]),
        ("auto: far", vec![2, 3, 1]),
        ("nobody", vec![]),
    ] {
        press(&mut state, "/");
        press(&mut state, filter);
        assert_eq!(ids(&mut state), wanted, "{filter}");
        assert_eq!(state.mode, Mode::Filter);
        state.press(key(KeyCode::Esc));
        assert_eq!((state.filter(), &state.mode), ("", &Mode::Normal));
        assert_eq!(ids(&mut state).len(), 3);
    }
    // Letters that are commands otherwise.
    press(&mut state, "/q");
    assert_eq!(state.filter(), "q");
    state.press(key(KeyCode::Backspace));
    press(&mut state, "org");
    state.press(key(KeyCode::Enter));
    assert_eq!(ids(&mut state), [1]);
    assert_eq!(state.filter(), "org");
    assert_eq!(state.press(key(KeyCode::Esc)), Wish::None);
    assert_eq!(state.filter(), "");
    assert_eq!(state.press(key(KeyCode::Esc)), Wish::Quit);
}

#[test]
fn a_flow_is_ended_only_after_yes() {
    let (samples, mut state) = three();
    state.press(key(KeyCode::Down));
    assert_eq!(chosen(&state), Some(Key::Flow(3)));
    for no in ['n', 'x', 'q'] {
        press(&mut state, "K");
        let Mode::Question { flow, what } = &state.mode else {
            panic!("{:?}", state.mode);
        };
        assert_eq!((*flow, &**what), (3, "2001:db8::1 → 203.0.113.1:443"));
        assert_eq!(state.press(key(KeyCode::Char(no))), Wish::None);
        assert_eq!(state.mode, Mode::Normal);
    }
    state.press(key(KeyCode::Delete));
    // What the question is about stays, whatever moves meanwhile.
    state.take(samples.flows(2_000, &[flow(1, 0, 9, Value::Null)]));
    assert_eq!(state.press(key(KeyCode::Char('y'))), Wish::Kill(3));
    press(&mut state, "3K");
    assert_eq!(state.mode, Mode::Normal);
    assert!(
        state
            .notice
            .as_ref()
            .is_some_and(|notice| notice.contains("only a flow"))
    );
    press(&mut state, "1");
    state.take(samples.none(3_000, &[]));
    press(&mut state, "K");
    assert_eq!(state.mode, Mode::Normal, "there is nobody to end it");
}

#[test]
fn what_is_chosen_stays_so_where_it_moves() {
    let (samples, mut state) = three();
    // Nobody has chosen anything: it is whatever comes first.
    assert_eq!(chosen(&state), Some(Key::Flow(2)));
    let flows = |last: u64| {
        [
            flow(1, 0, 200, Value::Null),
            flow(2, 0, 300, Value::Null),
            flow(3, 0, last, Value::Null),
        ]
    };
    state.take(samples.flows(2_000, &flows(9_000)));
    assert_eq!(chosen(&state), Some(Key::Flow(3)));
    state.press(key(KeyCode::End));
    assert_eq!(chosen(&state), Some(Key::Flow(2)));
    let mut later = flows(9_000);
    later[1]["down"] = 90_000.into();
    state.take(samples.flows(3_000, &later));
    assert_eq!(ids(&mut state), [2, 1, 3]);
    assert_eq!(chosen(&state), Some(Key::Flow(2)), "it is the first now");
    // It ends: what is in its place is chosen.
    later[1] = flow(8, 0, 0, Value::Null);
    state.take(samples.flows(4_000, &later));
    assert_eq!(chosen(&state), Some(Key::Flow(1)));
    state.press(key(KeyCode::Home));
    state.take(samples.flows(5_000, &[]));
    assert_eq!(chosen(&state), None);
    press(&mut state, "K");
    assert_eq!(state.mode, Mode::Normal);
}

#[test]
fn without_a_proxy_there_are_counters_until_one_comes() {
    let samples = Samples::default();
    let mut state = State::new(SECOND, View::Flows);
    state.take(samples.none(0, &[(Reason::Bypassed, 5, 500)]));
    assert_eq!((state.view(), state.count()), (View::Counters, 1));
    press(&mut state, "5");
    assert_eq!(state.view(), View::Counters);
    press(&mut state, "1");
    state.take(samples.flows(1_000, &[flow(1, 0, 0, Value::Null)]));
    assert_eq!((state.view(), state.count()), (View::Flows, 1));
    state.take(samples.none(2_000, &[]));
    assert_eq!(
        (state.view(), state.count()),
        (View::Flows, 1),
        "its last values"
    );
}

#[test]
fn views_put_together_what_belongs_together() {
    let samples = Samples::default();
    let mut state = State::new(SECOND, View::Devices);
    let account = |up: u64| {
        json!({ "devices": [["10.0.0.5", { "up": up, "down": 7 }], ["10.0.0.99", { "up": 1, "down": 1 }]],
                "outbounds": [["far", { "up": up, "down": 9 }]] })
    };
    let flows = |one: u64| {
        [
            flow(1, one, 0, json!({ "name": "www.example.co.uk" })),
            flow(2, one, 0, json!({ "name": "cdn.example.co.uk" })),
            flow(
                3,
                one,
                0,
                json!({ "name": null, "client": "10.0.0.7:1", "outbound": "direct", "group": null }),
            ),
        ]
    };
    state.take(samples.whole(0, &status(PID, 0, 0), &flows(0), &account(1_000)));
    state.take(samples.whole(1_000, &status(PID, 0, 0), &flows(10), &account(3_000)));
    let table = |state: &mut State, view: View, columns: &[Column]| -> Vec<String> {
        press(state, &(view as usize + 1).to_string());
        let rows = state.window(100).0.to_vec();
        let text = |row: &Row| {
            let cells = columns
                .iter()
                .map(|column| row.value(&state.model, *column).text().into_owned());
            cells.collect::<Vec<_>>().join(" ")
        };
        rows.iter().map(text).collect()
    };
    use Column::*;
    // The last one has no flow any more. A device that the account does not know has what its flows have.
    assert_eq!(
        table(
            &mut state,
            View::Devices,
            &[Device, Flows, Up, TotalUp, TotalDown]
        ),
        [
            "10.0.0.5 2 2.0K 2.9K 7",
            "10.0.0.7 1 10 10 0",
            "10.0.0.99 0 0 1 1"
        ]
    );
    assert_eq!(
        table(
            &mut state,
            View::Destinations,
            &[Destination, Flows, Up, TotalUp]
        ),
        ["203.0.113.1 1 10 10", "example.co.uk 2 20 20"]
    );
    assert_eq!(
        table(
            &mut state,
            View::Outbounds,
            &[Name, Tcp, Udp, Delay, Since, Flows, Up, Total]
        ),
        [
            "auto → far - - - 2 20 -",
            "direct unknown unknown 12 ms - 1 - 0",
            "far up down 12 ms 1h 1m 2 2.0K 2.9K",
        ]
    );
}

#[test]
fn the_interval_and_the_pause_are_told_to_who_asks() {
    let mut state = State::new(Duration::from_millis(1_500), View::Flows);
    let pace = |state: &mut State, letter| state.press(key(KeyCode::Char(letter)));
    assert_eq!(pace(&mut state, '+'), Wish::Pace(Some(2 * SECOND)));
    assert_eq!(pace(&mut state, '-'), Wish::Pace(Some(SECOND)));
    assert_eq!(pace(&mut state, 'p'), Wish::Pace(None));
    assert_eq!(pace(&mut state, '-'), Wish::Pace(None));
    assert_eq!(pace(&mut state, 'p'), Wish::Pace(Some(SECOND / 2)));
    for _ in 0..20 {
        pace(&mut state, '-');
    }
    assert_eq!(state.interval, Duration::from_millis(200));
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    press(&mut state, "/");
    assert_eq!(state.press(control_c), Wish::Quit);
}

#[test]
fn a_site_is_the_end_of_a_name() {
    for (name, site) in [
        ("www.example.com", "example.com"),
        ("a.b.c.example.com", "example.com"),
        ("example.com", "example.com"),
        ("www.example.co.uk", "example.co.uk"),
        ("www.example.com.cn", "example.com.cn"),
        ("co.uk", "co.uk"),
        ("www.example.de", "example.de"),
        ("localhost", "localhost"),
        ("", ""),
        (".", "."),
        ("a.b.", "b."),
    ] {
        assert_eq!(rows::site(name), site, "{name}");
    }
}

#[test]
fn numbers_are_short() {
    for (number, text) in [
        (0.0, "0"),
        (999.4, "999"),
        (1_023.0, "1023"),
        (1_023.6, "1.0K"),
        (1_536.0, "1.5K"),
        (10_239.0, "10K"),
        (1_048_000.0, "1023K"),
        (1_048_500.0, "1.0M"),
        (1e18, "888P"),
    ] {
        assert_eq!(columns::short(number), text, "{number}");
    }
    assert_eq!(columns::count(999_999.0), "999,999");
    assert_eq!(columns::count(1_500_000.0), "1.5M");
}

proptest! {
    #[test]
    fn a_number_takes_five_characters_at_most(number in 0.0..1e18_f64) {
        prop_assert!(columns::short(number).len() <= 5, "{}", columns::short(number));
    }

    #[test]
    fn a_site_is_an_end_of_the_name(name in "[a-zé.]{0,30}") {
        let site = rows::site(&name);
        prop_assert!(name.ends_with(site) && (!site.is_empty() || name.is_empty()));
    }

    /// Whatever is pressed, and whatever comes and goes: the chosen row is in the window, the window is full if there are
    /// enough rows, and rows are in order.
    #[test]
    fn keys_and_samples_in_any_order(
        steps in prop::collection::vec((0_usize..26, prop::collection::btree_map(1_u64..40, 0_u64..2_000, 0..40)), 1..40),
        page in 0_usize..12,
    ) {
        let samples = Samples::default();
        let mut state = State::new(SECOND, View::Flows);
        let keys = [
            KeyCode::Up, KeyCode::Down, KeyCode::PageUp, KeyCode::PageDown, KeyCode::Home, KeyCode::End, KeyCode::Tab,
            KeyCode::BackTab, KeyCode::Enter, KeyCode::Backspace, KeyCode::Esc, KeyCode::Delete,
        ];
        let letters: Vec<char> = "srK/y1?p+-".chars().collect();
        for (at, (which, flows)) in steps.into_iter().enumerate() {
            let kept = state.panels[state.view() as usize].chosen.clone();
            if which < keys.len() {
                state.press(key(keys[which]));
            } else if let Some(letter) = letters.get(which - keys.len()) {
                state.press(key(KeyCode::Char(*letter)));
            } else {
                let told: Vec<_> = flows.iter().map(|(id, bytes)| flow(*id, *bytes, bytes / 3, Value::Null)).collect();
                state.take(samples.flows(1_000 * at as u64, &told));
                if let Some(Key::Flow(id)) = kept && flows.contains_key(&id) && state.filter().is_empty() {
                    prop_assert_eq!(chosen(&state), Some(Key::Flow(id)));
                }
            }
            let count = state.count();
            let (column, reverse) = state.order();
            let (seen, chosen) = state.window(page);
            prop_assert_eq!(seen.len(), count.min(page));
            if page > 0 && count > 0 {
                prop_assert!(chosen.is_some_and(|chosen| chosen < seen.len()), "{chosen:?}");
            }
            let seen = seen.to_vec();
            for pair in seen.windows(2) {
                let order = pair[0].value(&state.model, column).compare(&pair[1].value(&state.model, column));
                let order = if reverse { order.reverse() } else { order };
                prop_assert!(order.is_le());
            }
        }
    }
}
