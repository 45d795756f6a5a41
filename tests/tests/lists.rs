//! Lists as other programs write and read them: what they take from a list and what we take from it is the same.

use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use lab::{
    Lab, Namespace, SingBox,
    probe::Acceptor,
    servers::V2ray,
    traffic::connect,
    wait::{SOON, until},
};
use serde_json::{Value, json};
use tproxy_userspace::policy::{
    aggregate::aggregate,
    domain::{Domain, DomainSet},
    formats::{self, Entries},
    prefix_set::PrefixSet,
    source::Selector,
};

/// Writers of the formats that no program here writes.
#[path = "../../tproxy-userspace/src/policy/formats/tests/write.rs"]
#[expect(dead_code, reason = "the unit tests use the rest")]
mod write;

/// Numbers that look like chance and are the same each time (SplitMix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Names of few labels, so that many are below others.
    fn name(&mut self) -> String {
        const LABELS: [&str; 8] = ["a", "b", "www", "ads", "xn--fiqs8s", "x-1", "cdn0", "_dns"];
        let mut name = String::new();
        for _ in 0..self.below(4) {
            name += LABELS[self.below(8) as usize];
            name.push('.');
        }
        name + ["example", "com", "test", "net"][self.below(4) as usize]
    }

    fn address(&mut self) -> IpAddr {
        if self.below(2) == 0 {
            // A small part of the space, so that many meet.
            Ipv4Addr::from(0x0100_0000 | self.below(1 << 20) as u32).into()
        } else {
            Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(self.next() & 0xffff) << 72).into()
        }
    }

    fn prefix(&mut self) -> IpNet {
        let address = self.address();
        let length = if address.is_ipv4() {
            22 + self.below(11)
        } else {
            56 + self.below(73)
        };
        IpNet::new(address, length as u8)
            .expect("the length is one of the family")
            .trunc()
    }
}

fn many<T>(count: usize, mut make: impl FnMut() -> T) -> Vec<T> {
    (0..count).map(|_| make()).collect()
}

/// The source of a rule set with names, addresses and, for the later versions, a rule that only they have.
fn source(numbers: &mut Numbers, version: u64) -> Value {
    let mut rules = vec![
        json!({
            "domain": many(60, || numbers.name()),
            "domain_suffix": many(60, || {
                let name = numbers.name();
                if numbers.below(2) == 0 { name } else { format!(".{name}") }
            }),
            "domain_keyword": ["dns", "x-"],
            "domain_regex": ["^ads\\.", "[0-9]\\.net$"],
        }),
        json!({ "ip_cidr": many(300, || numbers.prefix().to_string()) }),
        json!({ "domain": ["conditional.example"], "port": [443] }),
        json!({ "type": "logical", "mode": "or", "rules": [
            { "domain": ["or.example"] },
            { "ip_cidr": ["203.0.113.0/24"] },
        ]}),
    ];
    let newer = [
        (3, "network_type", json!(["wifi"])),
        (4, "default_interface_address", json!(["10.0.0.0/8"])),
        (5, "package_name_regex", json!(["^com\\."])),
    ];
    for (since, key, value) in newer {
        if version >= since {
            rules.push(json!({ "domain": ["newer.example"], key: value }));
        }
    }
    json!({ "version": version, "rules": rules })
}

fn read(path: &Path, code: Option<&str>) -> Result<Entries> {
    let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let selector = code.map(Selector::new);
    formats::read(path, &bytes, selector.as_ref())
        .map_err(|troubles| anyhow::anyhow!("{}: {troubles:?}", path.display()))
}

/// What entries mean, in whatever way they are written.
fn meant(entries: &Entries) -> (Vec<IpNet>, BTreeSet<Domain>) {
    let parts = |domain: &Domain| match domain {
        Domain::Suffix(text) => vec![Domain::Full(text.clone()), Domain::Below(text.clone())],
        other => vec![other.clone()],
    };
    (
        aggregate(&entries.prefixes),
        entries.domains.iter().flat_map(parts).collect(),
    )
}

fn path(folder: &tempfile::TempDir, name: &str) -> Result<(std::path::PathBuf, String)> {
    let path = folder.path().join(name);
    let text = path.to_str().context("the path is text")?.to_owned();
    Ok((path, text))
}

