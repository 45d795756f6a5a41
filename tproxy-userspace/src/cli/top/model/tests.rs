use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value, json};
use tproxy_common::abi::Reason;
use tproxy_userspace::data::Bytes;

use super::super::testing::{PID, Samples, flow, status};
use super::*;

fn rates(model: &Model) -> Vec<(u64, Option<(f64, f64)>)> {
    let rate = |flow: &Flow| flow.rate.map(|rate| (rate.up, rate.down));
    let flows = model.flows.iter();
    flows.map(|flow| (flow.status.id, rate(flow))).collect()
}

#[test]
fn a_rate_is_a_difference_by_the_time_between() {
    let (samples, mut model) = (Samples::default(), Model::default());
    let account = |one: u64, far: u64| json!({ "devices": [["10.0.0.5", { "up": one, "down": 2 * one }]], "networks": [], "outbounds": [["far", { "up": far, "down": 0 }]] });
    let flows = [flow(1, 100, 1_000, Value::Null), flow(2, 5, 5, Value::Null)];
    model.take(samples.whole(0, &status(PID, 1_000, 10_000), &flows, &account(100, 7)));
    // What was there before has no rate: nobody knows when its bytes passed.
    assert_eq!(rates(&model), [(1, None), (2, None)]);
    assert_eq!((model.proxied, model.direct()), (None, None));

    // Two seconds later; 2 has ended, and 3 is new with an age that is that of another clock.
    let flows = [
        flow(3, 50, 500, json!({ "age_ms": 9_000 })),
        flow(1, 300, 5_000, Value::Null),
    ];
    model.take(samples.whole(2_000, &status(PID, 3_000, 30_000), &flows, &account(300, 7)));
    assert_eq!(
        rates(&model),
        [(1, Some((100.0, 2_000.0))), (3, Some((25.0, 250.0)))]
    );
    let rate = |up, down| Some(Rate { up, down });
    assert_eq!(model.proxied, rate(1_000.0, 10_000.0));
    let device = model.devices[&"10.0.0.5".parse().expect("a literal")];
    assert_eq!(
        (device.bytes, device.rate),
        (Bytes { up: 300, down: 600 }, rate(100.0, 200.0))
    );
    assert_eq!(model.outbounds["far"].rate, rate(0.0, 0.0));
    assert!(!model.is_stale());
}

#[test]
fn another_process_begins_anew() {
    let (samples, mut model) = (Samples::default(), Model::default());
    let flows = |bytes: u64| [flow(7, bytes, bytes, Value::Null)];
    let mut uptime = status(PID, 100, 100);
    model.take(samples.whole(0, &uptime, &flows(1), &json!({})));
    model.take(samples.whole(1_000, &uptime, &flows(2), &json!({})));
    assert_eq!(rates(&model), [(7, Some((1.0, 1.0)))]);
    // Another process, whose numbers go on or are more by chance.
    model.take(samples.whole(
        2_000,
        &status(PID + 1, 9_999, 9_999),
        &flows(90),
        &json!({}),
    ));
    assert_eq!((rates(&model), model.proxied), (vec![(7, None)], None));
    model.take(samples.whole(
        3_000,
        &status(PID + 1, 10_999, 9_999),
        &flows(90),
        &json!({}),
    ));
    assert_eq!(
        model.proxied,
        Some(Rate {
            up: 1_000.0,
            down: 0.0
        })
    );
    // The same number, but it has run for a shorter time.
    uptime["pid"] = (PID + 1).into();
    uptime["uptime_seconds"] = 1.into();
    uptime["traffic"]["bytes_up"] = 20_000.into();
    uptime["traffic"]["bytes_down"] = 20_000.into();
    model.take(samples.whole(4_000, &uptime, &flows(99), &json!({})));
    assert_eq!((rates(&model), model.proxied), (vec![(7, None)], None));
    // It goes, and what it said stays.
    model.take(samples.none(5_000, &[]));
    assert!(model.is_stale() && model.presence == Presence::None);
    assert_eq!(model.flows.len(), 1);
    // It answers again after a while in which it did not: the rates are over all that time.
    model.take(samples.whole(6_000, &uptime, &flows(99), &json!({})));
    assert_eq!(rates(&model), [(7, None)]);
    let mut silent = samples.none(7_000, &[]);
    silent.proxy = Answer::Silent {
        pid: PID + 1,
        error: "no answer".into(),
    };
    model.take(silent);
    assert_eq!(
        model.presence,
        Presence::Silent(PID + 1, "no answer".into())
    );
    model.take(samples.whole(10_000, &uptime, &flows(139), &json!({})));
    assert_eq!(rates(&model), [(7, Some((10.0, 10.0)))]);
}

