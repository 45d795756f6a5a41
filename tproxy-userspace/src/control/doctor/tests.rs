mod firewall;
mod nat;
mod neighbours;

use std::time::{Duration, SystemTime};

use self::nat::nft;
use super::checks::CHECKS;
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
        exposed: Vec::new(),
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
        hooks: Hooks::default(),
        rules: Vec::new(),
        firewall: Firewall::default(),
        ports: Ports::default(),
        limits: Limits {
            open_files: Some((1024, 524_288)),
            nr_open: Some(1 << 20),
            file_max: Some(1 << 40),
            conntrack: Some((7, 262_144)),
            proxy: None,
        },
        files: Files {
            needed: 10_000,
            connections: 1024,
            associations: 3000,
        },
        clock: Clock {
            set: Some(true),
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 31),
            written: vec![("/usr/bin/tproxy-bpf".to_owned(), SystemTime::UNIX_EPOCH)],
        },
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
    let cases: [Case; 31] = [
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
        (
            "few open files",
            |f| f.limits.open_files = Some((1024, 4096)),
            &[("open files", Hint)],
        ),
        (
            "a limit of open files that cannot be read",
            |f| f.limits.open_files = None,
            &[("open files", Hint)],
        ),
        (
            "few open files of the machine",
            |f| f.limits.file_max = Some(9_999),
            &[("open files", Hint)],
        ),
        (
            "a full table of connections",
            |f| f.limits.conntrack = Some((236_000, 262_144)),
            &[("conntrack", Hint)],
        ),
        ("no conntrack", |f| f.limits.conntrack = None, &[]),
        (
            "a clock that nobody sets",
            |f| f.clock.set = Some(false),
            &[("clock", Hint)],
        ),
        (
            "a clock that cannot be asked",
            |f| f.clock.set = None,
            &[("clock", Hint)],
        ),
        (
            "a clock that says a time before the program was written",
            |f| f.clock.now = SystemTime::UNIX_EPOCH - Duration::from_secs(1),
            &[("clock", Problem)],
        ),
        (
            "rules that cannot be read",
            |f| {
                f.firewall
                    .unseen
                    .push(("there is no nft".into(), "install it".into()));
            },
            &[("firewall", Hint)],
        ),
    ];
    for (what, spoil, expected) in cases {
        let mut facts = fit();
        spoil(&mut facts);
        assert_eq!(bad(&facts), expected, "{what}");
    }
}

#[test]
fn a_limit_is_raised_only_as_far_as_the_kernel_lets_it() {
    let mut facts = fit();
    facts.limits.open_files = Some((1024, 4096));
    let without = remedy(&facts, "open files");
    assert!(without.starts_with("`LimitNOFILE=10000`"), "{without}");
    facts.limits.nr_open = Some(5000);
    let with = remedy(&facts, "open files");
    assert!(
        with.starts_with("sysctl -w fs.nr_open=10000; then `LimitNOFILE"),
        "{with}"
    );
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
