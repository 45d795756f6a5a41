//! Rules that translate.

use std::process::Command;

use serde_json::json;

use super::super::nat::{of_iptables, of_nft};
use super::super::*;
use super::{names, net};
use crate::control::testing::in_namespace;

/// How sure it is that two devices' packets are translated: 192.168.1.0/24 and fd00:1::/64, from
/// lan0 to wan0.
fn covered(rules: &[Translates]) -> [Covered; 2] {
    ["192.168.1.0/24", "fd00:1::/64"].map(|source| {
        let covers =
            |rule: &Translates| rule.covers(net(source), &names(&["lan0"]), &names(&["wan0"]));
        rules.iter().map(covers).max().unwrap_or(Covered::No)
    })
}

const YES: [Covered; 2] = [Covered::Yes; 2];
const NO: [Covered; 2] = [Covered::No; 2];
const V4: [Covered; 2] = [Covered::Yes, Covered::No];
const V6: [Covered; 2] = [Covered::No, Covered::Yes];
const PERHAPS: [Covered; 2] = [Covered::Perhaps; 2];

#[test]
fn rules_of_nft_are_understood() {
    let cases = [
        ("masquerade", YES),
        ("snat ip to 192.0.2.1", V4),
        ("accept", NO),
        ("oifname wan0 masquerade", YES),
        ("oifname \"wan*\" masquerade", YES),
        ("oifname { wan0, wan1 } masquerade", YES),
        ("oifname wan1 masquerade", NO),
        ("oifname != lan0 masquerade", YES),
        ("oifname != wan0 masquerade", NO),
        ("iifname lan0 oifname wan0 masquerade", YES),
        ("iifname docker0 masquerade", NO),
        ("oif lo masquerade", NO),
        ("meta nfproto ipv4 masquerade", V4),
        ("meta nfproto ipv6 masquerade", V6),
        ("ip saddr 192.168.0.0/16 masquerade", V4),
        ("ip saddr 192.168.1.7 masquerade", V4),
        ("ip saddr { 10.0.0.0/8, 192.168.0.0/16 } masquerade", V4),
        ("ip saddr 172.17.0.0/16 oifname != docker0 masquerade", NO),
        ("ip saddr != 172.17.0.0/16 masquerade", V4),
        (
            "ip saddr 192.168.0.0/16 ip daddr != 192.168.0.0/16 masquerade",
            V4,
        ),
        ("ip6 saddr fc00::/7 masquerade", V6),
        ("ip6 saddr fd00:2::/64 masquerade", NO),
        ("meta mark 0x4000 masquerade", PERHAPS),
        ("tcp dport 443 masquerade", PERHAPS),
        ("oifname @ways masquerade", PERHAPS),
        ("oifname wan0 jump sub", V4),
        ("oifname wan1 jump sub", NO),
        ("meta nfproto ipv6 jump sub", NO),
        ("oifname vmap { wan1 : drop, wan0 : goto sub }", V4),
    ];
    in_namespace(move || async move {
        for (rule, expected) in cases {
            nft(&[&format!(
                "flush ruleset; add table inet nat; \
                 add set inet nat ways {{ type ifname; elements = {{ wan0 }}; }}; \
                 add chain inet nat sub; add rule inet nat sub meta nfproto ipv4 masquerade; \
                 add chain inet nat nobody; add rule inet nat nobody masquerade; \
                 add chain inet nat out {{ type nat hook postrouting priority 100; }}; \
                 add rule inet nat out {rule}"
            )]);
            let listed = nft(&["-j", "list", "ruleset"]);
            let found = of_nft(&serde_json::from_str(&listed).unwrap());
            assert_eq!(covered(&found), expected, "{rule}: {found:?}\n{listed}");
        }
    });
}

pub(super) fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().expect("nft");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn rules_of_iptables_nft_are_found_in_what_nft_lists() {
    let listed = |target: &str| {
        json!({ "nftables": [
            { "chain": { "family": "ip", "table": "nat", "name": "POSTROUTING",
                         "type": "nat", "hook": "postrouting", "prio": 100, "policy": "accept" } },
            { "rule": { "family": "ip", "table": "nat", "chain": "POSTROUTING", "handle": 2, "expr": [
                { "match": { "op": "==", "left": { "meta": { "key": "oifname" } }, "right": "wan0" } },
                { "match": { "op": "==", "left": { "payload": { "protocol": "ip", "field": "saddr" } },
                             "right": { "prefix": { "addr": "192.168.1.0", "len": 24 } } } },
                { "counter": { "packets": 0, "bytes": 0 } },
                { "xt": { "type": "target", "name": target } } ] } } ] })
    };
    assert_eq!(covered(&of_nft(&listed("MASQUERADE"))), V4);
    assert_eq!(covered(&of_nft(&listed("SNAT"))), V4);
    assert_eq!(covered(&of_nft(&listed("LOG"))), NO);
    assert_eq!(of_nft(&json!({ "nftables": [] })), []);
    assert_eq!(of_nft(&json!([])), []);
}

#[test]
fn rules_of_iptables_are_understood() {
    for (rules, expected) in [
        ("-A POSTROUTING -j MASQUERADE", Covered::Yes),
        (
            "-A POSTROUTING -s 192.168.1.0/24 -o wan0 -j MASQUERADE",
            Covered::Yes,
        ),
        (
            "-A POSTROUTING -o wan+ -j SNAT --to-source 192.0.2.1",
            Covered::Yes,
        ),
        (
            "-A POSTROUTING -s 192.168.0.0/16 ! -d 192.168.0.0/16 -j MASQUERADE",
            Covered::Yes,
        ),
        (
            "-A POSTROUTING ! -o lo -m comment --comment \"to the wan\" -j MASQUERADE",
            Covered::Yes,
        ),
        (
            "-A POSTROUTING -m comment --comment wan -j MASQUERADE",
            Covered::Yes,
        ),
        ("-A POSTROUTING -o wan1 -j MASQUERADE", Covered::No),
        ("-A POSTROUTING ! -o wan0 -j MASQUERADE", Covered::No),
        (
            "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
            Covered::No,
        ),
        ("-A POSTROUTING -i lan1 -j MASQUERADE", Covered::No),
        (
            "-A POSTROUTING -p tcp -m tcp --dport 80 -j MASQUERADE",
            Covered::Perhaps,
        ),
        (
            "-A POSTROUTING -m mark --mark 0x4000 -j MASQUERADE",
            Covered::Perhaps,
        ),
        ("-A OTHER -j MASQUERADE", Covered::No),
        (
            "-A POSTROUTING -o wan0 -j OTHER\n-A OTHER -s 192.168.1.0/24 -j MASQUERADE",
            Covered::Yes,
        ),
        (
            "-A POSTROUTING -o wan1 -j OTHER\n-A OTHER -j MASQUERADE",
            Covered::No,
        ),
        ("-A POSTROUTING -j POSTROUTING", Covered::No),
        ("-A\n-A \n-A POSTROUTING -s\n-A POSTROUTING -j", Covered::No),
    ] {
        let text = format!("*nat\n:POSTROUTING ACCEPT [0:0]\n{rules}\nCOMMIT\n");
        assert_eq!(
            covered(&of_iptables(&text, 4)),
            [expected, Covered::No],
            "{rules}"
        );
        assert_eq!(covered(&of_iptables(&text, 6))[0], Covered::No, "{rules}");
    }
}
