mod random;

use super::*;
use crate::data;
use crate::data::dns::Prefer;
use crate::observe::log::Format;
use crate::policy::domain::Domain;
use crate::policy::group::Key;
use crate::policy::rule::Protocol;

/// What is read fits the schema, too.
fn parse(text: &str) -> Result<Config, ConfigError> {
    let config = Config::parse(text, Path::new("conf/c.toml"))?;
    schema::tests::assert_fits(text);
    Ok(config)
}

fn refused(text: &str) -> String {
    match parse(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

/// Message and help of the only finding.
fn only_finding(text: &str) -> (String, String) {
    let error = parse(text).expect_err(text);
    let [finding] = error.findings() else {
        panic!("{text}: {error}")
    };
    (
        finding.message.clone(),
        finding.help.clone().unwrap_or_default(),
    )
}

const DEFAULTS: &str = r#"stage = 2
on_proxy_down = "pass"

[lan]
interfaces = []
sources = []

[wan]
interfaces = []

[[outbound]]
name = "direct"
url = "direct://"

[check]
url = "http://cp.cloudflare.com/generate_204"
dns = "1.1.1.1:53"
interval = "1m"
timeout = "5s"

[bypass]
private = true
prefixes = []
files = []

[sniff]
enabled = true
timeout = "30ms"
rewrite = false

[exempt]
gids = []
uids = []
cgroups = []
marks = []

[tcp]
idle = "2h"
connect_timeout = "10s"
keepalive = "1m"

[udp]
idle = "5m"
dns_idle = "10s"
max_associations = 4096
express = "forward"

[gateway]
forward = false
masquerade = false
account = false
seccomp = true

[proxy]
port = 0
drain = "10s"
takeover_drain = "1h"

[api]
listen = []

[log]
format = "auto"
level = "info"
access = false"#;

#[test]
fn every_key_has_its_default() {
    let config = parse("").unwrap();
    assert_eq!(config, Config::default());
    assert_eq!(config.to_string(), DEFAULTS);
    assert_eq!(config.dns, None);
    let dns = parse("dns.proxy = [\"192.0.2.1\"]").unwrap().dns.unwrap();
    let proxy = vec!["192.0.2.1".parse().unwrap()];
    assert_eq!(
        dns,
        Dns {
            proxy,
            ..Dns::default()
        }
    );
    assert!(dns.hijack && dns.ipv6 && dns.prefer == Prefer::Both);
    assert_eq!((dns.cache, dns.stale), (10_000, Duration::from_hours(24)));
    // The one key that TOML has no way to print.
    assert_eq!(config.tcp.max_connections, None);
    assert_eq!(config.default_exit(), "direct");
    assert_eq!(parse(DEFAULTS).unwrap(), config);
}

#[test]
fn the_gateways_own_traffic_is_a_matter_of_the_stage() {
    for (stage, wan) in [
        (1, vec![]),
        (2, vec![]),
        (3, vec![WanPattern::Default]),
        (4, vec![WanPattern::Default]),
    ] {
        let config = parse(&format!("stage = {stage}")).unwrap();
        assert_eq!(config.wan.interfaces, wan, "stage {stage}");
    }
    let none = parse("stage = 3\n[wan]\ninterfaces = []").unwrap();
    assert_eq!(none.wan, Wan::default());
}

fn group(name: &str, kind: GroupKind, members: &[&str]) -> Group {
    Group {
        name: name.to_owned(),
        kind,
        members: members.iter().map(ToString::to_string).collect(),
        tolerance: None,
        by: None,
        default: None,
    }
}

#[test]
fn what_no_rule_is_about_takes_the_first_group_or_outbound_unless_one_is_named() {
    let outbounds = "[[outbound]]\nname = \"a\"\nurl = \"direct://\"\n\
                     [[outbound]]\nname = \"b\"\nurl = \"direct://\"\n";
    let group = "[[group]]\nname = \"g\"\nkind = \"fallback\"\nmembers = [\"b\", \"a\"]\n";
    for (text, name) in [
        (String::new(), "direct"),
        (outbounds.to_owned(), "a"),
        (format!("{outbounds}{group}"), "g"),
        (format!("{outbounds}{group}[proxy]\noutbound = \"b\""), "b"),
        (format!("{outbounds}[proxy]\noutbound = \"block\""), "block"),
    ] {
        assert_eq!(parse(&text).unwrap().default_exit(), name, "{text}");
    }
}

#[test]
fn every_key_is_read() {
    let config = parse(
        r#"
        stage = 1
        on_proxy_down = "drop"
        [lan]
        interfaces = ["eth0", "br-*"]
        sources = ["10.9.0.0/16", "10.8.0.0/16", "10.9.0.0/16"]
        [wan]
        interfaces = ["default", "ppp*"]
        [[outbound]]
        name = "proxy"
        url = "socks5://me:secret@192.0.2.1:1080"
        [[outbound]]
        name = "other"
        url = "direct://"
        source = ["192.0.2.7", "2001:db8::7"]
        interface = "eth1"
        mark = "0x10000"
        [[outbound]]
        name = "far"
        url = "http://192.0.2.2:8080"
        via = "proxy"
        [[group]]
        name = "auto"
        kind = "url-test"
        members = ["spread", "proxy", "direct"]
        tolerance = "20ms"
        [[group]]
        name = "spread"
        kind = "load-balance"
        members = ["proxy", "far"]
        by = "source"
        [[group]]
        name = "mine"
        kind = "select"
        members = ["proxy", "auto", "block"]
        default = "auto"
        [check]
        url = "https://Check.example:8443/a?b"
        dns = "[2001:db8::53]:5353"
        interval = "5m"
        timeout = "2s"
        [[rule]]
        name = "all of it"
        domain = ["x.com", ".Y.com", "full:z.com", "keyword:v", "regexp:^a:[/]$", "domains.txt", "/srv/geosite:cn"]
        prefix = ["198.51.100.0/24", "192.0.2.1"]
        prefix_files = ["/srv/prefixes", "geoip.dat:cn"]
        source = ["10.8.0.0/16"]
        port = ["443", "1000-2000", 53]
        protocol = "udp"
        outbound = "other"
        [[rule]]
        outbound = "spread"
        [bypass]
        private = true
        prefixes = ["203.0.113.0/24", "2001:db8::1"]
        files = ["china_ip_list.txt", "/srv/list"]
        [dns]
        hijack = false
        direct = ["223.5.5.5", "tls://dns.example:8853#Other.example"]
        proxy = ["https://1.1.1.1"]
        direct_domains = ["Example.COM.", "geosite.dat:cn", "/srv/list", "bücher.example"]
        cache = 0
        stale = "0s"
        ipv6 = false
        prefer = "v4"
        [sniff]
        enabled = false
        timeout = "5ms"
        rewrite = true
        [exempt]
        gids = [990, "proxy"]
        uids = ["www-data", 0x10]
        cgroups = ["/system.slice//foo.service/"]
        marks = [0x10, "0x80000/0xff0000", "16"]
        [tcp]
        idle = "1h30m"
        connect_timeout = "500ms"
        keepalive = "30s"
        max_connections = 5_000
        [udp]
        idle = "60s"
        dns_idle = "5s"
        max_associations = 0x10
        express = "redirect"
        [gateway]
        forward = true
        masquerade = true
        user = "proxy"
        seccomp = false
        account = true
        [proxy]
        port = 12345
        drain = "0s"
        takeover_drain = "2h"
        outbound = "mine"
        [api]
        listen = ["127.0.0.1:9090", "[::1]:9090"]
        token = "a secret word"
        origins = ["https://Board.example", "http://192.0.2.9:8080/"]
        hosts = ["Gateway.lan"]
        group = 4
        dashboard = "board"
        [log]
        format = "json"
        level = "warn,tproxy_userspace::data=debug"
        access = true
        "#,
    )
    .unwrap();
    let prefix = |text: &str| text.parse::<IpNet>().unwrap();
    let expected = Config {
        stage: Stage::One,
        on_proxy_down: OnProxyDown::Drop,
        lan: Lan {
            interfaces: vec!["eth0".parse().unwrap(), "br-*".parse().unwrap()],
            sources: vec![prefix("10.8.0.0/16"), prefix("10.9.0.0/16")],
        },
        wan: Wan {
            interfaces: vec![
                WanPattern::Default,
                WanPattern::Link("ppp*".parse().unwrap()),
            ],
        },
        outbounds: vec![
            Outbound::new(
                "proxy",
                "socks5://me:secret@192.0.2.1:1080".parse().unwrap(),
            ),
            Outbound {
                source: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
                interface: Some("eth1".parse().unwrap()),
                mark: Some(0x1_0000),
                ..Outbound::new("other", data::Outbound::Direct)
            },
            Outbound {
                via: Some("proxy".to_owned()),
                ..Outbound::new("far", "http://192.0.2.2:8080".parse().unwrap())
            },
        ],
        groups: vec![
            Group {
                tolerance: Some(Duration::from_millis(20)),
                ..group("auto", GroupKind::UrlTest, &["spread", "proxy", "direct"])
            },
            Group {
                by: Some(Key::Source),
                ..group("spread", GroupKind::LoadBalance, &["proxy", "far"])
            },
            Group {
                default: Some("auto".to_owned()),
                ..group("mine", GroupKind::Select, &["proxy", "auto", "block"])
            },
        ],
        check: Check {
            url: data::CheckUrl {
                tls: true,
                host: url::Host::Domain("check.example".to_owned()),
                port: 8443,
                path: "/a?b".to_owned(),
            },
            dns: "[2001:db8::53]:5353".parse().unwrap(),
            interval: Duration::from_secs(300),
            timeout: Duration::from_secs(2),
        },
        rules: vec![
            Rule {
                name: "all of it".to_owned(),
                domain: vec![
                    DomainSource::Domain(Domain::Suffix("x.com".to_owned())),
                    DomainSource::Domain(Domain::Below("y.com".to_owned())),
                    DomainSource::Domain(Domain::Full("z.com".to_owned())),
                    DomainSource::Domain(Domain::Keyword("v".to_owned())),
                    DomainSource::Domain(Domain::Regex("^a:[/]$".to_owned())),
                    DomainSource::List(Source::new("conf/domains.txt")),
                    DomainSource::List(Source::new("/srv/geosite:cn")),
                ],
                prefix: vec![prefix("192.0.2.1/32"), prefix("198.51.100.0/24")],
                prefix_files: ["/srv/prefixes", "conf/geoip.dat:cn"]
                    .map(Source::new)
                    .to_vec(),
                source: vec![prefix("10.8.0.0/16")],
                port: vec![443.into(), "1000-2000".parse().unwrap(), 53.into()],
                protocol: Some(Protocol::Udp),
                outbound: "other".to_owned(),
            },
            Rule {
                name: "rule 2".to_owned(),
                domain: vec![],
                prefix: vec![],
                prefix_files: vec![],
                source: vec![],
                port: vec![],
                protocol: None,
                outbound: "spread".to_owned(),
            },
        ],
        bypass: Bypass {
            private: true,
            prefixes: vec![prefix("203.0.113.0/24"), prefix("2001:db8::1/128")],
            files: ["conf/china_ip_list.txt", "/srv/list"]
                .map(Source::new)
                .to_vec(),
        },
        exempt: Exempt {
            gids: vec![IdOrName::Id(990), IdOrName::Name("proxy".into())],
            uids: vec![IdOrName::Name("www-data".into()), IdOrName::Id(16)],
            cgroups: vec!["/system.slice/foo.service".parse().unwrap()],
            marks: ["0x10", "0x80000/0xff0000", "16"]
                .map(|mark| mark.parse().unwrap())
                .to_vec(),
        },
        dns: Some(Dns {
            hijack: false,
            direct: vec![
                "udp://223.5.5.5".parse().unwrap(),
                "tls://dns.example:8853#other.example".parse().unwrap(),
            ],
            proxy: vec!["https://1.1.1.1/dns-query".parse().unwrap()],
            direct_domains: vec![
                DomainSource::Domain(Domain::Suffix("example.com".to_owned())),
                DomainSource::List(Source::new("conf/geosite.dat:cn")),
                DomainSource::List(Source::new("/srv/list")),
                DomainSource::Domain(Domain::Suffix("xn--bcher-kva.example".to_owned())),
            ],
            cache: 0,
            stale: Duration::ZERO,
            ipv6: false,
            prefer: Prefer::V4,
        }),
        sniff: Sniff {
            enabled: false,
            timeout: Duration::from_millis(5),
            rewrite: true,
        },
        tcp: Tcp {
            idle: Duration::from_secs(5400),
            connect_timeout: Duration::from_millis(500),
            keepalive: Duration::from_secs(30),
            max_connections: Some(5000),
        },
        udp: Udp {
            idle: Duration::from_secs(60),
            dns_idle: Duration::from_secs(5),
            max_associations: 16,
            express: ExpressLane::Redirect,
        },
        gateway: Gateway {
            forward: true,
            masquerade: true,
            account: true,
            user: Some(IdOrName::Name("proxy".to_owned())),
            seccomp: false,
        },
        proxy: Proxy {
            port: 12345,
            drain: Duration::ZERO,
            takeover_drain: Duration::from_hours(2),
            outbound: Some("mine".to_owned()),
        },
        api: Api {
            listen: ["127.0.0.1:9090", "[::1]:9090"]
                .map(|address| address.parse().unwrap())
                .to_vec(),
            token: Some("a secret word".parse().unwrap()),
            token_file: None,
            group: Some(IdOrName::Id(4)),
            origins: ["https://board.example", "http://192.0.2.9:8080"]
                .map(str::to_owned)
                .to_vec(),
            hosts: vec!["gateway.lan".to_owned()],
            dashboard: Some("conf/board".into()),
        },
        log: Log {
            format: Format::Json,
            level: "warn,tproxy_userspace::data=debug".parse().unwrap(),
            access: true,
        },
    };
    assert_eq!(config, expected);
    assert!(!format!("{config} {config:?}").contains("secret"));
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(json["outbound"][0]["url"], "socks5://me:***@192.0.2.1:1080");
    assert_eq!(json["outbound"][1]["mark"], "0x10000");
    assert_eq!(json["outbound"][2]["via"], "proxy");
    assert_eq!(json["dns"]["direct_domains"][1], "conf/geosite.dat:cn");
    assert_eq!(json["tcp"]["idle"], "1h30m");
    assert_eq!(json["lan"]["sources"][0], "10.8.0.0/16");
}

#[test]
fn a_stage_is_a_preset_that_keys_override() {
    for (text, private) in [
        ("stage = 1", false),
        ("stage = 2", true),
        ("stage = 3", true),
        ("stage = 4", true),
        ("stage = 1\nbypass.private = true", true),
        ("stage = 4\nbypass.private = false", false),
    ] {
        assert_eq!(parse(text).unwrap().bypass.private, private, "{text}");
    }
}

#[test]
fn all_that_is_wrong_is_shown_with_its_line() {
    let text = "stage = 5\n\n[lan]\ninterface = [\"eth0\"]\nsources = [\"10.0.0.0/8\", \"10.0.0.1/8\"]\n\
                [[outbound]]\nname = \"proxy\"\nurl = \"socks5://me:secret@192.0.2.1\"\n\t[tcp]\n\tidle = 10\n";
    assert_eq!(
        refused(text),
        r#"the configuration conf/c.toml has 5 errors

5 is not a stage
 --> conf/c.toml:1:9
  |
1 | stage = 5
  |         ^
  = help: write a number from 1 to 4

unknown key `interface` in [lan]
 --> conf/c.toml:4:1
  |
4 | interface = ["eth0"]
  | ^^^^^^^^^
  = help: did you mean `interfaces`?

10.0.0.1/8 has bits set after the first 8
 --> conf/c.toml:5:26
  |
5 | sources = ["10.0.0.0/8", "10.0.0.1/8"]
  |                          ^^^^^^^^^^^^
  = help: write 10.0.0.0/8 for the whole prefix, or 10.0.0.1 for the one address

the port is missing
 --> conf/c.toml:8:7
  |
8 | url = "socks5://me:***@192.0.2.1"
  |       ^^^^^^^^^^^^^^^^^^^^^^^^^^^
  = help: write it behind the host: the usual one is socks5://HOST:1080

expected a duration like "10s", found an integer
  --> conf/c.toml:10:9
   |
10 |     idle = 10
   |            ^^
   = help: write "10s""#
    );
}

#[test]
fn a_text_that_is_no_toml_is_shown_where_it_breaks() {
    assert_eq!(
        refused("[lan]\ninterfaces = [\"eth0\"\n[tcp]\nidle = \"1s\"\n"),
        r#"the configuration conf/c.toml has an error

missing comma between array elements, expected `,`
 --> conf/c.toml:3:1
  |
3 | [tcp]
  | ^"#
    );
    assert_eq!(
        refused("stage = 1\nstage = 2"),
        "the configuration conf/c.toml has an error\n\nduplicate key\n --> conf/c.toml:2:1\n  |\n2 | stage = 2\n  | ^^^^^"
    );
}

#[test]
fn unknown_keys_lead_to_known_ones() {
    for (text, message, help) in [
        ("[bypas]", "unknown key `bypas`", "did you mean `bypass`?"),
        ("[LAN]", "unknown key `LAN`", "did you mean `lan`?"),
        ("[tpc]", "unknown key `tpc`", "did you mean `tcp`?"),
        (
            "[udp]\ndns-idle = \"1s\"",
            "unknown key `dns-idle` in [udp]",
            "did you mean `dns_idle`?",
        ),
        (
            "[tcp]\nmax_connection = 1",
            "unknown key `max_connection` in [tcp]",
            "did you mean `max_connections`?",
        ),
        (
            "[[outbound]]\nname = \"a\"\nuri = \"direct://\"\nurl = \"direct://\"",
            "unknown key `uri` in [[outbound]]",
            "did you mean `url`?",
        ),
        (
            "interfaces = [\"eth0\"]",
            "unknown key `interfaces`",
            "`interfaces` is a key of [lan]",
        ),
        (
            "url = \"direct://\"",
            "unknown key `url`",
            "`url` is a key of [[outbound]]",
        ),
        (
            "[tcp]\ncolour = 1",
            "unknown key `colour` in [tcp]",
            "known here: idle, connect_timeout, keepalive, max_connections",
        ),
        (
            "[gateway]\nmasquerading = true",
            "unknown key `masquerading` in [gateway]",
            "did you mean `masquerade`?",
        ),
        (
            "colour = 1",
            "unknown key `colour`",
            "known here: stage, on_proxy_down, lan, wan, outbound, group, check, rule, bypass, dns, sniff, exempt, tcp, udp, gateway, proxy, api, log",
        ),
    ] {
        assert_eq!(only_finding(text), (message.to_owned(), help.to_owned()));
    }
}

#[test]
fn wrong_types_and_values_are_told_with_what_is_right() {
    for (text, message, help) in [
        (
            "lan = 5",
            "expected a table, found an integer",
            "write [lan] in a line of its own, and its keys in the lines below",
        ),
        (
            "[[lan]]",
            "expected a table, found an array",
            "write [lan] in a line of its own, and its keys in the lines below",
        ),
        (
            "[outbound]\nname = \"a\"\nurl = \"direct://\"",
            "expected one of several tables [[outbound]], found a table",
            "write [[outbound]] in a line of its own, and its keys in the lines below",
        ),
        (
            "outbound = [\"direct://\"]",
            "expected one of several tables [[outbound]], found a string",
            "write [[outbound]] in a line of its own, and its keys in the lines below",
        ),
        (
            "lan.interfaces = \"eth0\"",
            "expected an array of names of links, found a string",
            "put it in brackets: [\"…\"]",
        ),
        (
            "proxy.port = \"80\"",
            "expected a port, found a string",
            "write 80 without quotes",
        ),
        (
            "proxy.port = 65536",
            "65536 is not a port",
            "write a number from 0 to 65535",
        ),
        (
            "tcp.max_connections = 99999999999999999999999999999999999999999",
            "99999999999999999999999999999999999999999 is not a number of connections",
            "write a number from 1 to 10000000",
        ),
        (
            "gateway.forward = \"true\"",
            "expected true or false, found a string",
            "write true without quotes",
        ),
        (
            "on_proxy_down = \"dropp\"",
            "expected \"pass\" or \"drop\", found \"dropp\"",
            "did you mean \"drop\"?",
        ),
        (
            "on_proxy_down = true",
            "expected \"pass\" or \"drop\", found true or false",
            "write \"pass\" or \"drop\"",
        ),
        (
            "tcp.idle = \"0s\"",
            "`0s` is too short",
            "write at least 1s",
        ),
        (
            "tcp.keepalive = \"1d\"",
            "`1d` is too long",
            "write at most 9h",
        ),
        (
            "udp.idle = \"10\"",
            "`10` has no unit",
            "write a number and a unit, like 10s, 5m, 2h, 1d or 1h30m",
        ),
        (
            "bypass.files = [\"-\"]",
            "a configuration cannot read a list from standard input",
            "name a file",
        ),
        (
            "dns.direct = [\"192.0.2.1\"]",
            "`proxy` is missing in [dns]",
            "",
        ),
        (
            "dns.proxy = []",
            "no DNS server is named for the names that do not go direct",
            "name one, like \"tls://1.1.1.1\"; to leave DNS alone write hijack = false",
        ),
        (
            "[dns]\nproxy = [\"192.0.2.1\"]\ndirect_domains = [\"cn\"]",
            "no DNS server answers these names",
            "name one in `direct`, like direct = [\"223.5.5.5\"]",
        ),
        (
            "[dns]\nproxy = [\"192.0.2.1\"]\nprefer = \"v6\"\nipv6 = false",
            "prefer = \"v6\" needs IPv6 addresses, and ipv6 = false gives out none",
            "remove one of the two",
        ),
        (
            "[dns]\nproxy = [\"192.0.2.1\"]\ndirect = [\"192.0.2.2\"]\ndirect_domains = [\"a b\"]",
            "`a b` is not a domain name: ' ' cannot stand in a name",
            "write x.com, .x.com (only what is below it), full:x.com, keyword:x or regexp:x",
        ),
        (
            "exempt.gids = [4294967295]",
            "4294967295 is too large for a uid or gid",
            "the largest is 4294967294",
        ),
        (
            "exempt.uids = [-1]",
            "`-1` is neither a number nor a name",
            "write a number, or a name as it stands in /etc/passwd or /etc/group",
        ),
        (
            "exempt.gids = [true]",
            "expected a number or a name, found true or false",
            "write \"proxy\"",
        ),
        (
            "exempt.cgroups = [\"foo.service\"]",
            "`foo.service` does not begin with a slash",
            "write a path like /system.slice/foo.service",
        ),
        (
            "exempt.marks = [\"0x100/0xff\"]",
            "0x100 has bits that the mask 0xff has not, so nothing matches",
            "write a mask that has them, or a value without them",
        ),
        (
            "outbound = [{ url = \"direct://\" }]",
            "`name` is missing in [[outbound]]",
            "",
        ),
        (
            "outbound = [{ name = \"a b\", url = \"direct://\" }]",
            "`a b` is not a name for an outbound",
            "write 1 to 64 of: A-Z a-z 0-9 - _ .",
        ),
        (
            "outbound = [{ name = \"a\", url = \"direct://\" }, { name = \"a\", url = \"direct://\" }]",
            "a second outbound has the name `a`",
            "give each a name of its own",
        ),
        (
            "outbound = [{ name = \"a\", url = \"socks5://h:1\", via = \"a\" }]",
            "`a` would be reached through itself: a → a",
            "let one of them be reached without `via`",
        ),
        (
            "outbound = [{ name = \"a\", url = \"socks5://h:1\", via = \"b\" }, { name = \"b\", url = \"http://h:1\", via = \"c\" }, { name = \"c\", url = \"http://h:2\", via = \"b\" }]",
            "`b` would be reached through itself: b → c → b",
            "let one of them be reached without `via`",
        ),
        (
            "group = [{ name = \"g\", kind = \"fastest\", members = [\"direct\"] }]",
            "expected \"select\" or \"fallback\" or \"url-test\" or \"load-balance\", found \"fastest\"",
            "write \"select\" or \"fallback\" or \"url-test\" or \"load-balance\"",
        ),
        (
            "group = [{ name = \"direct\", kind = \"select\", members = [\"block\"] }]",
            "there is an outbound or group of the name `direct` already",
            "give each a name of its own",
        ),
        (
            "group = [{ name = \"g\", kind = \"select\", members = [] }]",
            "an empty list matches nothing",
            "leave the key out if anything may match",
        ),
        (
            "group = [{ name = \"g\", kind = \"select\", members = [\"direkt\"] }]",
            "there is no outbound `direkt`",
            "did you mean `direct`?",
        ),
        (
            "group = [{ name = \"g\", kind = \"select\", members = [\"direct\", \"direct\"] }]",
            "`direct` is a member twice",
            "name each once",
        ),
        (
            "group = [{ name = \"g\", kind = \"select\", members = [\"direct\"], tolerance = \"1s\" }]",
            "`tolerance` is of use only in a group of the kind \"url-test\"",
            "leave it out",
        ),
        (
            "group = [{ name = \"g\", kind = \"select\", members = [\"direct\"], default = \"block\" }]",
            "`block` is not a member of the group",
            "name one of them",
        ),
        (
            "group = [{ name = \"g\", kind = \"select\", members = [\"h\"] }, { name = \"h\", kind = \"select\", members = [\"direct\", \"g\"] }]",
            "the group `g` would be a member of itself",
            "leave the group out that leads back to it",
        ),
        (
            "check.url = \"ftp://h/\"",
            "`ftp://h/` does not begin with http:// or https://",
            "write one like http://192.0.2.1/ or https://www.example.com/generate_204",
        ),
        (
            "check.dns = \"dns.example\"",
            "`dns.example` is not the address of a DNS server",
            "write one like 192.0.2.1, 192.0.2.1:53 or [2001:db8::1]:53",
        ),
        (
            "proxy.outbound = \"auto\"",
            "there is no outbound `auto`",
            "there are: direct, block",
        ),
        (
            "outbound = [{ name = \"a\", url = \"socks5://h:1\", via = \"bloc\" }]",
            "there is no outbound `bloc`",
            "did you mean `block`?",
        ),
        (
            "outbound = [{ name = \"a\", url = \"socks5://h:1\", via = \"block\" }]",
            "nothing is reached through `block`, which lets nothing pass",
            "name another outbound",
        ),
        (
            "outbound = [{ name = \"a\", url = \"direct://\", via = \"direct\" }]",
            "`via` is of no use with direct://, which has no server",
            "leave it out",
        ),
        (
            "outbound = [{ name = \"a\", url = \"socks5://h:1\", via = \"direct\", mark = 256 }]",
            "`mark` is of no use with `via`: the other outbound connects",
            "write it there",
        ),
        (
            "outbound = [{ name = \"a\", url = \"block://\", interface = \"eth0\" }]",
            "`interface` is of no use with block://, which connects to nobody",
            "leave it out",
        ),
        (
            "outbound = [{ name = \"a\", url = \"direct://\", source = [\"192.0.2.1\", \"192.0.2.2\"] }]",
            "`source` has two addresses of one family",
            "name one for IPv4 and one for IPv6 at most",
        ),
        (
            "outbound = [{ name = \"a\", url = \"direct://\", source = [\"192.0.2.0/24\"] }]",
            "`192.0.2.0/24` is not an address",
            "write an address of this machine, like 192.0.2.1",
        ),
        (
            "outbound = [{ name = \"a\", url = \"direct://\", source = [\"::\"] }]",
            "`::` is nothing to connect from",
            "write an address of this machine, like 192.0.2.1",
        ),
        (
            "outbound = [{ name = \"a\", url = \"direct://\", interface = \"eth*\" }]",
            "`eth*` stands for more than one link",
            "name one, like eth1",
        ),
        (
            "outbound = [{ name = \"a\", url = \"direct://\", mark = 0xa0 }]",
            "0xa0 has bits of 0xf0, which tproxy-bpf itself needs",
            "write bits outside of 0xf0, like 0x100",
        ),
        (
            "outbound = [{ name = \"a\", url = \"direct://\", mark = 0 }]",
            "the mark 0 has no bits",
            "leave it out",
        ),
        ("rule = [{}]", "`outbound` is missing in [[rule]]", ""),
        (
            "rule = [{ outbound = \"drect\" }]",
            "there is no outbound `drect`",
            "did you mean `direct`?",
        ),
        (
            "rule = [{ outbound = \"elsewhere\" }]",
            "there is no outbound `elsewhere`",
            "there are: direct, block",
        ),
        (
            "rule = [{ domains = [\"x.com\"], outbound = \"direct\" }]",
            "unknown key `domains` in [[rule]]",
            "did you mean `domain`?",
        ),
        (
            "rule = [{ domain = [], outbound = \"direct\" }]",
            "an empty list matches nothing",
            "leave the key out if anything may match",
        ),
        (
            "rule = [{ domain = [\"*.x.com\"], outbound = \"direct\" }]",
            "`*.x.com` is not a domain name: '*' cannot stand in a name",
            "write .x.com for all below it",
        ),
        (
            "rule = [{ port = [\"https\"], outbound = \"direct\" }]",
            "`https` is not a port (0 to 65535)",
            "write a port like 443, or a range like 1000-2000",
        ),
        (
            "rule = [{ port = [65536], outbound = \"direct\" }]",
            "65536 is not a port",
            "write a number from 0 to 65535",
        ),
        (
            "rule = [{ protocol = \"icmp\", outbound = \"direct\" }]",
            "expected \"tcp\" or \"udp\", found \"icmp\"",
            "write \"tcp\" or \"udp\"",
        ),
        (
            "rule = [{ name = \"\", outbound = \"direct\" }]",
            "`` is not a name for a rule",
            "write 1 to 64 characters in one line",
        ),
    ] {
        assert_eq!(
            only_finding(text),
            (message.to_owned(), help.to_owned()),
            "{text}"
        );
    }
}

#[test]
fn findings_are_json() {
    let error = parse("[lan]\ninterface = []").unwrap_err();
    assert_eq!(
        serde_json::to_value(error.findings()).unwrap(),
        serde_json::json!([{
            "file": "conf/c.toml",
            "line": 2,
            "column": 1,
            "message": "unknown key `interface` in [lan]",
            "help": "did you mean `interfaces`?",
        }])
    );
    let error = Config::load(Path::new("/nowhere/c.toml")).unwrap_err();
    assert!(matches!(error, ConfigError::Read(_)));
    assert_eq!(
        serde_json::to_value(error.findings()).unwrap(),
        serde_json::json!([{
            "file": "/nowhere/c.toml",
            "message": "No such file or directory (os error 2)",
            "help": "name another file with -c",
        }])
    );
}

#[test]
fn hundreds_of_errors_are_counted() {
    let text: String = (0..500).map(|key| format!("key{key} = 1\n")).collect();
    let error = parse(&text).unwrap_err();
    assert_eq!(error.findings().len(), 200);
    let shown = error.to_string();
    assert!(
        shown.starts_with("the configuration conf/c.toml has 500 errors\n"),
        "{shown}"
    );
    assert!(shown.ends_with("\n\nand 480 more"), "{shown}");
}

#[test]
fn files_are_read_from_the_folder_of_the_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("c.toml");
    std::fs::write(&path, "\u{feff}bypass.files = [\"list.txt\"]\r\n").unwrap();
    let config = Config::load(&path).unwrap();
    assert_eq!(
        config.bypass.files,
        [Source::new(folder.path().join("list.txt"))]
    );

    std::fs::write(&path, b"stage = 1\n# \xfc\n").unwrap();
    let error = Config::load(&path).unwrap_err();
    assert_eq!(
        error.findings()[0].message,
        "the byte 0xfc is not UTF-8 text"
    );
    let position = Position { line: 2, column: 3 };
    assert_eq!(error.findings()[0].position, Some(position));

    std::fs::write(&path, vec![b'#'; LARGEST_FILE as usize + 1]).unwrap();
    assert!(
        Config::load(&path)
            .unwrap_err()
            .to_string()
            .contains("larger than 4 MiB")
    );
}

#[test]
fn deep_nesting_is_refused() {
    for text in [
        "[".repeat(100_000),
        format!("a = {}", "[".repeat(100_000)),
        "a.".repeat(100_000),
    ] {
        assert!(parse(&text).is_err());
    }
}
