//! Whole files in, a configuration out.

mod foreign;

use std::path::Path;

use super::*;
use crate::config::{OnProxyDown, Stage};

macro_rules! samples {
    ($($name:literal),* $(,)?) => {
        /// The samples by their names.
        const SAMPLES: &[(&str, &str)] = &[$(($name, include_str!(concat!("samples/", $name)))),*];
    };
}

samples!(
    "stage1.rules",
    "stage3.rules",
    "stage3-six.rules",
    "near.ipset",
    "redirect.rules",
    "part.rules",
    "stage4.json",
    "unknown-server.json",
);

fn inputs(names: &[&str]) -> Vec<Input> {
    let find = |name: &&str| {
        let (name, text) = SAMPLES.iter().find(|(other, _)| other == name).unwrap();
        Input {
            name: (*name).to_owned(),
            bytes: text.as_bytes().to_vec(),
        }
    };
    names.iter().map(find).collect()
}

fn imported(names: &[&str]) -> (Config, Imported) {
    let imported = import(&inputs(names), &Options::default()).unwrap();
    let config = Config::parse(&imported.toml, Path::new("config.toml")).unwrap();
    (config, imported)
}

fn refusal(text: &str) -> String {
    let input = Input {
        name: "x".to_owned(),
        bytes: text.as_bytes().to_vec(),
    };
    import(&[input], &Options::default())
        .unwrap_err()
        .to_string()
}

/// One of the notes holds all of these.
fn told(notes: &[String], words: &[&str]) -> bool {
    notes
        .iter()
        .any(|note| words.iter().all(|word| note.contains(word)))
}

fn shown<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

#[test]
fn everything_to_the_proxy_is_stage_one() {
    let (config, Imported { notes, toml }) = imported(&["stage1.rules"]);
    assert_eq!(config.stage, Stage::One);
    assert!(!config.bypass.private && config.wan.interfaces.is_empty() && config.rules.is_empty());
    assert!(config.bypass.prefixes.is_empty());
    assert_eq!(config.on_proxy_down, OnProxyDown::Pass);
    assert!(
        told(&notes.needless, &["224.0.0.0/4", "never proxied"]),
        "{notes}"
    );
    assert!(told(&notes.needless, &["ip rule"]), "{notes}");
    assert!(told(&notes.open, &["[lan] interfaces"]), "{notes}");
    assert!(
        told(&notes.left_out, &["IPv6", "ip6tables-save"]),
        "{notes}"
    );
    // Nothing goes anywhere before a person says where to.
    assert_eq!(config.outbounds[0].url.to_string(), "block://");
    assert!(
        toml.contains("# url = \"socks5://127.0.0.1:PORT\""),
        "{toml}"
    );
}

#[test]
fn rules_of_both_families_and_a_set_are_one_configuration() {
    let (config, Imported { notes, .. }) =
        imported(&["stage3.rules", "stage3-six.rules", "near.ipset"]);
    assert_eq!(config.stage, Stage::Three);
    assert!(config.bypass.private);
    assert_eq!(shown(&config.lan.interfaces), ["eth0"]);
    assert_eq!(
        shown(&config.bypass.prefixes),
        [
            "198.18.0.0/15",
            "198.51.100.128/25",
            "203.0.113.0/25",
            "2001:db8:e::/48"
        ]
    );
    assert_eq!(shown(&config.exempt.gids), ["23333"]);
    assert_eq!(shown(&config.exempt.uids), ["1000"]);
    assert_eq!(shown(&config.exempt.marks), ["0x10000/0xff0000"]);
    let rules: Vec<String> = config
        .rules
        .iter()
        .map(|rule| {
            let (prefix, source, port) =
                (shown(&rule.prefix), shown(&rule.source), shown(&rule.port));
            format!(
                "{prefix:?} {source:?} {port:?} {:?} {}",
                rule.protocol, rule.outbound
            )
        })
        .collect();
    assert_eq!(
        rules,
        [
            r#"[] ["10.77.0.50/32"] [] None direct"#,
            r#"[] [] ["123"] Some(Udp) direct"#,
            r#"["0.0.0.0/0"] [] ["25", "465", "587"] Some(Tcp) block"#,
        ]
    );
    assert!(told(&notes.left_out, &["mac-source"]), "{notes}");
    assert!(
        told(&notes.left_out, &["203.0.113.99", "gateway alone"])
            || !told(&notes.left_out, &["203.0.113.99"])
    );
    assert!(
        told(&notes.left_out, &["198.51.100.7/32", "gateway alone"]),
        "{notes}"
    );
    assert!(
        told(&notes.needless, &["0xff", "protects the old proxy"]),
        "{notes}"
    );
    assert!(
        told(&notes.needless, &["filter"]) && told(&notes.needless, &["POSTROUTING"]),
        "{notes}"
    );
    assert!(told(&notes.open, &["port 53", "[dns]"]), "{notes}");
}

