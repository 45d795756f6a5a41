//! Formats of text.

use super::*;

#[test]
fn a_plain_list_of_domains() {
    let list = "# head\nExample.COM\r\n.example.net // below\nfull:www.example.org\nkeyword:Ads\nregexp:^a//[#;]b$ # odd\n\
                domain:x.example @cn\nbücher.example.\n192.0.2.1\n";
    assert_eq!(
        texts(list, None),
        (
            "192.0.2.1/32".into(),
            "example.com .example.net full:www.example.org keyword:ads regexp:^a//[#;]b$ x.example \
             xn--bcher-kva.example"
                .into()
        )
    );
    assert_eq!(
        refused("example.com\nexample..com\n", None),
        ":2: `example..com`: it has an empty part; write a domain name like example.com"
    );
    // A slip in an address is no name.
    for slip in [
        "10.0.0.O/8",
        "10.0.0.",
        "10.0.0.0.0",
        "10,0.0.1",
        "1O.0.0.1",
        "10.0.0.x",
    ] {
        let message = refused(format!("10.0.0.0/8\n{slip}\n"), None);
        assert!(
            message.contains("neither an IPv4 nor an IPv6 address"),
            "{slip}: {message}"
        );
    }
}

#[test]
fn text_of_mihomo() {
    assert_eq!(
        texts(
            "+.example.com\nwww.example.org\n.example.net\n*.x.example\n",
            None
        )
        .1,
        "example.com full:www.example.org .example.net regexp:^[^.]+\\.x\\.example$"
    );
}

#[test]
fn rules_of_clash_and_surge() {
    let rules = "# names\nDOMAIN-SUFFIX,example.com\nDOMAIN,WWW.example.org,PROXY\nDOMAIN-KEYWORD,ads\n\
                 host-suffix, .x.example, proxy\nIP-CIDR,192.0.2.9/24,no-resolve\nIP-CIDR6,2001:db8::/32 // six\n\
                 PROCESS-NAME,curl\nDST-PORT,80\nDOMAIN-REGEX,^a{1,2}\\.b$\nDOMAIN-WILDCARD,a?.*.example\n";
    assert_eq!(
        texts(rules, None),
        (
            "192.0.2.0/24 2001:db8::/32".into(),
            "example.com full:www.example.org keyword:ads x.example regexp:^a{1,2}\\.b$ \
             regexp:^a.\\..*\\.example$"
                .into()
        )
    );
    assert_eq!(
        passed_over(rules),
        [("rules about something else than names and destinations", 2)]
    );
    assert_eq!(
        refused("DOMAIN,a.example\nDOMAIN-SUFIX,x.example\n", None),
        ":2: `DOMAIN-SUFIX,x.example`: there is no such kind of rule; a line is like `DOMAIN-SUFFIX,example.com`"
    );
}

#[test]
fn yaml_of_clash() {
    let payload = "# head\npayload:\n  - '+.example.com'\n  - \"www.example.org\" # one\n  - .example.net\n- 192.0.2.0/24\n  - DOMAIN-SUFFIX,x.example\n";
    assert_eq!(
        texts(payload, None),
        (
            "192.0.2.0/24".into(),
            "example.com full:www.example.org .example.net x.example".into()
        )
    );
    assert_eq!(
        refused("payload: [a, b]\n", None),
        ":1: `payload: [a, b]`: a list in one line is not read; write one `- value` a line"
    );
}

#[test]
fn configuration_of_dnsmasq() {
    let lines = "# China\nserver=/example.com/114.114.114.114#53 # way\nserver=/a.example/B.example/192.0.2.1\n\
                 ipset=/x.example/set4,set6\nnftset=/y.example/4#inet#t#s\nlocal=/z.example/\nserver=192.0.2.1\n\
                 bogus-nxdomain=192.0.2.2\naddress=/#/0.0.0.0\nno-resolv\n";
    assert_eq!(
        texts(lines, None).1,
        "example.com a.example b.example x.example y.example z.example"
    );
    assert_eq!(
        passed_over(lines),
        [("options of dnsmasq without a domain", 4)]
    );
    assert_eq!(
        refused("server=/example.com", None),
        ":1: `server=/example.com`: a slash ends the names; write `server=/example.com/192.0.2.1`"
    );
}

#[test]
fn hosts_files() {
    let lines = "127.0.0.1 localhost\n::1 ip6-localhost ip6-loopback\n0.0.0.0 Ads.example track.example # both\nfe80::1%lo0 localhost\n0.0.0.0 0.0.0.0\n";
    assert_eq!(texts(lines, None).1, "full:ads.example full:track.example");
    assert_eq!(passed_over(lines), [("names of the machine itself", 5)]);
}

