use std::collections::BTreeMap;

use super::*;
use crate::data::Budget;

fn health(state: State, delay: Option<u64>) -> crate::data::HealthStatus {
    crate::data::HealthStatus {
        state,
        since_seconds: 0,
        delay_milliseconds: delay,
        error: None,
        check_in_seconds: None,
    }
}

fn scrape() -> Scrape {
    let stats = Stats {
        connections: 3,
        connections_total: 30,
        associations: 2,
        associations_total: 20,
        bytes_up: 5,
        bytes_down: 6,
        own_port: 0,
        limit_reached: 0,
        evicted: 0,
        blocked: 0,
        accept_failed: 0,
        pipe_missing: 0,
        flows: 0,
        flows_evicted: 0,
        names_missed: 0,
        port_zero: 0,
        datagrams_blocked: 0,
        datagrams_lost: 0,
        datagrams_refused: 0,
        datagrams_dropped: 7,
        failures: BTreeMap::new(),
        limits: Budget {
            open_files: 1024,
            connections: 100,
            associations: 50,
            pipes: 10,
        },
    };
    let counter = Counter {
        packets: 8,
        bytes: 9,
    };
    Scrape {
        stats,
        ended: Outcome::ALL.iter().map(|outcome| (*outcome, 1)).collect(),
        outbound_bytes: vec![("a \"quoted\"\\\nname".into(), Bytes { up: 1, down: 2 })],
        outbounds: vec![OutboundStatus {
            name: "fast".to_owned(),
            url: "socks5://me:***@192.0.2.1:1080".to_owned(),
            via: None,
            tcp: health(State::Up, Some(42)),
            udp: health(State::Unknown, None),
        }],
        groups: vec![GroupStatus {
            name: "auto".to_owned(),
            kind: "fallback",
            members: vec!["fast".to_owned()],
            tcp: Some("fast".to_owned()),
            udp: None,
        }],
        dns: Some(DnsStats::default()),
        counters: Reason::ALL
            .iter()
            .map(|reason| (*reason, counter))
            .collect(),
        uptime: Duration::from_millis(1500),
        usage: process::usage(),
        tasks: 4,
        doors: Doors {
            unix: 1,
            tcp: 0,
            refused: [("token", 1), ("origin", 0), ("host", 0), ("connections", 0)],
        },
    }
}

#[test]
fn each_metric_has_help_a_type_and_a_name_by_the_rules() {
    let text = scrape().text().unwrap();
    let mut of: Option<(String, String)> = None;
    let mut families = Vec::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(help.ends_with('.'), "{line}");
            assert!(!families.contains(&name.to_owned()), "{name} comes twice");
            families.push(name.to_owned());
            of = Some((name.to_owned(), String::new()));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            let of = of.as_mut().unwrap();
            assert_eq!(of.0, name);
            of.1 = kind.to_owned();
        } else if !line.starts_with('#') {
            let (name, kind) = of.as_ref().unwrap();
            let sample = line.split(['{', ' ']).next().unwrap();
            let wanted = match &**kind {
                "counter" => format!("{name}_total"),
                _ => name.clone(),
            };
            assert_eq!(sample, wanted, "{line}");
            assert!(
                name.starts_with("tproxy_") || name.starts_with("process_"),
                "{name}"
            );
        }
    }
    assert!(text.ends_with("# EOF\n"));
    assert!(families.len() > 40, "{families:?}");
}

#[test]
fn values_stand_under_their_labels() {
    let text = scrape().text().unwrap();
    for line in [
        "tproxy_flows{protocol=\"tcp\"} 3.0",
        "tproxy_flows_opened_total{protocol=\"udp\"} 20",
        "tproxy_flows_ended_total{outcome=\"killed\"} 1",
        "tproxy_relayed_bytes_total{direction=\"down\"} 6",
        "tproxy_outbound_bytes_total{outbound=\"a \\\"quoted\\\"\\\\\\nname\",direction=\"up\"} 1",
        "tproxy_kernel_packets_total{reason=\"bypassed\",effect=\"pass\"} 8",
        "tproxy_kernel_bytes_total{reason=\"tcp_opened\",effect=\"steer\"} 9",
        "tproxy_outbound_up{outbound=\"fast\",protocol=\"tcp\"} 1.0",
        "tproxy_outbound_delay_seconds{outbound=\"fast\",protocol=\"tcp\"} 0.042",
        "tproxy_group_member{group=\"auto\",protocol=\"tcp\",member=\"fast\"} 1.0",
        "tproxy_datagrams_dropped_total{why=\"malformed\"} 7",
        "tproxy_api_refused_total{why=\"token\"} 1",
        "tproxy_own_port_total 0",
        "tproxy_tasks 4.0",
        "tproxy_limit{what=\"associations\"} 50.0",
    ] {
        assert!(
            text.lines().any(|other| other == line),
            "{line} is not in\n{text}"
        );
    }
    // What nothing is known of is not told.
    assert!(!text.contains("tproxy_outbound_up{outbound=\"fast\",protocol=\"udp\"}"));
    assert!(!text.contains("***"));
}