#[test]
fn rule_sets_that_sing_box_compiles_are_read_as_it_decompiles_them() -> Result<()> {
    let Some(sing_box) = SingBox::or_skip()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    for version in 1..=5 {
        let (source_path, source_text) = path(&folder, &format!("source{version}.json"))?;
        let (binary_path, binary_text) = path(&folder, &format!("binary{version}.srs"))?;
        let (again_path, again_text) = path(&folder, &format!("again{version}.json"))?;
        let source = source(&mut Numbers(version), version);
        fs::write(&source_path, serde_json::to_vec(&source)?)?;
        sing_box.run(&["rule-set", "compile", &source_text, "-o", &binary_text])?;
        sing_box.run(&["rule-set", "decompile", &binary_text, "-o", &again_text])?;

        let bytes = fs::read(&binary_path)?;
        assert_eq!(&bytes[..4], [b'S', b'R', b'S', version as u8]);
        let binary = read(&binary_path, None)?;
        let decompiled = meant(&read(&again_path, None)?);
        assert_eq!(meant(&binary), decompiled, "version {version}");
        assert_eq!(
            meant(&read(&source_path, None)?),
            decompiled,
            "version {version}"
        );
        ensure!(decompiled.0.len() > 50 && decompiled.1.len() > 50);
        let conditional = 1 + (version.max(2) - 2) as usize;
        assert_eq!(binary.passed_over.len(), 1, "{:?}", binary.passed_over);
        assert_eq!(binary.passed_over[0].count, conditional);

        // Cut off anywhere it is refused, with the place.
        for end in 0..bytes.len() {
            let troubles = formats::read(&binary_path, &bytes[..end], None);
            let troubles = troubles.expect_err("it is cut off");
            ensure!(
                end < 3 || troubles.list[0].place.is_some(),
                "{end}: {troubles:?}"
            );
        }
    }
    Ok(())
}

/// What of the asked matches, as `ours` says and as sing-box says.
fn same_matches(
    sing_box: &SingBox,
    file: &Path,
    asked: &[String],
    ours: impl Fn(&str) -> bool,
) -> Result<()> {
    let mut hits = 0;
    for asked in asked {
        let theirs = sing_box.matches(file, "binary", asked)?;
        assert_eq!(ours(asked), theirs, "{asked}");
        hits += usize::from(theirs);
    }
    // A test of nothing but misses, or of nothing but hits, would prove little.
    let count = asked.len();
    ensure!(
        (count / 10..=count - count / 10).contains(&hits),
        "{hits} of {count} match"
    );
    Ok(())
}

#[test]
fn names_and_addresses_match_as_in_sing_box() -> Result<()> {
    let Some(sing_box) = SingBox::or_skip()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    for version in [1, 3] {
        let mut numbers = Numbers(90 + version);
        let (source_path, source_text) = path(&folder, "source.json")?;
        let (binary_path, binary_text) = path(&folder, "binary.srs")?;
        let source = json!({ "version": version, "rules": [{
            "domain": many(10, || numbers.name()),
            "domain_suffix": many(6, || {
                let name = numbers.name();
                if numbers.below(2) == 0 { format!("b.{name}") } else { format!(".{name}") }
            }),
            "domain_keyword": ["dns"],
            "domain_regex": ["^ads\\."],
            "ip_cidr": many(40, || numbers.prefix().to_string()),
        }]});
        fs::write(&source_path, serde_json::to_vec(&source)?)?;
        sing_box.run(&["rule-set", "compile", &source_text, "-o", &binary_text])?;

        let Entries {
            prefixes, domains, ..
        } = read(&binary_path, None)?;
        let edges = prefixes
            .iter()
            .flat_map(|prefix| [prefix.network(), prefix.broadcast()]);
        let mut addresses: Vec<String> = edges
            .step_by(20)
            .map(|address| address.to_string())
            .collect();
        addresses.extend(many(20, || numbers.address().to_string()));
        let names = many(30, || numbers.name());
        let names_set = DomainSet::new(domains.into_iter().map(|domain| (domain, 0)))?;
        let addresses_set: PrefixSet = prefixes.into_iter().collect();
        same_matches(&sing_box, &binary_path, &names, |name| {
            names_set.lookup(name).is_some()
        })?;
        same_matches(&sing_box, &binary_path, &addresses, |address| {
            address
                .parse()
                .is_ok_and(|address| addresses_set.contains(address))
        })?;
    }
    Ok(())
}