#[test]
fn the_kernels_counters_have_rates_as_long_as_they_go_on() {
    let (samples, mut model) = (Samples::default(), Model::default());
    let of = |model: &Model, reason: Reason| {
        let found = model.counters.iter().find(|one| one.reason == reason);
        found.expect("all are there").rate
    };
    let counts = |bypassed: u64, exempt: u64| {
        [
            (Reason::Bypassed, bypassed, 100 * bypassed),
            (Reason::Exempt, exempt, exempt),
            (Reason::DirectConnection, 1, 1),
        ]
    };
    model.take(samples.none(0, &counts(10, 0)));
    assert_eq!((of(&model, Reason::Bypassed), model.direct()), (None, None));
    model.take(samples.none(500, &counts(20, 1_000)));
    assert_eq!(of(&model, Reason::Bypassed), Some((20.0, 2_000.0)));
    assert_eq!(of(&model, Reason::Exempt), Some((2_000.0, 2_000.0)));
    // The proxy's own packets are exempt, and no device's.
    assert_eq!(model.direct(), Some(2_000.0));
    // Attached anew: one went back, the other is more by chance.
    model.take(samples.none(1_000, &counts(5, 2_000)));
    assert_eq!((of(&model, Reason::Exempt), model.direct()), (None, None));
    model.take(samples.none(2_000, &counts(6, 2_000)));
    assert_eq!(model.direct(), Some(100.0));
    assert_eq!(model.down_drops, Some(true));
    let mut broken = samples.none(3_000, &[]);
    broken.kernel = Err("no permission".into());
    model.take(broken);
    assert_eq!(model.kernel_error.as_deref(), Some("no permission"));
    let mut detached = samples.none(4_000, &[]);
    detached.kernel = Ok(None);
    model.take(detached);
    assert!(
        model.counters.is_empty() && model.down_drops.is_none() && model.kernel_error.is_none()
    );
}

/// The process, its time, and the bytes of each flow.
type Seen = (u32, u64, BTreeMap<u64, u64>);

proptest! {
    /// Whatever comes and goes: a rate is a difference that there was, or none.
    #[test]
    fn no_rate_is_nonsense(
        steps in prop::collection::vec(
            (prop_oneof![1_u64..4, 1_u64..5_000], prop::collection::btree_map(1_u64..8, 0_u64..1 << 40, 0..8), 0_u32..3, 0_u8..10),
            1..20,
        )
    ) {
        let (samples, mut model) = (Samples::default(), Model::default());
        let (mut at, mut last): (u64, Option<Seen>) = (0, None);
        for (pause, flows, process, luck) in steps {
            at += pause;
            match luck {
                0 => {
                    model.take(samples.none(at, &[]));
                    last = None;
                    continue;
                }
                1 => {
                    let mut silent = samples.none(at, &[]);
                    silent.proxy = Answer::Silent { pid: process, error: String::new() };
                    model.take(silent);
                    continue;
                }
                _ => {}
            }
            let told: Vec<_> = flows.iter().rev().map(|(id, bytes)| flow(*id, *bytes, bytes / 2, Value::Null)).collect();
            let sum: u64 = flows.values().sum();
            model.take(samples.whole(at, &status(process, sum, sum / 2), &told, &json!({})));
            prop_assert_eq!(model.flows.len(), flows.len());
            for one in &model.flows {
                let id = one.status.id;
                // A millisecond is too short to divide by.
                let same = last.as_ref().filter(|(before, then_at, _)| *before == process && at - then_at > 1);
                let expected = same.and_then(|(_, then_at, then)| {
                    let seconds = (at - then_at) as f64 / 1_000.0;
                    let then = then.get(&id).copied().unwrap_or(0);
                    let up = flows[&id].checked_sub(then)?;
                    let down = (flows[&id] / 2).checked_sub(then / 2)?;
                    Some((up as f64 / seconds, down as f64 / seconds))
                });
                match (expected, one.rate) {
                    (None, None) => {}
                    (Some((up, down)), Some(rate)) => {
                        prop_assert!((rate.up - up).abs() <= up * 1e-9 && (rate.down - down).abs() <= down * 1e-9);
                    }
                    (expected, rate) => prop_assert!(false, "{expected:?}, not {rate:?}"),
                }
            }
            last = Some((process, at, flows));
        }
    }
}
