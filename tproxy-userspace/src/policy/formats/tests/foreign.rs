//! Foreign bytes, and large files.

use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::policy::domain::Domain;

fn any_format() -> impl Strategy<Value = Format> {
    prop::sample::select(Format::ALL.to_vec())
}

/// Words of all the formats of text, put together anyhow.
fn any_text() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "payload:",
        "- ",
        "'",
        "DOMAIN-SUFFIX,",
        "IP-CIDR,",
        "a.example",
        "+.",
        "*.",
        "10.0.0.0/8",
        "192.0.2.1",
        "-",
        "||",
        "^",
        "@@",
        "$",
        "server=/",
        "/",
        "add x ",
        "create x hash:net",
        "elements = {",
        "}",
        "{",
        "\"",
        ",",
        "#",
        "apnic|CN|ipv4|",
        "256|x|allocated",
        "|",
        "\n",
        "\r\n",
        " ",
        "\t",
        "2|apnic|x|9|x|x|x\n",
        "{\"rules\":[",
        "{\"nftables\":[",
        "\"domain\":",
        "]",
        ":",
        "::1",
        "\u{feff}",
        "中。国",
        "xn--a",
        "regexp:",
        "0.0.0.0 ",
        "!",
    ]);
    prop::collection::vec(words, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_bytes_make_a_reader_panic(format in any_format(), bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        fuzz(format, &bytes);
    }

    #[test]
    fn no_text_makes_a_reader_panic(format in any_format(), text in any_text()) {
        fuzz(format, text.as_bytes());
    }

    #[test]
    fn no_damage_makes_a_reader_panic(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        which in any::<prop::sample::Index>(),
    ) {
        let all = binary::all();
        let (format, mut file, _) = all[which.index(all.len())].clone();
        for (at, byte) in &damage {
            let at = at.index(file.len());
            file[at] = *byte;
        }
        fuzz(format, &file);
        // Behind the compression, where chance seldom comes.
        let mut unpacked = match format {
            Format::Srs => unpack::zlib(&binary::an_srs(3), 4, unpack::MOST).unwrap(),
            Format::Mrs => write::mrs_names(&["a.example".to_owned(), "+.b.example".to_owned()]),
            _ => return Ok(()),
        };
        for (at, byte) in damage {
            let at = at.index(unpacked.len());
            unpacked[at] = byte;
        }
        fuzz(format, &unpacked);
    }

    #[test]
    fn a_trie_is_read_back(names in prop::collection::btree_set("[a-c]{1,3}(\\.[a-c]{1,3}){0,2}", 1..40)) {
        let names: Vec<String> = names.into_iter().collect();
        let wanted: Vec<Domain> = names.iter().map(|name| Domain::Full(name.clone())).collect();
        let files = [
            write::srs(3, &[write::srs_rule(&[write::srs_names(&names)], false)]),
            write::zstd(&write::mrs_names(&names)),
        ];
        for file in files {
            let mut read = entries(file, None).unwrap().domains;
            read.sort_unstable();
            prop_assert_eq!(&read, &wanted);
        }
    }

    #[test]
    fn prefixes_are_read_back_from_every_format(
        prefixes in prop::collection::vec(prefix::tests::any_prefix(), 1..30)
    ) {
        let fewest = aggregate::aggregate(&prefixes);
        let ranges: Vec<_> = fewest
            .iter()
            .map(|prefix| (prefix.network(), prefix.broadcast()))
            // The other formats write addresses of IPv4 within IPv6 this way.
            .filter(|(first, last)| first.to_canonical() == *first && last.to_canonical() == *last)
            .collect();
        let unmapped = aggregate::aggregate(
            &ranges.iter().flat_map(|(first, last)| aggregate::range(*first, *last)).collect::<Vec<_>>(),
        );
        let lines = |start: &str| fewest.iter().map(|prefix| format!("{start}{prefix}\n")).collect::<String>();
        let elements: Vec<String> = fewest.iter().map(ToString::to_string).collect();
        for (file, code, wanted) in [
            (write::geoip("X", &fewest, false), Some("x"), &fewest),
            (write::srs(1, &[write::srs_rule(&[write::srs_addresses(6, &ranges)], false)]), None, &unmapped),
            (write::zstd(&write::mrs_addresses(&ranges)), None, &unmapped),
            (lines("").into(), None, &fewest),
            (lines("add x ").into(), None, &fewest),
            (lines("- ").into(), None, &fewest),
            (lines("IP-CIDR,").into(), None, &fewest),
            (format!("elements = {{ {} }}", elements.join(", ")).into(), None, &fewest),
            (serde_json::json!({"rules": [{"ip_cidr": elements}]}).to_string().into(), None, &fewest),
        ] {
            if wanted.is_empty() {
                continue;
            }
            let read = entries(&file, code).map_err(|troubles| TestCaseError::fail(format!("{troubles:?}")))?;
            prop_assert_eq!(&aggregate::aggregate(&read.prefixes), wanted);
        }
    }
}

/// Run by hand for the figures: `cargo test --release -- --ignored --nocapture large_files`.
#[test]
#[ignore = "a measurement"]
fn large_files() {
    let time = |what: &str, file: &[u8], code: Option<&str>| {
        let started = std::time::Instant::now();
        let entries = entries(file, code).unwrap();
        let read = started.elapsed();
        let prefixes = aggregate::aggregate(&entries.prefixes).len();
        println!(
            "{what}: {} bytes, {prefixes} prefixes and {} domains, {read:?}, joined after {:?}",
            file.len(),
            entries.domains.len(),
            started.elapsed()
        );
    };
    let prefixes: Vec<IpNet> = (0..16_384_u32)
        .map(|number| {
            IpNet::new(
                IpAddr::V4((0x0100_0000 + number * 0x2_0000 / 8 * 3).into()),
                24,
            )
            .unwrap()
            .trunc()
        })
        .collect();
    let ranges: Vec<_> = prefixes
        .iter()
        .map(|prefix| (prefix.network(), prefix.broadcast()))
        .collect();
    let names: Vec<String> = (0..100_000)
        .map(|number| format!("host{number}.part{}.example", number % 977))
        .collect();
    let lines: String = prefixes
        .iter()
        .map(|prefix| format!("{prefix}\n"))
        .collect();
    time("plain prefixes", lines.as_bytes(), None);
    time(
        "geoip.dat",
        &write::geoip("CN", &prefixes, false),
        Some("cn"),
    );
    time(
        ".srs of prefixes",
        &write::srs(
            1,
            &[write::srs_rule(&[write::srs_addresses(6, &ranges)], false)],
        ),
        None,
    );
    let networks: Vec<_> = prefixes.iter().map(|prefix| (*prefix, 0)).collect();
    time(
        "mmdb",
        &write::mmdb(24, 6, &networks, &[write::Value::Text("cn")], true),
        Some("cn"),
    );
    let lines: String = names.iter().map(|name| format!("{name}\n")).collect();
    time("plain domains", lines.as_bytes(), None);
    let lines: String = names
        .iter()
        .map(|name| format!("server=/{name}/192.0.2.1\n"))
        .collect();
    time("dnsmasq", lines.as_bytes(), None);
    let domains: Vec<(u8, &str, &[&str])> = names
        .iter()
        .map(|name| (2, name.as_str(), &[][..]))
        .collect();
    time("geosite.dat", &write::geosite("CN", &domains), Some("cn"));
}
