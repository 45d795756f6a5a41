//! Rules of firewalls, as the programs that have them print them.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;

use super::super::firewall::gather;
use super::super::*;
use super::{bad, fit, names, nft};
use crate::control::testing::in_namespace;

/// `fit`, with what nft lists here.
fn facts() -> Facts {
    let ruleset: Value = serde_json::from_str(&nft(&["-j", "list", "ruleset"])).unwrap();
    Facts {
        firewall: gather(&Ok(ruleset), vec!["192.0.2.1".parse().unwrap()]),
        ..fit()
    }
}

/// "firewall" and "marks": P for a problem, h for a hint, nothing if all is well.
fn told(facts: &Facts) -> String {
    bad(facts)
        .iter()
        .map(|(check, severity)| {
            let severity = if *severity == Severity::Problem {
                'P'
            } else {
                'h'
            };
            format!("{check} {severity} ")
        })
        .collect()
}

/// A table with this chain, beside chains and sets that it may name.
fn table(chain: &str) -> String {
    format!(
        "flush ruleset; add table inet fw; \
         add set inet fw ports {{ type inet_service; elements = {{ 22, 53 }}; }}; \
         add set inet fw lans {{ type ifname; elements = {{ lan0 }}; }}; \
         add set inet fw blocked {{ type ipv4_addr; }}; \
         add map inet fw by {{ type ifname : verdict; }}; \
         add chain inet fw let_in; add rule inet fw let_in accept; \
         add chain inet fw back; add rule inet fw back return; \
         add chain inet fw some; add rule inet fw some tcp dport 22 accept; \
         add chain inet fw end; add rule inet fw end drop; \
         add element inet fw by {{ lan0 : jump let_in }}; \
         {chain}"
    )
}