#[test]
fn filter_lists() {
    let lines = "[Adblock Plus 2.0]\n! Title: x\n||example.com^\n||*.example.net^\n||ads*.example.org^$important\n\
                 @@||good.example^\n||x.example^$app=y\nplain.example\n/^ad[0-9]+\\./\n0.0.0.0 host.example\n\
                 site.example##.banner\n||cdn.example/ads/*\n||192.0.2.1^\n# note\n||z.example^$third-party\n";
    assert_eq!(
        texts(lines, None),
        (
            "192.0.2.1/32".into(),
            "example.com .example.net regexp:^ads[^.]+\\.example\\.org$ full:plain.example regexp:^ad[0-9]+\\. \
             full:host.example z.example"
                .into()
        )
    );
    assert_eq!(
        passed_over(lines),
        [
            ("exceptions (@@)", 1),
            ("rules with conditions ($)", 1),
            ("rules about parts of pages", 1),
            ("rules about addresses of pages", 1),
        ]
    );
}

#[test]
fn dumps_of_ipset() {
    let dump = "create cn hash:net family inet hashsize 1024 maxelem 65536\nadd cn 1.0.1.0/24\n\
                add cn 1.0.2.1 timeout 30\nadd -exist cn 1.0.8.0-1.0.8.5\n";
    assert_eq!(
        texts(dump, None).0,
        "1.0.1.0/24 1.0.2.1/32 1.0.8.0/30 1.0.8.4/31"
    );
    assert_eq!(
        refused("create cn hash:net\nadd cn 1.0.1.0/24 nomatch\n", None),
        ":2: `add cn 1.0.1.0/24 nomatch`: an exception (nomatch) cannot be said in a list; remove it"
    );
    assert!(refused("create x hash:ip,port\nadd x 192.0.2.1,tcp:80\n", None).starts_with(":2: "));
}

#[test]
fn sets_of_nft() {
    let dump = "table inet filter {\n\tset cn {\n\t\ttype ipv4_addr\n\t\tflags interval\n\t\telements = { 1.0.1.0/24 timeout 1h expires 2s,\n\
                \t\t\t     1.0.2.0-1.0.3.255, # two\n\t\t\t     2001:db8::1 comment \"a, } b\" }\n\t}\n\tchain c { ip daddr @cn accept; }\n}\n\
                add element inet filter cn { 1.0.8.0/21 }\ndefine CN = {\n  1.0.32.0/19,\n}\n";
    assert_eq!(
        texts(dump, None).0,
        "1.0.1.0/24 1.0.2.0/23 2001:db8::1/128 1.0.8.0/21 1.0.32.0/19"
    );
    let table = dump.rfind("\nadd element").unwrap();
    for end in dump.find('{').unwrap() + 1..table {
        // Before the brace that closes the table, and none of its own.
        let troubles = read_as(Format::Nft, &dump.as_bytes()[..end], None).unwrap_err();
        assert!(
            matches!(troubles.list.last().unwrap().fault, Fault::Cut(_)),
            "{end}: {troubles:?}"
        );
    }
    assert_eq!(
        refused(
            "table t {\nset s {\nelements = { 192.0.2.1 . 80 }\n}\n}",
            None
        ),
        ":3: `192.0.2.1 . 80`: only sets of addresses are lists of prefixes; name a file without other sets"
    );
}

#[test]
fn json_of_nft() {
    let value = serde_json::json!({"nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {"set": {"family": "inet", "name": "cn", "type": "ipv4_addr", "elem": [
            "192.0.2.1",
            {"prefix": {"addr": "1.0.1.0", "len": 24}},
            {"range": ["1.0.2.0", "1.0.3.255"]},
            {"elem": {"val": {"prefix": {"addr": "2001:db8::", "len": 32}}, "timeout": 30}},
        ]}},
        {"add": {"element": {"name": "cn", "elem": ["192.0.2.9"]}}},
        {"rule": {"expr": [{"match": {"right": {"set": ["a", "b"]}}}]}},
    ]});
    for text in [
        value.to_string(),
        serde_json::to_string_pretty(&value).unwrap(),
    ] {
        assert_eq!(
            texts(&text, None).0,
            "192.0.2.1/32 1.0.1.0/24 1.0.2.0/23 2001:db8::/32 192.0.2.9/32"
        );
        for end in text.find("\"nftables\"").unwrap() + 10..text.trim_end().len() {
            assert!(entries(&text[..end], None).is_err(), "{end}");
        }
    }
}

