use std::time::Duration;

use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::{Value, json};
use tproxy_common::abi::Reason;

use super::super::sample::Sample;
use super::super::testing::{PID, Samples, flow, press, status};
use super::*;

const PLAIN: Theme = Theme { colour: false };

fn drawn(state: &mut State, width: u16, height: u16, theme: Theme) -> Buffer {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("no I/O");
    terminal
        .draw(|frame| draw(frame, state, theme))
        .expect("no I/O");
    terminal.backend().buffer().clone()
}

/// The lines, as a person reads them.
fn lines(buffer: &Buffer) -> Vec<String> {
    let area = buffer.area;
    (0..area.height)
        .map(|y| {
            let (mut text, mut covered) = (String::new(), 0);
            for x in 0..area.width {
                let symbol = buffer[(x, y)].symbol();
                // A wide letter covers the cell behind it.
                if covered == 0 {
                    text.push_str(symbol);
                    covered = symbol.width();
                }
                covered -= 1;
            }
            text.trim_end().to_owned()
        })
        .collect()
}

fn shown(state: &mut State, width: u16, height: u16) -> Vec<String> {
    lines(&drawn(state, width, height, PLAIN))
}

fn sample(samples: &Samples, at_ms: u64, bytes: u64) -> Sample {
    let flows = [
        flow(1, bytes, 2_000 * bytes, Value::Null),
        flow(
            2,
            10 * bytes,
            bytes,
            json!({ "name": "视频.example", "rule": "视频和音乐", "client": "[2001:db8:77::1234]:5" }),
        ),
        flow(
            3,
            0,
            0,
            json!({ "name": null, "outbound": null, "group": null, "protocol": "udp", "age_ms": 90_000_000 }),
        ),
    ];
    let account = json!({ "devices": [["10.0.0.5", { "up": bytes, "down": bytes }]] });
    let mut whole = samples.whole(
        at_ms,
        &status(PID, 11 * bytes, 2_001 * bytes),
        &flows,
        &account,
    );
    whole.kernel = Ok(Some(samples.kernel(
        at_ms,
        &[
            (Reason::Bypassed, bytes, 1_000 * bytes),
            (Reason::DownDropped, bytes, bytes),
            (Reason::TcpSteered, bytes / 2, bytes),
        ],
    )));
    whole
}

fn state() -> (Samples, State) {
    let samples = Samples::default();
    let mut state = State::new(Duration::from_secs(1), View::Flows);
    state.take(sample(&samples, 0, 0));
    state.take(sample(&samples, 1_000, 1_024));
    (samples, state)
}

#[test]
fn a_usual_terminal() {
    let (_, mut state) = state();
    assert_eq!(
        shown(&mut state, 100, 16),
        [
            "proxy 4711, up 2h 1m | proxied: up 11K/s down 2.0M/s | direct: 1000K/s",
            "TCP 12 of 7,212, UDP 3 of 2,500 | every 1 s | without a proxy: dropped",
            "1 flows  2 devices  3 destinations  4 counters  5 outbounds                                   3 rows",
            "device                destination                 way       rule         up/s down/s▼  total     age",
            "10.0.0.5          tcp www.example.com:443         auto: far              1.0K    2.0M   2.0M      3s",
            "2001:db8:77::1234 tcp 视频.example:443            auto: far 视频和音乐    10K    1.0K    11K      3s",
            "10.0.0.5          udp 203.0.113.1:443             -                         0       0      0   1d 1h",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "flow 1: tcp 10.0.0.5:1 → 203.0.113.1:443 (www.example.com), auto: far, rule none, up 1.0 KiB, down …",
            "q quit  Tab view  s sort  r reverse  / filter  K end flow  p pause  + - interval  ? help",
        ]
    );
}