#[test]
fn a_firewall_of_nft_is_judged() {
    const INPUT: &str = "type filter hook input priority 0;";
    let cases: &[(&str, &[&str], &str)] = &[
        ("accept", &[], ""),
        ("drop", &[], "firewall P "),
        ("drop", &["accept"], ""),
        // What lets answers in lets no first packet in.
        (
            "drop",
            &["ct state established,related accept"],
            "firewall P ",
        ),
        ("drop", &["ct state { established, new } accept"], ""),
        (
            "drop",
            &["ct state vmap { established : accept, invalid : drop }"],
            "firewall P ",
        ),
        (
            "drop",
            &["iifname lo accept", "tcp dport 22 accept"],
            "firewall P ",
        ),
        ("drop", &["tcp dport @ports accept"], "firewall P "),
        ("drop", &["iifname lan0 accept"], ""),
        ("drop", &["iifname { lan0, lan1 } accept"], ""),
        ("drop", &["iifname \"lan*\" accept"], ""),
        ("drop", &["iifname @lans accept"], ""),
        ("drop", &["iifname != wan0 accept"], ""),
        ("drop", &["iifname wan0 accept"], "firewall P "),
        (
            "drop",
            &["iifname vmap { lo : accept, lan0 : jump let_in }"],
            "",
        ),
        ("drop", &["iifname vmap @by"], ""),
        (
            "drop",
            &["iifname vmap { lo : accept, lan0 : jump some }"],
            "firewall P ",
        ),
        ("drop", &["iifname lan0 jump let_in"], ""),
        ("drop", &["iifname lan0 goto back", "accept"], "firewall P "),
        ("drop", &["iifname lan0 jump back", "accept"], ""),
        ("drop", &["meta mark & 0xf0 == 0xa0 accept"], ""),
        (
            "drop",
            &["iifname lan0 meta mark & 0xf0 == 0xa0 accept"],
            "",
        ),
        ("drop", &["meta mark & 0xf0 == 0xb0 accept"], "firewall P "),
        ("drop", &["meta l4proto { tcp, udp } accept"], ""),
        ("drop", &["meta l4proto tcp accept"], "firewall P "),
        (
            "drop",
            &["tcp dport 1-65535 accept", "udp dport 0-65535 accept"],
            "",
        ),
        (
            "drop",
            &[
                "ip saddr 192.168.0.0/16 accept",
                "ip6 saddr fd00::/8 accept",
            ],
            "",
        ),
        ("drop", &["ip saddr 192.168.0.0/16 accept"], "firewall P "),
        ("drop", &["fib daddr type local accept"], "firewall P "),
        // A condition that is not understood is told as a doubt, not as a fault.
        ("drop", &["meta cpu 0 accept"], "firewall h "),
        ("accept", &["ip saddr @blocked drop", "meta cpu 0 drop"], ""),
        ("accept", &["iifname lan0 drop"], "firewall P "),
        ("accept", &["iifname wan0 drop"], ""),
        ("accept", &["iifname != { lo, lan0 } drop"], ""),
        ("accept", &["iifname lan0 reject"], "firewall P "),
        (
            "accept",
            &[
                "iifname lan0 tcp dport 22 accept",
                "iifname lan0 counter log drop",
            ],
            "firewall P ",
        ),
        ("accept", &["ct state invalid drop"], ""),
        ("accept", &["ct state new iifname lan0 drop"], "firewall P "),
        ("accept", &["udp dport 443 drop"], "firewall h "),
        (
            "accept",
            &[
                "ip daddr 224.0.0.0/4 drop",
                "ip daddr 192.168.0.0/16 drop",
                "ip daddr 192.0.2.1 drop",
            ],
            "",
        ),
        ("accept", &["fib daddr type != local drop"], "firewall P "),
        (
            "accept",
            &["fib daddr type { broadcast, multicast } drop"],
            "",
        ),
        ("accept", &["meta pkttype != host drop"], ""),
        (
            "accept",
            &["icmp type echo-request drop", "ip protocol igmp drop"],
            "",
        ),
        ("accept", &["jump end"], "firewall P "),
        ("accept", &["iifname wan0 jump end"], ""),
    ];
    in_namespace(move || async move {
        for (policy, rules, expected) in cases {
            let rules: String = rules
                .iter()
                .map(|rule| format!("add rule inet fw in {rule}; "))
                .collect();
            nft(&[&table(&format!(
                "add chain inet fw in {{ {INPUT} policy {policy}; }}; {rules}"
            ))]);
            let facts = facts();
            assert_eq!(
                told(&facts),
                *expected,
                "{policy}, {rules}: {:?}",
                examine(&facts)
            );
            // The line that is printed mends it.
            for finding in examine(&facts)
                .iter()
                .filter(|finding| finding.check == "firewall")
            {
                if finding.severity != Severity::Ok {
                    let line = finding.remedy.split('\'').nth(1).expect("a line for nft");
                    nft(&[line]);
                }
            }
            let mended = self::facts();
            assert_eq!(told(&mended), "", "{rules}: {:?}", examine(&mended));
        }
    });
}

