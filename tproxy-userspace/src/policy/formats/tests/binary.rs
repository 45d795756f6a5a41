//! Binary formats: what the writers make is read back, other programs' bytes are read, cut files are refused.

use std::net::IpAddr;

use super::write::{self, Value};
use super::*;

const PREFIXES: [&str; 5] = [
    "1.0.1.0/24",
    "1.0.2.0/23",
    "0.0.0.0/0",
    "2001:250::/35",
    "::/0",
];

fn ranges() -> Vec<(IpAddr, IpAddr)> {
    [("1.0.1.0", "1.0.3.255"), ("2001:db8::", "2001:db8::ffff")]
        .map(|(first, last)| (first.parse().unwrap(), last.parse().unwrap()))
        .to_vec()
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The tree of a database has no order that matters.
fn sorted(words: &str) -> String {
    let mut words: Vec<&str> = words.split(' ').collect();
    words.sort_unstable();
    words.join(" ")
}

fn hex(text: &str) -> Vec<u8> {
    let digits = text.as_bytes().chunks(2);
    digits
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn a_geoip() -> Vec<u8> {
    [
        write::geoip("AD", &nets(&["192.0.2.0/24"]), false),
        write::geoip("CN", &nets(&PREFIXES), false),
        write::geoip("NOTPRIVATE", &nets(&["128.0.0.0/1", "::/0"]), true),
    ]
    .concat()
}

fn a_geosite() -> Vec<u8> {
    [
        write::geosite("CN", &[(2, "Example.cn", &[])]),
        write::geosite(
            "GOOGLE",
            &[
                (2, "google.com", &[]),
                (3, "www.google.cn", &["cn"]),
                (0, "Goog", &["ads", "cn"]),
                (1, "^g[0-9]+\\.", &["ads"]),
            ],
        ),
        write::geosite("GEOLOCATION-!CN", &[(2, "example.com", &["!cn"])]),
    ]
    .concat()
}

pub(super) fn an_srs(version: u8) -> Vec<u8> {
    let names = match version {
        // The first version has no mark for a name and all below.
        1 => owned(&[
            "example.com",
            "\r.example.com",
            "\r.example.net",
            "www.example.org",
        ]),
        _ => owned(&[
            "\nexample.com",
            "\r.example.net",
            "www.example.org",
            "xn--fiqs8s",
            "m.中国",
        ]),
    };
    let rule = [
        write::srs_names(&names),
        write::srs_texts(3, &["Ads"]),
        write::srs_texts(4, &["^x"]),
        write::srs_addresses(6, &ranges()),
    ];
    let conditions = [
        vec![0, 1, 0, 28],
        write::srs_addresses(5, &ranges()),
        vec![9, 2, 0, 80, 1, 187],
        write::srs_texts(10, &["1000:2000"]),
        write::srs_texts(11, &["curl"]),
        vec![18, 1, 1],
        vec![19],
        [&[16], &write::srs_names(&owned(&["x"]))[1..]].concat(),
        vec![21, 1, 2, 1, 4, 10, 0, 0, 0, 8],
        vec![22, 1, 4, 10, 0, 0, 0, 8],
        write::srs_texts(23, &["^com\\."]),
        write::srs_texts(3, &["hidden"]),
    ];
    let keyword = |text| write::srs_rule(&[write::srs_texts(3, &[text])], false);
    write::srs(
        version,
        &[
            write::srs_rule(&rule, false),
            write::srs_rule(&conditions, false),
            write::srs_rule(&[write::srs_texts(3, &["not"])], true),
            write::srs_logical(1, &[keyword("or"), keyword("either")]),
            write::srs_logical(0, &[keyword("and"), keyword("both")]),
        ],
    )
}

fn country(code: &'static str) -> Value {
    Value::Map(vec![
        (
            "continent",
            Value::Map(vec![(
                "names",
                Value::Map(vec![("en", Value::Text("Asia"))]),
            )]),
        ),
        (
            "country",
            Value::Map(vec![
                ("geoname_id", Value::Number(1)),
                ("iso_code", Value::Text(code)),
            ]),
        ),
        (
            "registered_country",
            Value::Map(vec![("iso_code", Value::Text("US"))]),
        ),
    ])
}

fn an_mmdb(bits: usize, version: u16) -> Vec<u8> {
    let mut networks = vec![
        "1.0.1.0/24",
        "1.0.2.0/23",
        "192.0.2.0/24",
        "203.0.113.128/25",
        "198.51.100.7/32",
    ];
    if version == 6 {
        networks.extend(["2001:250::/35", "2001:db8::/32"]);
    }
    let records = [0, 0, 1, 2, 3, 0, 1];
    let networks: Vec<_> = nets(&networks).into_iter().zip(records).collect();
    let registered = Value::Map(vec![(
        "registered_country",
        Value::Map(vec![("iso_code", Value::Text("CN"))]),
    )]);
    let pointing = Value::Map(vec![("country", Value::Pointer(0))]);
    let records = [country("CN"), country("JP"), registered, pointing];
    write::mmdb(bits, version, &networks, &records, version == 6)
}

/// Every binary file with a code that it has.
pub(super) fn all() -> Vec<(Format, Vec<u8>, Option<&'static str>)> {
    vec![
        (Format::GeoIp, a_geoip(), Some("cn")),
        (Format::GeoSite, a_geosite(), Some("google@cn")),
        (Format::Srs, an_srs(1), None),
        (Format::Srs, an_srs(3), None),
        (
            Format::Mrs,
            write::zstd(&write::mrs_names(&owned(&["a.example", "+.a.example"]))),
            None,
        ),
        (
            Format::Mrs,
            write::zstd(&write::mrs_addresses(&ranges())),
            None,
        ),
        (Format::Mmdb, an_mmdb(24, 6), Some("CN")),
        (Format::Mmdb, an_mmdb(28, 4), Some("CN")),
        (Format::Mmdb, an_mmdb(32, 6), Some("CN")),
    ]
}

#[test]
fn geoip_dat() {
    let file = a_geoip();
    assert_eq!(texts(&file, Some("cn")).0, PREFIXES.join(" "));
    assert_eq!(texts(&file, Some("notprivate")).0, "0.0.0.0/1");
    assert_eq!(texts(&file, Some("!notprivate")).0, "128.0.0.0/1 ::/0");
    assert_eq!(
        refused(&file, Some("cm")),
        ": it holds no list `cm`; did you mean `cn`?"
    );
    assert_eq!(
        refused(&file, Some("xyz")),
        ": it holds no list `xyz`; it has ad, cn, notprivate"
    );
    assert_eq!(
        refused(&file, Some("cn@ads")),
        ": only the lists of a geosite.dat have attributes; leave out `@ads`"
    );
    assert_eq!(
        refused(&file, None),
        ": a geoip.dat holds many lists, so name one, as in `geoip.dat:cn`; it has ad, cn, notprivate"
    );
    let cut = &file[..file.len() - 3];
    assert_eq!(
        refused(cut, Some("cn")),
        format!(
            ", byte {}: the file ends within a list; it is cut off, so fetch it again",
            cut.len()
        )
    );
}

#[test]
fn geosite_dat() {
    let file = a_geosite();
    assert_eq!(
        texts(&file, Some("google")).1,
        "google.com full:www.google.cn keyword:goog regexp:^g[0-9]+\\."
    );
    assert_eq!(
        texts(&file, Some("google@cn")).1,
        "full:www.google.cn keyword:goog"
    );
    assert_eq!(texts(&file, Some("google@cn@ads")).1, "keyword:goog");
    assert_eq!(texts(&file, Some("geolocation-!cn@!cn")).1, "example.com");
    assert_eq!(
        refused(&file, Some("google@xx")),
        ": the list `google` has no entry with the attribute `xx`; it has ads, cn"
    );
    assert_eq!(
        refused(&file, Some("gogle@cn")),
        ": it holds no list `gogle`; did you mean `google`?"
    );
    assert!(refused(&file, Some("!cn")).contains("leave out the `!`"));
    let bad = write::geosite("X", &[(2, "a b", &[])]);
    assert_eq!(
        refused(&bad, Some("x")),
        ", byte 7: `a b`: ' ' cannot stand in a name; write a domain name like example.com"
    );
}

#[test]
fn rule_sets_of_sing_box() {
    for version in 1..=5 {
        let (prefixes, domains) = texts(an_srs(version), None);
        assert_eq!(
            prefixes, "1.0.1.0/24 1.0.2.0/23 2001:db8::/112",
            "{version}"
        );
        let mut domains: Vec<&str> = domains.split(' ').collect();
        domains.sort_unstable();
        let mut wanted = vec![
            ".example.net",
            "example.com",
            "full:www.example.org",
            "keyword:ads",
            "keyword:either",
            "keyword:or",
            "regexp:^x",
        ];
        if version > 1 {
            wanted.extend(["full:m.xn--fiqs8s", "full:xn--fiqs8s"]);
            wanted.sort_unstable();
        }
        assert_eq!(domains, wanted, "{version}");
    }
    assert_eq!(
        passed_over(an_srs(2)),
        [
            ("rules with conditions beside names and destinations", 1),
            ("inverted rules", 1),
            ("rules joined by `and`, or inverted", 1),
        ]
    );
    assert_eq!(
        refused(b"SRS\x09", None),
        ", byte 3: its version is 9, and the newest that is known is 5; make the file for that version"
    );
}

#[test]
fn rule_sets_of_mihomo() {
    let names = write::mrs_names(&owned(&[
        "example.com",
        "+.example.com",
        "+.example.net",
        "www.example.org",
        "*.x.example",
    ]));
    let (_, domains) = texts(write::zstd(&names), None);
    let mut domains: Vec<&str> = domains.split(' ').collect();
    domains.sort_unstable();
    assert_eq!(
        domains,
        [
            ".example.net",
            "example.com",
            "full:www.example.org",
            "regexp:^[^.]+\\.x\\.example$"
        ]
    );
    let addresses = write::zstd(&write::mrs_addresses(&ranges()));
    assert_eq!(
        texts(addresses, None).0,
        "1.0.1.0/24 1.0.2.0/23 2001:db8::/112"
    );
}

/// Compressed by zstd 1.5.4 and zlib 1.2.13, not by our crates.
#[test]
fn what_other_compressors_make() {
    let mrs = hex(
        "28b52ffd04684d0100c84d525301010001000200ffff0100010003ff20010db800ffff06004002373633657135ccd2f1008afb1c139f",
    );
    assert_eq!(texts(&mrs, None).0, "1.0.1.0/24 1.0.2.0/23 2001:db8::/112");
    let mut wrong = mrs.clone();
    *wrong.last_mut().unwrap() ^= 1;
    assert!(entries(&wrong, None).is_err(), "the checksum is wrong");
    let srs = hex("5352530378da63646066644e4c29fecf000007110240");
    assert_eq!(texts(&srs, None).1, "keyword:ads");
    let mut wrong = srs.clone();
    *wrong.last_mut().unwrap() ^= 1;
    assert!(entries(&wrong, None).is_err(), "the checksum is wrong");
}

#[test]
fn a_small_file_that_unpacks_to_a_large_one() {
    // Of zstd, blocks that repeat one byte 2^17 times, each of four bytes.
    let blocks = [[0x02, 0, 0x10, 0]; 600].concat();
    let file = [mrs::ZSTD_MAGIC, &[0, 0x38], &blocks].concat();
    let message = ": it unpacks to more than 64 MiB, so it is no list";
    assert!(refused(file, None).ends_with(message));
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    std::io::Write::write_all(&mut zlib, &[0; 10_001]).unwrap();
    let file = zlib.finish().unwrap();
    let fault = |most| unpack::zlib(&file, 0, most).map_err(|trouble| trouble.fault);
    assert_eq!(fault(10_000), Err(Fault::Bomb(0)));
    assert_eq!(fault(10_001).map(|bytes| bytes.len()), Ok(10_001));
}

#[test]
fn databases_of_maxmind() {
    for (bits, version) in [(24, 4), (28, 4), (32, 4), (24, 6), (28, 6), (32, 6)] {
        let file = an_mmdb(bits, version);
        let six = if version == 6 { "2001:250::/35 " } else { "" };
        assert_eq!(
            sorted(&texts(&file, Some("cn")).0),
            format!("1.0.1.0/24 1.0.2.0/23 {six}203.0.113.128/25"),
            "{bits} {version}"
        );
        let message = refused(&file, Some("cb"));
        assert_eq!(
            message, ": it holds no list `cb`; did you mean `CN`?",
            "{bits} {version}"
        );

        // An independent reader sees the same countries in the same places.
        let reader = maxminddb::Reader::from_source(&file[..]).unwrap();
        let mut seen = Vec::new();
        for network in nets(&["0.0.0.0/0", "::/0"])
            .into_iter()
            .take(1 + usize::from(version == 6))
        {
            let Ok(found) = reader.within(network.to_string().parse().unwrap(), Default::default())
            else {
                continue;
            };
            for result in found.map(Result::unwrap) {
                let code: Option<&str> = match result.decode_path(&[
                    maxminddb::PathElement::Key("country"),
                    maxminddb::PathElement::Key("iso_code"),
                ]) {
                    Ok(Some(code)) => Some(code),
                    _ => result
                        .decode_path(&[
                            maxminddb::PathElement::Key("registered_country"),
                            maxminddb::PathElement::Key("iso_code"),
                        ])
                        .ok()
                        .flatten(),
                };
                if code == Some("CN") {
                    seen.push(prefix::parse(&result.network().unwrap().to_string()).unwrap());
                }
            }
        }
        let read = entries(&file, Some("cn")).unwrap().prefixes;
        assert_eq!(
            aggregate::aggregate(&seen),
            aggregate::aggregate(&read),
            "{bits} {version}"
        );
    }
}

#[test]
fn records_that_are_codes() {
    let networks: Vec<_> = nets(&["1.0.1.0/24", "1.0.2.0/24", "1.0.3.0/24", "1.0.4.0/24"])
        .into_iter()
        .zip(0..)
        .collect();
    let records = [
        Value::Text("cn"),
        Value::Array(vec![Value::Text("private"), Value::Pointer(0)]),
        Value::Array(vec![]),
        Value::Map(vec![("autonomous_system_number", Value::Number(4134))]),
    ];
    let file = write::mmdb(24, 6, &networks, &records, false);
    assert_eq!(sorted(&texts(&file, Some("CN")).0), "1.0.1.0/24 1.0.2.0/24");
    assert_eq!(texts(&file, Some("private")).0, "1.0.2.0/24");
    assert_eq!(texts(&file, Some("as4134")).0, "1.0.4.0/24");
    assert!(texts(&file, Some("!cn")).0.contains("1.0.3.0/24"));
}

#[test]
fn a_database_whose_tree_has_a_loop() {
    let mut file = an_mmdb(24, 6);
    // The root's right record is the root.
    file[3..6].copy_from_slice(&[0; 3]);
    let message = refused(&file, Some("cn"));
    assert!(
        message.contains(": the search tree has a loop"),
        "{message}"
    );
}

#[test]
fn a_file_that_is_cut_off_anywhere_is_refused() {
    for (format, file, code) in all() {
        let selector = code.map(Selector::new);
        assert!(read_as(format, &file, selector.as_ref()).is_ok());
        let whole = texts(&file, code);
        for end in 0..file.len() {
            let cut = &file[..end];
            let is_dat = matches!(format, Format::GeoIp | Format::GeoSite);
            match read_as(format, cut, selector.as_ref()) {
                Err(troubles) => match troubles.list[0].place {
                    Some(Place::Byte(at)) => assert!(at <= end, "{format:?} cut at {end}: {at}"),
                    // Between two lists a file of lists is whole, and may lack the one that is wanted.
                    None if is_dat => assert!(
                        matches!(troubles.list[0].fault, Fault::CodeUnknown { .. }),
                        "{format:?} cut at {end}: {troubles:?}"
                    ),
                    other => panic!("{format:?} cut at {end}: {other:?}"),
                },
                Ok(_) => {
                    assert!(is_dat, "{format:?} cut at {end}");
                    assert_eq!(texts(cut, code), whole, "{format:?} cut at {end}");
                }
            }
        }
    }
}

#[test]
fn the_format_is_found_from_the_content() {
    for (format, file, _) in all() {
        assert_eq!(detect::detect(Path::new("list.txt"), &file), Ok(format));
        fuzz(format, &file);
    }
    // A database without its end.
    let file = an_mmdb(24, 6);
    let troubles = read(
        Path::new("Country.mmdb"),
        &file[..500],
        Some(&Selector::new("cn")),
    )
    .unwrap_err();
    assert_eq!(troubles.list[0].place, Some(Place::Byte(500)));
    assert!(
        refused(b"\x7fELF\x02\x01\x01\0\0\0\xff", None).contains("neither text nor a list format")
    );
}
