//! Any configuration, as it is printed, is read as the same.

use proptest::prelude::*;

use super::*;
use crate::policy::port::PortRange;

fn any_duration() -> impl Strategy<Value = Duration> {
    (1..1_000_000_u64, 0..1_000_u64).prop_map(|(s, ms)| Duration::from_millis(1000 * s + ms))
}

fn any_prefixes() -> impl Strategy<Value = Vec<IpNet>> {
    prop::collection::vec(any::<std::net::IpAddr>(), 0..4).prop_map(|addresses| {
        let mut prefixes = addresses.into_iter().map(IpNet::from).collect();
        crate::policy::prefix::normalize(&mut prefixes);
        prefixes
    })
}

/// None of them ends as a file does.
fn any_domain() -> impl Strategy<Value = Domain> {
    let form = prop::sample::select(&["", ".", "full:", "keyword:", "regexp:"][..]);
    (form, "([a-z]{1,9}\\.){0,2}[a-z]{1,8}q")
        .prop_map(|(form, name)| format!("{form}{name}").parse().unwrap())
}

prop_compose! {
    fn any_rule()(
        name in "[^\\pC]{1,64}",
        domain in prop::collection::vec(any_domain(), 0..3),
        files in prop::collection::vec("/[^\0]{1,20}", 0..3),
        (prefix, source) in (any_prefixes(), any_prefixes()),
        port in prop::collection::vec(any::<(u16, u16)>(), 0..3),
        protocol in prop::option::of(prop::sample::select(&[Protocol::Tcp, Protocol::Udp][..])),
    ) -> Rule {
        let names = domain.into_iter().map(DomainSource::Domain);
        let lists = files.iter().map(|path| DomainSource::List(Source::new(path)));
        let range = |(one, other): (u16, u16)| PortRange::new(one.min(other), one.max(other)).unwrap();
        Rule {
            name,
            domain: names.chain(lists).collect(),
            prefix,
            prefix_files: files.iter().map(Source::new).collect(),
            source,
            port: port.into_iter().map(range).collect(),
            protocol,
            outbound: String::new(),
        }
    }
}

prop_compose! {
    fn any_exempt()(
        gids in prop::collection::vec("[0-9]{1,9}|[a-z_][a-z0-9-]{0,9}", 0..3),
        uids in prop::collection::vec("[0-9]{1,9}|[a-z_][a-z0-9-]{0,9}", 0..3),
        cgroups in prop::collection::vec("(/[a-z0-9@-]{1,9}){1,3}", 0..3),
        marks in prop::collection::vec((1..0x10_u32, 0..2_u32), 0..3),
    ) -> Exempt {
        Exempt {
            gids: gids.iter().map(|gid| gid.parse().unwrap()).collect(),
            uids: uids.iter().map(|uid| uid.parse().unwrap()).collect(),
            cgroups: cgroups.iter().map(|path| path.parse().unwrap()).collect(),
            marks: marks
                .iter()
                .map(|(value, all)| Mark::new(*value, 0xf | (u32::MAX * all)).unwrap())
                .collect(),
        }
    }
}

prop_compose! {
    fn any_dns()(
        (hijack, ipv6) in any::<(bool, bool)>(),
        direct in prop::collection::vec("(udp|tcp|tls)://([a-z]{1,9}\\.example|192\\.0\\.2\\.[1-9])(:5353)?", 1..3),
        proxy in prop::collection::vec("https://[a-z]{1,9}\\.example(:8443)?/[a-z]{1,9}(#[a-z]{1,9})?", 1..3),
        names in prop::collection::vec("[a-z]{1,20}\\.example", 0..3),
        lists in prop::collection::vec("/[a-z]{1,9}\\.dat(:[a-z]{1,9})?", 0..3),
        cache in 0..10_000_000_u32,
        stale in any_duration(),
        v4: bool,
    ) -> Dns {
        let read = |texts: Vec<String>| texts.iter().map(|text| text.parse().unwrap()).collect();
        let names = names.into_iter().map(Domain::Suffix).map(DomainSource::Domain);
        let lists = lists.into_iter().map(Source::new).map(DomainSource::List);
        Dns {
            hijack,
            direct: read(direct),
            proxy: read(proxy),
            direct_domains: names.chain(lists).collect(),
            cache,
            stale,
            ipv6,
            prefer: if v4 { Prefer::V4 } else { Prefer::Both },
        }
    }
}