#[test]
fn what_stands_before_routing_is_judged_too() {
    const FILTER: &str = "add chain inet fw pre { type filter hook prerouting priority -300; }; add rule inet fw pre";
    const NAT: &str = "add chain inet fw nat_pre { type nat hook prerouting priority -100; }; add rule inet fw nat_pre";
    const OUTPUT: &str =
        "add chain inet fw out { type route hook output priority -150; }; add rule inet fw out";
    let cases = [
        // With the mark the way back is asked for in our table.
        (
            FILTER,
            "fib saddr . mark . iif oif missing drop",
            "firewall P ",
        ),
        (FILTER, "fib saddr . iif oif missing drop", ""),
        (FILTER, "iifname lan0 meta mark set 1", "marks P "),
        (FILTER, "iifname wan0 meta mark set 1", ""),
        (FILTER, "meta mark set ct mark", "marks P "),
        (FILTER, "tcp dport 80 meta mark set 1", "marks P "),
        (FILTER, "meta cpu 0 meta mark set 1", "marks h "),
        (FILTER, "meta mark set meta mark | 1", ""),
        (FILTER, "meta mark set meta mark & 0xffff00ff | 0x300", ""),
        (
            FILTER,
            "meta mark set meta mark & 0xffff00ff | 0x3b0",
            "marks P ",
        ),
        (FILTER, "ct mark set meta mark", ""),
        (
            FILTER,
            "meta mark & 0xf0 == 0xa0 counter drop",
            "firewall P marks h ",
        ),
        (FILTER, "meta mark 0xff counter drop", ""),
        (FILTER, "meta mark & 0xf0 == 0xa0 accept", ""),
        (
            FILTER,
            "iifname lan0 meta l4proto tcp tproxy to :12345",
            "marks P ",
        ),
        (
            NAT,
            "iifname lan0 meta l4proto tcp redirect to :12345",
            "marks P ",
        ),
        (NAT, "iifname lan0 udp dport 53 redirect to :53", "marks h "),
        (NAT, "iifname wan0 tcp dport 443 dnat ip to 192.168.1.5", ""),
        (
            NAT,
            "ip daddr 192.0.2.1 tcp dport 443 dnat ip to 192.168.1.5",
            "",
        ),
        // The proxy's answers over UDP carry a port in their mark.
        (OUTPUT, "meta mark set 1", "marks P "),
        (OUTPUT, "oifname wan0 meta mark set 1", ""),
        (OUTPUT, "meta l4proto tcp meta mark set 1", ""),
        (
            OUTPUT,
            "ip daddr 192.168.0.0/16 return; add rule inet fw out ip daddr 10.0.0.0/8 meta mark set 1",
            "",
        ),
    ];
    in_namespace(move || async move {
        for (chain, rule, expected) in cases {
            nft(&[&table(&format!("{chain} {rule}"))]);
            let facts = facts();
            assert_eq!(told(&facts), expected, "{rule}: {:?}", examine(&facts));
            for finding in examine(&facts) {
                let delete = finding.remedy.split("nft delete ").nth(1);
                if let Some(delete) = delete.filter(|_| finding.check == "marks") {
                    nft(&[&format!("delete {delete}")]);
                }
            }
            assert!(!told(&self::facts()).contains("marks"), "{rule}");
        }
    });
}

#[test]
fn a_finding_names_chain_rule_and_links() {
    in_namespace(|| async {
        nft(&[&table(
            "add chain inet fw in { type filter hook input priority 0; }; add rule inet fw in iifname lan0 drop comment mine",
        )]);
        let findings = examine(&facts());
        let finding = findings
            .iter()
            .find(|finding| finding.check == "firewall")
            .unwrap();
        for words in [
            "inet fw in",
            "lan0",
            "TCP over IPv4, TCP over IPv6, UDP over IPv4, UDP over IPv6",
            "iifname \\\"lan0\\\" drop",
        ] {
            assert!(finding.found.contains(words), "{finding:?}");
        }
        assert!(finding.remedy.starts_with(
            "nft 'insert rule inet fw in iifname \"lan0\" meta mark & 0xf0 == 0xa0 accept'"
        ));
    });
}

/// Rules of iptables for both families.
fn iptables(arguments: &str) {
    for program in ["iptables-nft", "ip6tables-nft"] {
        let output = Command::new(program)
            .args(arguments.split_whitespace())
            .output()
            .expect(program);
        assert!(output.status.success(), "{program} {arguments}: {output:?}");
    }
}