#[test]
fn filter_lists_match_as_in_sing_box() -> Result<()> {
    let Some(sing_box) = SingBox::or_skip()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let (list_path, list_text) = path(&folder, "filter.txt")?;
    let (binary_path, binary_text) = path(&folder, "filter.srs")?;
    let mut numbers = Numbers(7);
    let mut list = String::from("! Title: x\n# note\n");
    for line in 0..24 {
        let name = numbers.name();
        match line % 4 {
            0 => writeln!(list, "||b.{name}^")?,
            1 => writeln!(list, "||{name}^$important")?,
            2 => writeln!(list, "0.0.0.0 {name}")?,
            _ => writeln!(list, "||a.*.{name}^")?,
        }
    }
    list.push_str("/^cdn[0-9]+\\.ads/\n");
    fs::write(&list_path, list)?;
    sing_box.run(&[
        "rule-set",
        "convert",
        "-t",
        "adguard",
        &list_text,
        "-o",
        &binary_text,
    ])?;
    let domains = read(&list_path, None)?.domains;
    let set = DomainSet::new(domains.into_iter().map(|domain| (domain, 0)))?;
    let names = many(50, || numbers.name());
    same_matches(&sing_box, &binary_path, &names, |name| {
        set.lookup(name).is_some()
    })
}

#[test]
fn databases_are_exported_by_sing_box_as_we_read_them() -> Result<()> {
    let Some(sing_box) = SingBox::or_skip()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let mut numbers = Numbers(3);
    let prefixes = aggregate(&many(400, || numbers.prefix()));
    let networks: Vec<(IpNet, usize)> = prefixes
        .iter()
        .map(|prefix| (*prefix, numbers.below(3) as usize))
        .collect();
    let records = ["cn", "jp", "private"].map(write::Value::Text);
    for bits in [24, 28, 32] {
        let (database_path, database_text) = path(&folder, "geoip.db")?;
        let (export_path, export_text) = path(&folder, "export.json")?;
        fs::write(
            &database_path,
            write::mmdb(bits, 6, &networks, &records, false),
        )?;
        for (code, record) in [("cn", 0), ("jp", 1), ("private", 2)] {
            let arguments = [
                "geoip",
                "export",
                code,
                "-f",
                &database_text,
                "-o",
                &export_text,
            ];
            sing_box.run(&arguments)?;
            let exported = meant(&read(&export_path, None)?);
            let wanted = networks.iter().filter(|(_, of)| *of == record);
            let wanted: Vec<IpNet> = wanted.map(|(prefix, _)| *prefix).collect();
            ensure!(wanted.len() > 20);
            assert_eq!(exported.0, aggregate(&wanted), "{bits} {code}");
            assert_eq!(
                meant(&read(&database_path, Some(code))?),
                exported,
                "{bits} {code}"
            );
        }
    }
    Ok(())
}

#[test]
fn sets_of_nft_are_read_as_it_prints_them() -> Result<()> {
    let lab = Lab::new()?;
    let mut numbers = Numbers(11);
    let prefixes = aggregate(&many(300, || numbers.prefix()));
    let mut script = String::from("table inet lists {\n");
    for (name, kind, v4) in [("four", "ipv4_addr", true), ("six", "ipv6_addr", false)] {
        let elements: Vec<String> = prefixes
            .iter()
            .filter(|prefix| prefix.addr().is_ipv4() == v4)
            .map(ToString::to_string)
            .collect();
        ensure!(elements.len() > 20);
        writeln!(
            script,
            "set {name} {{ type {kind}; flags interval; auto-merge; comment \"a, {{ b }}\"; elements = {{ {} }}; }}",
            elements.join(", ")
        )?;
    }
    script.push_str("chain in { ip daddr @four accept; tcp dport { 22, 80 } accept\n}\n}\n");
    let file = lab.dir().join("script.nft");
    fs::write(&file, &script)?;
    let name = file.to_str().context("the path is text")?;
    lab.gateway.run(&["nft", "-f", name])?;

    for (flags, name) in [
        (&["-s"][..], "dump.nft"),
        (&["--json"], "dump.json"),
        (&["-n"], "list"),
    ] {
        let mut command = vec!["nft"];
        command.extend(flags);
        command.extend(["list", "ruleset"]);
        let dump = lab.gateway.run(&command)?.stdout;
        let path = lab.dir().join(name);
        fs::write(&path, &dump)?;
        let entries = read(&path, None)?;
        assert_eq!(
            meant(&entries),
            (prefixes.clone(), BTreeSet::new()),
            "{name}"
        );
        // Cut off anywhere before its last brace it is refused.
        let braces = dump.find('{').zip(dump.rfind('}'));
        let (start, end) = braces.context("there are braces")?;
        for end in (start + 1..=end).step_by(7).chain([end]) {
            let cut = formats::read(&path, &dump.as_bytes()[..end], None);
            ensure!(cut.is_err(), "{name} cut at {end}");
        }
    }
    // The script itself is a list too.
    assert_eq!(meant(&read(&file, None)?).0, prefixes);
    Ok(())
}