#[test]
fn a_set_that_is_not_given_is_named_with_what_to_do() {
    let (config, Imported { notes, toml }) = imported(&["stage3.rules"]);
    assert!(
        told(&notes.open, &["ipset save near > near.ipset"]),
        "{notes}"
    );
    assert!(toml.contains("# files = [\"near.ipset\"]"), "{toml}");
    assert_eq!(shown(&config.bypass.prefixes), ["198.18.0.0/15"]);
    assert!(config.bypass.files.is_empty());
}

#[test]
fn redirection_of_tcp_leaves_udp_direct() {
    let (config, Imported { notes, .. }) = imported(&["redirect.rules"]);
    assert_eq!(config.stage, Stage::One);
    assert_eq!(shown(&config.lan.interfaces), ["br-lan"]);
    assert_eq!(
        shown(&config.bypass.prefixes),
        ["192.168.1.0/24", "198.51.100.7/32"]
    );
    let [ssh, udp] = &config.rules[..] else {
        panic!("{:?}", config.rules)
    };
    assert_eq!(
        (shown(&ssh.port), &*ssh.outbound),
        (vec!["22".to_owned()], "direct")
    );
    assert_eq!(
        (shown(&udp.port), &*udp.outbound),
        (vec!["0-52".to_owned(), "54-65535".to_owned()], "direct")
    );
    assert!(told(&notes.open, &["port 53"]), "{notes}");
}

#[test]
fn a_part_that_is_led_to_the_proxy_leaves_the_rest_direct() {
    let (config, Imported { notes, .. }) = imported(&["part.rules", "near.ipset"]);
    assert_eq!(shown(&config.lan.interfaces), ["eth0"]);
    let rules: Vec<String> = config
        .rules
        .iter()
        .map(|rule| {
            format!(
                "{:?} {:?} {:?} {}",
                shown(&rule.prefix),
                shown(&rule.port),
                rule.protocol,
                rule.outbound
            )
        })
        .collect();
    assert_eq!(
        rules,
        [
            r#"["198.51.100.128/25", "203.0.113.0/25"] ["80", "443"] Some(Tcp) direct"#,
            r#"[] ["0-79", "81-442", "444-65535"] Some(Tcp) direct"#,
            r#"[] [] Some(Udp) direct"#,
        ],
        "{notes}"
    );
    assert_eq!(shown(&config.exempt.uids), ["1001"]);
    assert_eq!(config.stage, Stage::Three);
}

