//! Ports and programs of others.

use super::super::ports::Process;
use super::super::*;
use super::{bad, fit, remedy};

fn wanted(address: &str, udp: bool) -> Wanted {
    Wanted {
        key: "[proxy] port",
        address: address.parse().unwrap(),
        udp,
    }
}

fn listening(address: &str, udp: bool, pid: u32) -> Listening {
    Listening {
        address: address.parse().unwrap(),
        udp,
        process: Some(Process {
            pid,
            name: "other".to_owned(),
            user: "somebody".to_owned(),
            exempt: false,
        }),
    }
}

#[test]
fn who_has_a_port_is_told_unless_it_is_the_proxy_itself() {
    let mut facts = fit();
    facts.ports.wanted = vec![wanted("127.0.0.1:12345", false)];
    assert_eq!(bad(&facts), []);
    for (address, udp, meets) in [
        ("127.0.0.1:12345", false, true),
        ("0.0.0.0:12345", false, true),
        ("[::]:12345", false, true),
        ("[::1]:12345", false, false),
        ("192.0.2.1:12345", false, false),
        ("127.0.0.1:12346", false, false),
        ("127.0.0.1:12345", true, false),
    ] {
        facts.ports.listening = vec![listening(address, udp, 77)];
        let expected: &[_] = if meets {
            &[("ports", Severity::Problem)]
        } else {
            &[]
        };
        assert_eq!(bad(&facts), expected, "{address}");
    }
    facts.ports.listening = vec![listening("0.0.0.0:12345", false, 77)];
    assert!(remedy(&facts, "ports").contains("systemctl status 77"));
    facts.ports.proxy = Some(77);
    assert_eq!(bad(&facts), []);
}

#[test]
fn a_dns_server_that_is_asked_must_be_exempt() {
    let mut facts = fit();
    facts.ports.dns_servers = vec!["127.0.0.1:53".parse().unwrap()];
    facts.ports.listening = vec![listening("0.0.0.0:53", true, 77)];
    assert_eq!(bad(&facts), [("ports", Severity::Hint)]);
    assert!(remedy(&facts, "ports").contains("uids = [\"somebody\"]"));
    facts.ports.listening[0].process.as_mut().unwrap().exempt = true;
    assert_eq!(bad(&facts), []);
}

#[test]
fn each_place_of_a_program_is_told_with_its_meaning() {
    let mut facts = fit();
    let at = |held, ingress, stands| Neighbour {
        link: "eth1".to_owned(),
        lan: "lan0".to_owned(),
        held,
        ingress,
        stands,
        what: "the program \"other\" (id 7)".to_owned(),
        remove: "tc filter del dev eth1 ingress pref 5".to_owned(),
    };
    use Stands::{Before, Behind};
    for (neighbour, check, words) in [
        (
            at(Held::Xdp, true, Before),
            "XDP",
            "sees each packet before",
        ),
        (at(Held::Tcx, true, Before), "tc programs", "is not proxied"),
        (
            at(Held::Tcx, true, Behind),
            "tc programs",
            "sees what is steered",
        ),
        (at(Held::Filter, false, Before), "tc programs", "wrong port"),
        (
            at(Held::Filter, false, Behind),
            "tc programs",
            "does not come to the device",
        ),
    ] {
        facts.hooks.neighbours = vec![neighbour];
        assert_eq!(bad(&facts), [(check, Severity::Hint)]);
        let findings = examine(&facts);
        let finding = findings
            .iter()
            .find(|finding| finding.severity == Severity::Hint)
            .unwrap();
        assert!(finding.why.contains(words), "{finding:?}");
        assert!(
            finding
                .found
                .contains("eth1, which the packets of lan0 come by"),
            "{finding:?}"
        );
        assert!(finding.remedy.ends_with("pref 5"), "{finding:?}");
    }
    facts.hooks = Hooks {
        neighbours: Vec::new(),
        unseen: vec![("lan0".to_owned(), "not permitted".to_owned())],
    };
    assert_eq!(bad(&facts), [("tc programs", Severity::Hint)]);
}
