use std::process::Command;

use serde_json::json;

use super::checks::CHECKS;
use super::nat::{of_iptables, of_nft};
use super::*;
use crate::control::testing::{in_namespace, ip};

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(ToString::to_string).collect()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn lan_link(name: &str, sources: &[&str]) -> LanLink {
    LanLink {
        name: name.to_owned(),
        arrive: names(&[name]),
        sources: sources.iter().map(|source| net(source)).collect(),
    }
}

fn masqueraded() -> Translation {
    Translation {
        rules: vec![Translates::default()],
        unseen: None,
    }
}

/// A machine where all is well.
fn fit() -> Facts {
    Facts {
        release: "6.12.1-generic".to_owned(),
        missing_for_clsact: Vec::new(),
        missing_capabilities: Vec::new(),
        bpffs: Bpffs::Mounted,
        cgroup2: Some("/sys/fs/cgroup".into()),
        attached: false,
        configured: config::Gateway::default(),
        lan: vec![lan_link("lan0", &["192.168.1.0/24", "fd00:1::/64"])],
        unfit_lan: None,
        ways_out: names(&["wan0"]),
        forwarding_v4: Some(true),
        forwarding_v6: Some(true),
        translation: masqueraded(),
        send_redirects: [("all", true), ("lan0", true)]
            .map(|(name, on)| (name.to_owned(), on))
            .into(),
        rp_filter: [("all", "0"), ("lan0", "2")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
    }
}

/// Check and severity of all that is not well.
fn bad(facts: &Facts) -> Vec<(&'static str, Severity)> {
    let findings = examine(facts);
    for finding in &findings {
        let fine = finding.severity == Severity::Ok;
        assert_eq!(finding.why.is_empty(), fine, "{finding:?}");
        assert_eq!(
            finding.remedy.is_empty(),
            fine || finding.check == "kernel" && finding.severity == Severity::Hint,
            "{finding:?}"
        );
        assert!(!finding.found.is_empty());
    }
    findings
        .iter()
        .filter(|finding| finding.severity != Severity::Ok)
        .map(|finding| (finding.check, finding.severity))
        .collect()
}

fn remedy(facts: &Facts, check: &str) -> String {
    let findings = examine(facts);
    let finding = findings.iter().find(|finding| finding.check == check);
    finding.expect("a finding").remedy.clone()
}

#[test]
fn a_fit_machine_is_told_so_by_every_check() {
    assert_eq!(bad(&fit()), []);
    let one_armed = Facts {
        ways_out: names(&["lan0"]),
        send_redirects: [("all", false), ("lan0", false)]
            .map(|(name, on)| (name.to_owned(), on))
            .into(),
        ..fit()
    };
    assert_eq!(bad(&one_armed), []);
    // Each check says something of this one.
    for check in CHECKS {
        assert!(!check(&one_armed).is_empty());
    }
}

#[test]
fn each_fault_is_found_and_nothing_else() {
    use Severity::{Hint, Problem};
    type Case = (
        &'static str,
        fn(&mut Facts),
        &'static [(&'static str, Severity)],
    );
    let cases: [Case; 22] = [
        (
            "old kernel",
            |f| f.release = "5.10.3".into(),
            &[("kernel", Problem)],
        ),
        (
            "no tcx, and no filters",
            |f| {
                f.release = "6.1.0".into();
                f.missing_for_clsact = vec!["cls_bpf"];
            },
            &[("kernel", Problem)],
        ),
        (
            "no filters, and none needed",
            |f| f.missing_for_clsact = vec!["cls_bpf"],
            &[],
        ),
        (
            "odd kernel",
            |f| f.release = "mine".into(),
            &[("kernel", Hint)],
        ),
        (
            "no root",
            |f| f.missing_capabilities = vec!["CAP_BPF"],
            &[("privileges", Problem)],
        ),
        (
            "no bpffs",
            |f| f.bpffs = Bpffs::Missing,
            &[("BPF file system", Problem)],
        ),
        ("bpffs to be mounted", |f| f.bpffs = Bpffs::Available, &[]),
        ("no cgroup2", |f| f.cgroup2 = None, &[("cgroup2", Hint)]),
        ("no LAN", |f| f.lan.clear(), &[("LAN links", Hint)]),
        (
            "wrong LAN",
            |f| f.unfit_lan = Some("no such link".into()),
            &[("LAN links", Problem)],
        ),
        (
            "LAN without addresses",
            |f| f.lan.push(lan_link("lan1", &[])),
            &[("LAN links", Hint)],
        ),
        ("no way out", |f| f.ways_out.clear(), &[("way out", Hint)]),
        (
            "no forwarding",
            |f| f.forwarding_v4 = Some(false),
            &[("forwarding", Problem)],
        ),
        (
            "no IPv6 forwarding",
            |f| f.forwarding_v6 = Some(false),
            &[("forwarding, IPv6", Problem)],
        ),
        ("no IPv6", |f| f.forwarding_v6 = None, &[]),
        (
            "no IPv6 forwarding, and no IPv6 devices",
            |f| {
                f.forwarding_v6 = Some(false);
                f.lan = vec![lan_link("lan0", &["10.0.0.0/24"])];
            },
            &[],
        ),
        (
            "no translation",
            |f| f.translation.rules.clear(),
            &[("translation", Problem), ("translation, IPv6", Problem)],
        ),
        (
            "no translation that can be seen",
            |f| {
                f.translation.rules.clear();
                f.translation.unseen = Some(("there is no nft".into(), "install it".into()));
            },
            &[("translation", Hint), ("translation, IPv6", Hint)],
        ),
        (
            "no translation, and no private address",
            |f| {
                f.translation.rules.clear();
                f.lan = vec![lan_link("lan0", &["203.0.113.0/24", "2001:db8::/64"])];
            },
            &[],
        ),
        (
            "no translation of shared addresses",
            |f| {
                f.translation.rules.clear();
                f.lan = vec![lan_link("lan0", &["203.0.113.0/24", "100.64.9.0/24"])];
            },
            &[("translation", Problem)],
        ),
        (
            "one-armed with redirects of all",
            |f| {
                f.ways_out = names(&["lan0"]);
                f.send_redirects.insert("lan0".into(), false);
            },
            &[("redirects", Hint)],
        ),
        (
            "one-armed with redirects of the link",
            |f| {
                f.ways_out = names(&["lan0"]);
                f.send_redirects.insert("all".into(), false);
            },
            &[("redirects", Hint)],
        ),
    ];
    for (what, spoil, expected) in cases {
        let mut facts = fit();
        spoil(&mut facts);
        assert_eq!(bad(&facts), expected, "{what}");
    }
}