#[test]
fn a_configuration_of_the_fourth_stage() {
    let (config, Imported { notes, toml }) =
        imported(&["stage4.json", "stage3.rules", "near.ipset"]);
    assert_eq!(config.stage, Stage::Four);
    let outbounds: Vec<String> = config
        .outbounds
        .iter()
        .map(|one| format!("{} {}", one.name, one.url))
        .collect();
    assert_eq!(
        outbounds,
        [
            "rented ss://aes-256-gcm:***@198.51.100.7:8388",
            "second trojan://***@proxy.example:443?sni=www.example.org",
            "office socks5://me:***@192.0.2.9:1080",
        ]
    );
    let password: data::Outbound = "ss://aes-256-gcm:p%40ss%2F%22w%5Dord@198.51.100.7:8388"
        .parse()
        .unwrap();
    assert!(config.outbounds[0].url == password);
    assert_eq!(config.default_exit(), "rented");
    let groups: Vec<String> = config
        .groups
        .iter()
        .map(|one| format!("{} {:?} {:?}", one.name, one.kind, one.members))
        .collect();
    assert_eq!(
        groups,
        [
            r#"all-group UrlTest ["rented", "second"]"#,
            r#"all-group-or-direct Fallback ["all-group", "direct"]"#,
        ]
    );
    assert_eq!(config.check.url.to_string(), "http://192.0.2.80/204");
    let dns = config.dns.as_ref().unwrap();
    assert_eq!(shown(&dns.direct), ["udp://223.5.5.5"]);
    assert_eq!(
        shown(&dns.proxy),
        ["https://1.1.1.1/dns-query", "udp://8.8.8.8"]
    );
    assert_eq!(
        shown(&dns.direct_domains),
        ["geosite.dat:cn", "shop.example"]
    );
    assert!(!dns.ipv6);
    assert!(config.sniff.enabled && config.sniff.rewrite);
    // The kernel's rules come first, then those of the program; the last names stand in [dns].
    let names: Vec<String> = config
        .rules
        .iter()
        .map(|rule| {
            format!(
                "{:?} {:?} {}",
                shown(&rule.domain),
                shown(&rule.prefix_files),
                rule.outbound
            )
        })
        .collect();
    assert_eq!(
        names[3..],
        [
            r#"["geosite.dat:category-ads-all"] [] block"#,
            r#"[] [] second"#,
            r#"["video.example", "keyword:stream"] [] all-group-or-direct"#,
            r#"[] [] office"#,
            r#"[] ["geoip.dat:cn"] direct"#,
        ],
        "{names:#?}"
    );
    assert!(shown(&config.bypass.prefixes).contains(&"198.18.4.0/22".to_owned()));
    assert!(!told(&notes.left_out, &["198.51.100.7"]), "{notes}");
    for words in [
        ["hosts", "fixed"],
        ["bittorrent", ""],
        ["localhost", ""],
        ["fingerprint", ""],
        ["by-hand", ""],
    ] {
        let words = if words[0] == "bittorrent" {
            ["routing.rules[8]", "protocol"]
        } else {
            words
        };
        assert!(told(&notes.left_out, &words), "{words:?} in {notes}");
    }
    assert!(told(&notes.open, &["geosite.dat must be there"]), "{notes}");
    // Passwords stand in the outbounds alone.
    assert_eq!(toml.matches("hunter").count(), 1);
    assert!(!notes.to_string().contains("hunter") && !notes.to_string().contains("p@ss"));
}

#[test]
fn a_server_that_is_not_spoken_to_lets_nothing_pass() {
    let (config, Imported { notes, toml }) = imported(&["unknown-server.json", "stage3.rules"]);
    assert!(
        config
            .outbounds
            .iter()
            .all(|one| one.url == data::Outbound::Block),
        "{toml}"
    );
    assert_eq!(config.default_exit(), "proxy");
    assert!(told(&notes.left_out, &["vless", "not spoken"]), "{notes}");
    assert!(
        told(&notes.left_out, &["routing.rules behind number 2"]),
        "{notes}"
    );
    // The old program lives on, and its packets must not come back.
    assert!(shown(&config.exempt.marks).contains(&"0xff".to_owned()));
    assert!(!toml.contains("beef"));
    // No names are read there, and none are here.
    assert!(!config.sniff.enabled);
}

#[test]
fn links_and_lists_can_be_told() {
    let options = Options {
        lan: vec!["br-*".to_owned()],
        lists: Some("/usr/share/lists/".to_owned()),
    };
    let imported = import(&inputs(&["stage4.json", "stage1.rules"]), &options).unwrap();
    assert!(imported.toml.contains("interfaces = [\"br-*\"]"));
    assert!(
        imported.toml.contains("\"/usr/share/lists/geoip.dat:cn\""),
        "{}",
        imported.toml
    );
}