prop_compose! {
    fn any_group()(
        kind in 0..4_u8,
        tolerance in prop::option::of(any_duration()),
        source: bool,
    ) -> Group {
        let mut group = Group {
            name: String::new(),
            kind: GroupKind::Select,
            members: Vec::new(),
            tolerance: None,
            by: None,
            default: None,
        };
        match kind {
            0 => {}
            1 => group.kind = GroupKind::Fallback,
            2 => (group.kind, group.tolerance) = (GroupKind::UrlTest, tolerance),
            _ => (group.kind, group.by) = (GroupKind::LoadBalance, source.then_some(Key::Source)),
        }
        group
    }
}

prop_compose! {
    fn any_check()(
        url in "https?://[a-z]{1,9}\\.example(:8443)?/[a-z]{0,9}(\\?[a-z]{1,9})?",
        dns: std::net::SocketAddrV4,
        interval in 1..86_400_u64,
        timeout in 100..60_000_u64,
    ) -> Check {
        let mut dns = std::net::SocketAddr::from(dns);
        dns.set_port(dns.port().max(1));
        let text = format!("check.url = \"{url}\"\ncheck.dns = \"{dns}\"");
        Check {
            interval: Duration::from_secs(interval),
            timeout: Duration::from_millis(timeout),
            ..parse(&text).unwrap().check
        }
    }
}

prop_compose! {
    fn any_config()(
        stage in 0..4_usize,
        drop: bool,
        links in prop::collection::vec("[a-z*?.-]{3,15}", 0..3),
        sources in any_prefixes(),
        wan in prop::collection::vec("default|[a-z*?.-]{3,15}", 0..3),
        names in prop::collection::btree_set("[A-Za-z0-9_.-]{1,64}", 1..4),
        mut rules in prop::collection::vec(any_rule(), 0..4),
        (mut groups, check) in (prop::collection::vec(any_group(), 0..4), any_check()),
        host in "[a-z]{1,20}",
        private: bool,
        prefixes in any_prefixes(),
        files in prop::collection::vec("/[^\0]{1,20}", 0..3),
        exempt in any_exempt(),
        dns in prop::option::of(any_dns()),
        (enabled, rewrite, timeout) in (any::<bool>(), any::<bool>(), 1..5_000_u64),
        (tcp_idle, connect_timeout, keepalive) in (any_duration(), any_duration(), 1..=32_400_u64),
        max_connections in prop::option::of(1..10_000_000_u32),
        (udp_idle, dns_idle) in (any_duration(), any_duration()),
        (drain, takeover_drain) in (any_duration(), any_duration()),
        max_associations in 1..10_000_000_u32,
        express in prop::sample::select(&[ExpressLane::Forward, ExpressLane::Redirect, ExpressLane::Off][..]),
        (forward, masquerade, account) in any::<(bool, bool, bool)>(),
        port: u16,
    ) -> Config {
        let url: data::Outbound = format!("socks5://{host}:{}", port.max(1)).parse().unwrap();
        for (rule, outbound) in rules.iter_mut().zip(names.iter().cycle()) {
            rule.outbound.clone_from(outbound);
        }
        for (number, group) in groups.iter_mut().enumerate() {
            group.name = format!("group-{number}");
            group.members = names.iter().cloned().collect();
            group.members.extend((0..number).map(|other| format!("group-{other}")));
            group.default = (group.kind == GroupKind::Select).then(|| group.members[0].clone());
        }
        let outbound = groups.last().map(|group| group.name.clone());
        Config {
            stage: Stage::ALL[stage],
            on_proxy_down: if drop { OnProxyDown::Drop } else { OnProxyDown::Pass },
            lan: Lan {
                interfaces: links.iter().map(|link| link.parse().unwrap()).collect(),
                sources,
            },
            wan: Wan {
                interfaces: wan.iter().map(|link| link.parse().unwrap()).collect(),
            },
            outbounds: names
                .into_iter()
                .map(|name| Outbound::new(name, url.clone()))
                .collect(),
            groups,
            check,
            rules,
            bypass: Bypass {
                private,
                prefixes,
                files: files.into_iter().map(Source::new).collect(),
            },
            dns,
            sniff: Sniff { enabled, timeout: Duration::from_millis(timeout), rewrite },
            exempt,
            tcp: Tcp {
                idle: tcp_idle,
                connect_timeout,
                keepalive: Duration::from_secs(keepalive),
                max_connections,
            },
            udp: Udp { idle: udp_idle, dns_idle, max_associations, express },
            gateway: Gateway {
                forward,
                masquerade,
                account,
                user: forward.then(|| if account { IdOrName::Id(7) } else { IdOrName::Name(host.clone()) }),
                seccomp: !masquerade,
            },
            proxy: Proxy { port, drain, takeover_drain, outbound },
            api: Api {
                token_file: Some(format!("/{host}").into()),
                origins: vec![format!("https://{host}.example:{}", port.max(1024))],
                hosts: vec![format!("{host}.lan")],
                group: masquerade.then(|| IdOrName::Name(host.clone())),
                ..Api::default()
            },
            log: Log {
                level: if private { "warn,a=debug" } else { "off" }.parse().unwrap(),
                access: forward,
                ..Log::default()
            },
        }
    }
}