#[test]
fn what_the_configuration_sees_to_is_no_problem_until_it_should_have() {
    let mut facts = Facts {
        ways_out: names(&["lan0"]),
        forwarding_v4: Some(false),
        forwarding_v6: Some(false),
        translation: Translation::default(),
        ..fit()
    };
    let checks = [
        "forwarding",
        "forwarding, IPv6",
        "translation",
        "translation, IPv6",
        "redirects",
    ];
    let of = |facts: &Facts| {
        bad(facts)
            .iter()
            .map(|(check, _)| *check)
            .collect::<Vec<_>>()
    };
    assert_eq!(of(&facts), checks);
    assert!(remedy(&facts, "forwarding").contains("`[gateway] forward = true`"));
    assert!(remedy(&facts, "forwarding").contains("sysctl -w net.ipv4.ip_forward=1"));
    let mend = remedy(&facts, "translation");
    for part in [
        "`[gateway] masquerade = true`",
        "oifname { \"lan0\" }",
        "a route to 192.168.1.0/24",
    ] {
        assert!(mend.contains(part), "{mend}");
    }
    facts.configured = config::Gateway {
        forward: true,
        masquerade: true,
        ..config::Gateway::default()
    };
    assert_eq!(of(&facts), [""; 0]);
    facts.attached = true;
    assert_eq!(of(&facts), checks);
    assert!(remedy(&facts, "translation").contains("restart"));
}

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

fn nft(arguments: &[&str]) -> String {
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

#[test]
fn a_machine_is_seen_as_it_is() {
    in_namespace(|| async {
        ip("link add lan0 type veth peer name far");
        ip("link add wan0 type veth peer name away");
        for link in ["lan0", "far", "wan0", "away"] {
            ip(&format!("link set {link} up"));
        }
        ip("address add 192.168.1.1/24 dev lan0");
        ip("address add 192.0.2.1/24 dev wan0");
        ip("route add default via 192.0.2.2");
        let subject = Subject {
            lan: vec!["lan0".parse().unwrap()],
            sources: vec![net("10.9.0.0/16")],
            ..Subject::default()
        };
        let facts = gather(&subject).await.unwrap();
        assert_eq!(
            facts.lan,
            [lan_link("lan0", &["192.168.1.0/24", "10.9.0.0/16"])]
        );
        assert_eq!(facts.ways_out, names(&["wan0"]));
        assert_eq!(facts.forwarding_v4, Some(false));
        assert_eq!(facts.translation, Translation::default());
        assert_eq!(
            facts.send_redirects.keys().collect::<Vec<_>>(),
            ["all", "lan0"]
        );
        assert!(bad(&facts).contains(&("translation", Severity::Problem)));

        nft(&["add table ip nat; \
               add chain ip nat out { type nat hook postrouting priority 100; }; \
               add rule ip nat out oifname wan0 masquerade"]);
        let facts = gather(&subject).await.unwrap();
        assert!(!bad(&facts).iter().any(|(check, _)| *check == "translation"));

        let wrong = Subject {
            lan: vec!["lan7".parse().unwrap()],
            ..Subject::default()
        };
        let facts = gather(&wrong).await.unwrap();
        assert!(facts.unfit_lan.as_ref().unwrap().contains("lan0"));
        assert!(bad(&facts).contains(&("LAN links", Severity::Problem)));
    });
}