/// Asks a SOCKS5 server without a password for a connection.
fn ask(ns: &Namespace, server: SocketAddr, request: &[u8]) -> Result<TcpStream> {
    let mut stream = connect(ns, server)?;
    stream.write_all(&[5, 1, 0])?;
    stream.read_exact(&mut [0; 2])?;
    stream.write_all(request)?;
    stream.read_exact(&mut [0; 10])?;
    Ok(stream)
}

/// v2ray sends what is in the lists one way and all else another.
#[test]
fn dat_files_are_read_as_v2ray_reads_them() -> Result<()> {
    let lab = Lab::new()?;
    let (ns, dir) = (&lab.device, lab.dir());
    let mut numbers = Numbers(17);
    let prefixes = many(60, || numbers.prefix());
    let others = many(20, || numbers.prefix());
    let names = many(30, || numbers.name());
    let domains: Vec<(u8, &str, &[&str])> = names
        .iter()
        .enumerate()
        .map(|(at, name)| {
            let attributes: &[&str] = [&[][..], &["cn"], &["ads", "cn"]][at % 3];
            (2 + (at % 2) as u8, &**name, attributes)
        })
        .chain([(0, "cdn0.a", &["cn"][..]), (1, r"^b\.(www|ads)\.", &["cn"])])
        .collect();
    let geoip = [
        write::geoip("ZZ", &others, false),
        write::geoip("XX", &prefixes, false),
    ]
    .concat();
    let geosite = [
        write::geosite("OTHER", &[(2, "other.example", &[])]),
        write::geosite("SOME", &domains),
    ]
    .concat();
    let files = [dir.join("geoip.dat"), dir.join("geosite.dat")];
    fs::write(&files[0], geoip)?;
    fs::write(&files[1], geosite)?;
    let ours = PrefixSet::from_iter(read(&files[0], Some("xx"))?.prefixes);
    let set = |code| -> Result<DomainSet> {
        let domains = read(&files[1], Some(code))?.domains;
        Ok(DomainSet::new(
            domains.into_iter().map(|domain| (domain, 0)),
        )?)
    };
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let [inside, outside] = [
        Acceptor::listen(ns, local(0))?,
        Acceptor::listen(ns, local(0))?,
    ];
    for (code, sites) in [("some", set("some")?), ("some@cn", set("some@cn")?)] {
        let to = |tag: &str, acceptor: &Acceptor| json!({ "tag": tag, "protocol": "freedom", "settings": { "redirect": acceptor.address().to_string() } });
        let configuration = json!({
            "inbounds": [{ "listen": "127.0.0.1", "port": 1082, "protocol": "socks", "settings": { "auth": "noauth" } }],
            "outbounds": [to("out", &outside), to("in", &inside)],
            "routing": { "domainStrategy": "AsIs", "rules": [
                { "type": "field", "ip": ["geoip:xx"], "outboundTag": "in" },
                { "type": "field", "domain": [format!("geosite:{code}")], "outboundTag": "in" },
            ] },
        });
        let _v2ray = V2ray::start(ns, dir, &configuration, 1082)?;
        let is_in = |request: &[u8]| -> Result<bool> {
            let _stream = ask(ns, local(1082), request)?;
            until("v2ray to send it somewhere", SOON, || {
                Ok(match (inside.try_accept()?, outside.try_accept()?) {
                    (Some(_), None) => Some(true),
                    (None, Some(_)) => Some(false),
                    (None, None) => None,
                    (Some(_), Some(_)) => bail!("it was sent both ways"),
                })
            })
        };
        let mut found = [0; 2];
        for at in 0..120 {
            let address = if at % 2 == 0 {
                prefixes[at / 2].network()
            } else {
                numbers.address()
            };
            let head: &[u8] = if address.is_ipv4() {
                &[5, 1, 0, 1]
            } else {
                &[5, 1, 0, 4]
            };
            let request = [head, &write::octets(address), &[1, 187]].concat();
            let expected = ours.contains(address);
            assert_eq!(is_in(&request)?, expected, "{address}");
            found[usize::from(expected)] += 1;
        }
        for at in 0..150 {
            let name = if at % 3 == 0 {
                format!("sub.{}", names[at / 5])
            } else {
                numbers.name()
            };
            let head = [5, 1, 0, 3, name.len() as u8];
            let request = [&head[..], name.as_bytes(), &[1, 187]].concat();
            let expected = sites.lookup(&name).is_some();
            assert_eq!(is_in(&request)?, expected, "{code}: {name}");
            found[usize::from(expected)] += 1;
        }
        assert!(found.iter().all(|count| *count > 30), "{found:?}");
    }
    Ok(())
}