const WITH_SECRET: &str = "stage = 2\n[[outbound]]\nname = \"a\"\n\
                           url = \"socks5://me:hunter2@h.example:1080\" # mine\nfoo = 1\n";

const WITH_TOKEN: &str = "[api]\ntoken = \"hunter2hunter2\" # mine\ncolour = 1\n";

#[test]
fn a_dash_behind_the_key_does_not_show_the_token() {
    for key in ["token-", "token_", "-token", "token--"] {
        let text = WITH_TOKEN.replace("token", key);
        let error = parse(&text).expect_err("there is no such key").to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
}

proptest! {
    #[test]
    fn what_is_printed_is_read_back(config in any_config()) {
        let text = config.to_string();
        match parse(&text) {
            Ok(read) => prop_assert_eq!(read, config),
            Err(error) => prop_assert!(false, "{}", error),
        }
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, text: String) {
        for bytes in [&bytes[..], text.as_bytes()] {
            if let Err(error) = Config::parse_bytes(bytes, Path::new("c.toml")) {
                prop_assert!(!error.findings().is_empty());
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn no_pieces_of_toml_make_it_panic(pieces in prop::collection::vec(prop::sample::select(&[
        "stage", "lan", "outbound", "url", "name", "interfaces", "bypass", "files", "tcp", "idle",
        " = ", "=", ".", "[", "]", "[[", "]]", "{", "}", ",", "\n", "\r\n", "\"", "'", "\"\"\"", "#",
        "\\", "1", "0x", "1.5", "true", "1979-05-27", "10s", "\"10s\"", "\"eth0\"", "socks5://a:b@c:1",
        "10.0.0.1/8", "\t", "\u{feff}", "代", "\u{0}",
    ][..]), 0..40)) {
        if let Err(error) = parse(&pieces.concat()) {
            prop_assert!(!error.to_string().is_empty());
            for finding in error.findings() {
                let position = finding.position.unwrap();
                prop_assert!(position.line > 0 && position.column > 0);
            }
        }
    }

    /// One slip anywhere but in the token itself.
    #[test]
    fn no_slip_shows_the_token(at in 0..WITH_TOKEN.len(), insert in prop::option::of("[ -~]")) {
        let token = WITH_TOKEN.find("hunter2").unwrap();
        prop_assume!(!(token..token + 14).contains(&at));
        let mut text = WITH_TOKEN.to_owned();
        match insert {
            Some(insert) => text.insert_str(at, &insert),
            None => { text.remove(at); }
        }
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().contains("hunter2"), "{}", error);
        }
    }

    /// One slip anywhere but in the user name and the password themselves.
    #[test]
    fn no_slip_shows_the_password(at in 0..WITH_SECRET.len(), insert in prop::option::of("[ -~\n]")) {
        let user_info = WITH_SECRET.find("me:").unwrap()..WITH_SECRET.find("@h").unwrap();
        prop_assume!(!user_info.contains(&at));
        let mut text = WITH_SECRET.to_owned();
        match insert {
            Some(insert) => text.insert_str(at, &insert),
            None => { text.remove(at); }
        }
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().contains("hunter2"), "{}", error);
        }
    }
}