#[test]
fn the_table_of_a_registry() {
    let table = "# comment\n2|apnic|20261101|5|19830613|20261031|+1000\napnic|*|ipv4|*|3|summary\n\
                 apnic|CN|ipv4|1.0.1.0|256|20110414|allocated\napnic|CN|ipv4|1.0.2.0|768|20110414|assigned|x|y\n\
                 apnic|CN|ipv6|2001:250::|35|20000426|allocated\napnic|CN|asn|4134|1|20000426|allocated\n\
                 apnic|JP|ipv4|1.0.16.0|4096|20110412|allocated\napnic||ipv4|1.1.1.0|256||available\n";
    assert_eq!(
        texts(table, Some("cn")).0,
        "1.0.1.0/24 1.0.2.0/23 1.0.4.0/24 2001:250::/35"
    );
    assert_eq!(
        refused(table, None),
        ": a registry's table of delegations holds many lists, so name one, as in \
         `delegated-apnic-latest:CN`; it has CN, JP"
    );
    assert_eq!(
        refused(table, Some("KR")),
        ": it holds no list `KR`; it has CN, JP"
    );
    assert_eq!(
        refused(
            table.lines().take(6).collect::<Vec<_>>().join("\n"),
            Some("CN")
        ),
        ": its first line promises 5 rows, and there are 4; it is cut off, so fetch it again"
    );
    let wrong = table.replace("|768|", "|4294967295|");
    assert!(refused(wrong, Some("CN")).starts_with(":5: "));
}

#[test]
fn rule_sets_of_sing_box_in_json() {
    let value = serde_json::json!({"version": 3, "rules": [
        {"domain": "www.example.org", "domain_suffix": ["example.com", ".example.net"], "ip_cidr": ["192.0.2.9/24", "2001:db8::1"]},
        {"domain_keyword": ["ads"], "domain_regex": "^x"},
        {"domain": ["y.example"], "port": 443},
        {"domain": ["n.example"], "invert": true},
        {"type": "logical", "mode": "or", "rules": [{"domain": "o.example"}, {"domain": "p.example"}]},
        {"type": "logical", "mode": "and", "rules": [{"domain": "q.example"}, {"port": 80}]},
    ]});
    let text = serde_json::to_string_pretty(&value).unwrap();
    assert_eq!(
        texts(&text, None),
        (
            "192.0.2.0/24 2001:db8::1/128".into(),
            "full:www.example.org example.com .example.net keyword:ads regexp:^x full:o.example full:p.example".into()
        )
    );
    assert_eq!(
        passed_over(&text),
        [
            ("rules with conditions beside names and destinations", 1),
            ("inverted rules", 1),
            ("rules joined by `and`, or inverted", 1),
        ]
    );
    for end in 1..text.len() {
        let troubles = entries(&text[..end], None).unwrap_err();
        assert_eq!(troubles.list[0].fault, Fault::Cut("the JSON"), "{end}");
    }
    assert_eq!(
        refused(
            "{\"version\": 1,\n\"rules\": [{\"domain\": \"a b\"}]}",
            None
        ),
        ":2: `a b`: ' ' cannot stand in a name; write a domain name like example.com; mend it, or fetch the file again"
    );
    assert!(refused("{\"version\": 9, \"rules\": []}", None).contains("its version is 9"));
}

#[test]
fn the_format_is_found_without_a_name() {
    for (text, format) in [
        ("", Format::Plain),
        ("\n\n# x\n10.0.0.0/8", Format::Plain),
        ("\n1\n2\n", Format::Plain),
        ("0.0.0.0 x.example", Format::Hosts),
        ("0.0.0.0/0 x.example", Format::Plain),
        ("add x 10.0.0.0/8", Format::Ipset),
        ("add table inet x", Format::Nft),
        ("- x.example", Format::Clash),
        ("{}", Format::SingBox),
        (" {\"nftables\": []}", Format::NftJson),
    ] {
        assert_eq!(
            detect::detect(Path::new("list"), text.as_bytes()),
            Ok(format),
            "{text:?}"
        );
    }
    assert_eq!(
        refused(b"\x1f\x8b\x08", None),
        ": it is a gzip archive; unpack it first"
    );
    assert_eq!(
        refused("10.0.0.0/8\n", Some("cn")),
        ": a plain list is one list without codes; leave out `:cn`"
    );
}