#[test]
fn a_firewall_of_iptables_is_judged() {
    const DROP: &str = "-P INPUT DROP";
    let cases: &[(&[&str], &str)] = &[
        (&[DROP], "firewall P firewall P "),
        (
            &[
                DROP,
                "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            ],
            "firewall P firewall P ",
        ),
        (&[DROP, "-A INPUT -i lan0 -j ACCEPT"], ""),
        (
            &[
                DROP,
                "-A INPUT -i lan+ -m comment --comment devices -j ACCEPT",
            ],
            "",
        ),
        (
            &[DROP, "-A INPUT -p tcp -m tcp --dport 22 -j ACCEPT"],
            "firewall P firewall P ",
        ),
        (&[DROP, "-A INPUT -m mark --mark 0xa0/0xf0 -j ACCEPT"], ""),
        (
            &[
                DROP,
                "-N in",
                "-A INPUT -i lan0 -m conntrack --ctstate NEW -j in",
                "-A in -j LOG",
                "-A in -j ACCEPT",
            ],
            "",
        ),
        // What ufw begins with.
        (
            &[
                "-N not-local",
                "-A INPUT -j not-local",
                "-A not-local -m addrtype --dst-type LOCAL -j RETURN",
                "-A not-local -m addrtype --dst-type MULTICAST -j RETURN",
                "-A not-local -j DROP",
            ],
            "firewall P firewall P ",
        ),
        (&["-A INPUT -m helper --helper ftp -j DROP"], ""),
        (
            &["-t raw -A PREROUTING -m rpfilter --validmark --invert -j DROP"],
            "firewall P firewall P ",
        ),
        (&["-t raw -A PREROUTING -m rpfilter --invert -j DROP"], ""),
        (
            &["-t mangle -A PREROUTING -j MARK --set-mark 1"],
            "marks P marks P ",
        ),
        (
            &["-t mangle -A PREROUTING -j MARK --set-mark 0x100/0xff00"],
            "",
        ),
        (
            &["-t mangle -A PREROUTING -j CONNMARK --restore-mark"],
            "marks P marks P ",
        ),
        (
            &["-t mangle -A PREROUTING -j CONNMARK --restore-mark --nfmask 0x3f00 --ctmask 0x3f00"],
            "",
        ),
        (&["-t mangle -A PREROUTING -j CONNMARK --save-mark"], ""),
        (
            &["-t mangle -A PREROUTING -i lan0 -p tcp -j TPROXY --on-port 12345 --tproxy-mark 1"],
            "marks P marks P marks P marks P ",
        ),
        (
            &["-t nat -A PREROUTING -i lan0 -p tcp -j REDIRECT --to-ports 12345"],
            "marks P marks P ",
        ),
        (
            &["-A INPUT -m mark --mark 0xa0/0xf0 -j LOG"],
            "marks h marks h ",
        ),
    ];
    in_namespace(move || async move {
        for (rules, expected) in cases {
            nft(&["flush ruleset"]);
            // Something that only iptables prints in full.
            iptables("-A FORWARD -m addrtype --dst-type LOCAL -j ACCEPT");
            for rule in *rules {
                iptables(rule);
            }
            let facts = facts();
            assert_eq!(told(&facts), *expected, "{rules:?}: {:?}", examine(&facts));
            for finding in examine(&facts) {
                if finding.check == "firewall" && finding.severity != Severity::Ok {
                    let line = finding.remedy.split(';').next().unwrap();
                    let words: Vec<_> = line.split(' ').collect();
                    assert!(
                        Command::new(words[0])
                            .args(&words[1..])
                            .status()
                            .unwrap()
                            .success(),
                        "{line}"
                    );
                }
            }
            assert!(!told(&self::facts()).contains("firewall"), "{rules:?}");
        }
    });
}

#[test]
fn broken_rulesets_say_nothing() {
    for ruleset in [
        "{}",
        "[]",
        "null",
        r#"{"nftables": [{"rule": {}}, {"chain": {"hook": "input", "policy": "drop"}}, 7]}"#,
    ] {
        let found = filter::nft::read(
            &serde_json::from_str(ruleset).unwrap(),
            "table\n # handle x",
            &BTreeSet::new(),
        );
        assert_eq!(found, filter::Rules::default(), "{ruleset}");
    }
    for text in [
        "-A",
        "-A ",
        "*",
        ":",
        ":INPUT",
        "-A INPUT",
        "-A INPUT -j",
        "-A INPUT ! -i -j DROP \"",
        "-A a -g a\n:a - [0:0]",
    ] {
        let _ = filter::iptables::read(text, 4, "iptables");
    }
    // A loop ends.
    let text = "*filter\n:INPUT DROP [0:0]\n:a - [0:0]\n-A INPUT -j a\n-A a -j a\n-A a -g a\n";
    let facts = Facts {
        firewall: Firewall {
            rules: filter::iptables::read(text, 4, "iptables"),
            ..Firewall::default()
        },
        ..fit()
    };
    assert_eq!(told(&facts), "firewall P ");
    assert_eq!(facts.lan[0].arrive, names(&["lan0"]));
}