#[test]
fn small_terminals_show_what_matters_most() {
    let (_, mut state) = state();
    assert_eq!(
        shown(&mut state, 80, 24)[..7],
        [
            "proxy 4711, up 2h 1m | proxied: up 11K/s down 2.0M/s | direct: 1000K/s",
            "TCP 12 of 7,212, UDP 3 of 2,500 | every 1 s | without a proxy: dropped",
            "1 flows  2 devices  3 destinations  4 counters  5 outbounds               3 rows",
            "device              destination          way         up/s down/s▼  total     age",
            "10.0.0.5        tcp www.example.com:443  auto: far   1.0K    2.0M   2.0M      3s",
            "2001:db8:77::1… tcp 视频.example:443     auto: far    10K    1.0K    11K      3s",
            "10.0.0.5        udp 203.0.113.1:443      -              0       0      0   1d 1h",
        ]
    );
    assert_eq!(
        shown(&mut state, 60, 10),
        [
            "proxy 4711, up 2h 1m | proxied: up 11K/s down 2.0M/s",
            "direct: 1000K/s | TCP 12 of 7,212, UDP 3 of 2,500",
            "1 flows  2 devices  3 destinations  4 counters  5 outbounds",
            "device          destination          way        up/s down/s▼",
            "10.0.0.5        www.example.com:443  auto: f…   1.0K    2.0M",
            "2001:db8:77::1… 视频.example:443     auto: f…    10K    1.0K",
            "10.0.0.5        203.0.113.1:443      -             0       0",
            "",
            "",
            "q quit  Tab view  s sort  r reverse  / filter  K end flow  …",
        ]
    );
}

#[test]
fn each_view_has_its_table() {
    let (_, mut state) = state();
    // What fills the terminal's width is seen elsewhere.
    let mut table = |view: &str| {
        press(&mut state, view);
        let lines = shown(&mut state, 100, 16)[3..7].to_vec();
        let words = |line: &String| line.split_whitespace().collect::<Vec<_>>().join(" ");
        lines.iter().map(words).collect::<Vec<_>>().join("\n")
    };
    assert_eq!(
        table("2"),
        "device flows up/s down/s▼ up down\n\
         10.0.0.5 2 1.0K 1.0K 1.0K 1.0K\n\
         2001:db8:77::1234 1 10K 1.0K 10K 1.0K\n"
    );
    assert_eq!(
        table("3"),
        "destination flows up/s down/s▼ up down\n\
         example.com 1 1.0K 2.0M 1.0K 2.0M\n\
         视频.example 1 10K 1.0K 10K 1.0K\n\
         203.0.113.1 1 0 0 0 0"
    );
    let counters = table("4");
    assert!(
        counters.contains(
            "bypassed pass 1,024 1000K 1,024 1000K The destination is in the bypass set."
        ),
        "{counters}"
    );
    let outbounds = table("5");
    assert!(
        outbounds.contains("auto → far - - - 2 11K 2.0M - group: select"),
        "{outbounds}"
    );
}

#[test]
fn what_a_person_should_know_is_said() {
    let (samples, mut state) = state();
    let mut told = status(PID, 0, 0);
    told["trial_seconds"] = 42.into();
    told["draining"] = json!([{ "pid": 99, "connections": 3, "associations": 1 }]);
    state.take(samples.whole(2_000, &told, &[flow(1, 0, 0, Value::Null)], &json!({})));
    let text = shown(&mut state, 100, 24).join("\n");
    for part in [
        "on trial: the configuration holds for 42 s more; `tproxy-bpf confirm` keeps it",
        "draining: process 99, which was taken over from: 3 connections, 1 associations",
    ] {
        assert!(text.contains(part), "{text}");
    }
    state.take(samples.none(3_000, &[]));
    let buffer = drawn(&mut state, 100, 24, PLAIN);
    let text = lines(&buffer);
    let notice = "no proxy runs: new traffic is dropped; these are its last values";
    assert!(text.contains(&notice.to_owned()), "{text:#?}");
    let row = text
        .iter()
        .position(|line| line.starts_with("10.0.0.5 "))
        .expect("the last values");
    let row = u16::try_from(row).expect("a row");
    assert!(buffer[(0, row)].modifier.contains(Modifier::DIM));
    press(&mut state, "p");
    assert!(shown(&mut state, 100, 24).join("\n").contains("PAUSED"));
    press(&mut state, "?");
    let help = shown(&mut state, 100, 24).join("\n");
    assert!(
        help.contains("RST to both sides; asks before") && help.contains("any key goes back"),
        "{help}"
    );

    let mut state = State::new(Duration::from_secs(1), View::Flows);
    let mut nothing = samples.none(0, &[]);
    nothing.kernel = Ok(None);
    state.take(nothing);
    let text = shown(&mut state, 100, 24).join("\n");
    assert!(
        text.contains("no proxy runs: nothing is attached; these are the kernel's counters"),
        "{text}"
    );
}