#[test]
fn what_is_not_read_is_refused_by_name() {
    for (text, words) in [
        (
            "table inet filter {\n}\n",
            ["ruleset of nft", "iptables-save"],
        ),
        ("iptables -t mangle -N X\n", ["script", "iptables-save"]),
        ("proxies:\n  - a\n", ["Clash", "iptables-save"]),
        (
            "{\"inbounds\":[{\"type\":\"tproxy\"}]}",
            ["sing-box", "iptables-save"],
        ),
        ("hello", ["nothing that is known", "config.json"]),
        ("", ["nothing that is known", "config.json"]),
        ("{\n\"outbounds\": [}\n", ["x:2", "no JSON"]),
        ("[1]", ["nothing that is known", "config.json"]),
        ("{}", ["outbounds", "Xray"]),
        ("*mangle\nhello\n", ["x:2", "no line"]),
        (
            "*mangle\n-A PREROUTING -j ACCEPT\nCOMMIT\n",
            ["TPROXY", "config.json"],
        ),
    ] {
        let error = refusal(text);
        assert!(
            words.iter().all(|word| error.contains(word)),
            "{text}: {error}"
        );
    }
    let twice = import(
        &inputs(&["stage1.rules", "redirect.rules"]),
        &Options::default(),
    )
    .unwrap_err();
    assert!(twice.to_string().contains("both rules of IPv4"), "{twice}");
    let twice = import(
        &inputs(&["stage4.json", "unknown-server.json"]),
        &Options::default(),
    )
    .unwrap_err();
    assert!(twice.to_string().contains("both configurations"), "{twice}");
}

#[test]
fn what_a_configuration_cannot_have_is_left_out() {
    let one = |name: &str, text: &str| {
        let input = Input {
            name: name.to_owned(),
            bytes: text.as_bytes().to_vec(),
        };
        import(&[input], &Options::default()).unwrap()
    };
    // All ports are all of it, and no user has such a number.
    let all = one(
        "x",
        "*mangle\n-A PREROUTING -p tcp --dport 0:65535 -j TPROXY --on-port 1\n-A PREROUTING -p udp -j TPROXY --on-port 1\n\
         -A OUTPUT -m owner --uid-owner 4294967295 -j RETURN\n-A OUTPUT -j MARK --set-mark 1\n",
    );
    assert!(!all.toml.contains("[[rule]]"), "{}", all.toml);
    assert!(told(&all.notes.left_out, &["4294967295"]), "{}", all.notes);
    // A page that cannot be asked for; a first outbound that is no way out, with a name that is needed.
    let text = r#"{"outbounds":[{"protocol":"dns","tag":"d"},{"tag":"proxy","protocol":"socks","settings":{"address":"192.0.2.1","port":1080}}],
        "routing":{"balancers":[{"tag":"b","selector":["pro"]}]},"observatory":{"probeURL":"http://192<30s"}}"#;
    let odd = one("x", text);
    assert!(told(&odd.notes.left_out, &["probeURL"]), "{}", odd.notes);
    assert!(
        odd.toml.contains("outbound = \"new-proxy\""),
        "{}",
        odd.toml
    );
}

#[test]
fn chains_that_call_each_other_too_often_are_given_up() {
    let mut rules = "*mangle\n-A PREROUTING -j C0\n".to_owned();
    for chain in 0..20 {
        for _ in 0..20 {
            rules.push_str(&format!("-A C{chain} -j C{}\n", chain + 1));
        }
    }
    rules.push_str("-A C20 -p tcp -j TPROXY --on-port 1\nCOMMIT\n");
    assert!(refusal(&rules).contains("nothing in x leads"));
    assert!(refusal("*mangle\n-A PREROUTING -j PREROUTING\n").contains("nothing in x leads"));
}