#[test]
fn questions_and_filters_are_below() {
    let (_, mut state) = state();
    let last = |state: &mut State| shown(state, 80, 24).pop().expect("a line");
    press(&mut state, "K");
    assert_eq!(
        last(&mut state),
        "end flow 1, 10.0.0.5 → www.example.com:443? y/N"
    );
    press(&mut state, "n/视");
    assert_eq!(last(&mut state), "filter: 视_");
    state.press(KeyEvent::new(KeyCode::Enter, KeyModifiers::NONE));
    assert_eq!(last(&mut state), "only rows with \"视\"; Esc shows all");
    assert_eq!(
        shown(&mut state, 80, 24)
            .iter()
            .filter(|line| line.contains(":443"))
            .count(),
        2
    );
    state.tell("flow 1 is ended".into());
    assert_eq!(last(&mut state), "flow 1 is ended");
}

#[test]
fn there_are_colours_only_where_they_are_wanted() {
    let (_, mut state) = state();
    for view in ["1", "4", "5"] {
        press(&mut state, view);
        let colours = |state: &mut State, theme| {
            let buffer = drawn(state, 100, 24, theme);
            buffer
                .content
                .iter()
                .any(|cell| (cell.fg, cell.bg) != (Color::Reset, Color::Reset))
        };
        assert!(!colours(&mut state, PLAIN), "view {view}");
        assert!(colours(&mut state, Theme { colour: true }), "view {view}");
    }
}

#[test]
fn as_text_all_of_it_is_there() {
    let (_, mut state) = state();
    let text = text(&mut state);
    assert_eq!(
        text,
        "proxy 4711, up 2h 1m | proxied: up 11K/s down 2.0M/s | direct: 1000K/s | TCP 12 of 7,212, UDP 3 of 2,500 | \
         without a proxy: dropped\n\
         device                destination         way       rule       up/s down/s total   age\n\
         10.0.0.5          tcp www.example.com:443 auto: far            1.0K   2.0M  2.0M    3s\n\
         2001:db8:77::1234 tcp 视频.example:443    auto: far 视频和音乐  10K   1.0K   11K    3s\n\
         10.0.0.5          udp 203.0.113.1:443     -                       0      0     0 1d 1h\n"
    );
}

#[test]
fn what_a_device_sends_as_a_name_moves_no_cursor() {
    let samples = Samples::default();
    let mut state = State::new(Duration::from_secs(1), View::Flows);
    state.take(samples.flows(
        0,
        &[flow(1, 0, 0, json!({ "name": "evil\u{1b}[2J\n.example" }))],
    ));
    assert!(!text(&mut state).contains('\u{1b}'));
    assert!(text(&mut state).contains("evil\u{fffd}[2J\u{fffd}.example:443"));
}

proptest! {
    /// No size of a terminal, and no text, is too much.
    #[test]
    fn any_terminal_is_drawn(width in 1_u16..140, height in 1_u16..40, name in "\\PC{0,40}", keys in "[1-5srK/?pn]{0,6}") {
        let samples = Samples::default();
        let mut state = State::new(Duration::from_secs(1), View::Flows);
        let flows = [flow(1, 0, 0, json!({ "name": name, "rule": name, "group": name })), flow(2, 0, 0, Value::Null)];
        state.take(samples.flows(0, &flows));
        press(&mut state, &keys);
        drawn(&mut state, width, height, Theme { colour: true });
    }

    /// A line has the width that it is to have, whatever is in it.
    #[test]
    fn lines_are_as_wide_as_they_should_be(available in 1_usize..200, text in "\\PC{0,40}") {
        for view in View::ALL {
            let columns = view.columns();
            let cells: Vec<_> = columns.iter().map(|_| super::super::columns::Value::Text(text.as_str().into())).collect();
            let widths = widths(columns, &natural(columns, std::slice::from_ref(&cells)), Some(available));
            let line = line(columns, &widths, cells.iter().map(|cell| cell.text()));
            let least: usize = widths.iter().flatten().sum::<usize>() + widths.iter().flatten().count() - 1;
            prop_assert_eq!(line.width(), least);
            let shown = || columns.iter().zip(&widths).filter(|(_, width)| width.is_some());
            let fills = shown().any(|(column, _)| column.layout().fills);
            let goes = shown().any(|(column, _)| column.layout().goes > 0);
            prop_assert!(least == available || (least < available && !fills) || (least > available && !goes));
        }
        prop_assert!(fit(&text, available, true).width() == available);
    }
}
