use std::io::Write as _;
use std::net::IpAddr;

use proptest::prelude::*;

use super::*;
use crate::policy::prefix;

/// Reads a plain list as the loader does.
fn parse(file: &Path, bytes: &[u8]) -> Result<Vec<IpNet>, ListError> {
    let mut error = ListError::default();
    match formats::read(file, bytes, None) {
        Ok(entries) if entries.prefixes.is_empty() => {
            error.push(file, None, ProblemKind::DomainsOnly(entries.domains.len()));
            Err(error)
        }
        Ok(mut entries) => {
            prefix::normalize(&mut entries.prefixes);
            Ok(entries.prefixes)
        }
        Err(troubles) => {
            error.push_all(file, troubles);
            Err(error)
        }
    }
}

fn load_files<P: AsRef<Path>>(files: &[P]) -> Result<Vec<IpNet>, ListError> {
    let sources: Vec<Source> = files
        .iter()
        .map(|file| Source::new(file.as_ref()))
        .collect();
    load_prefixes(&sources, &mut |_| {}).map(|loaded| loaded.entries)
}

fn parse_texts(text: &str) -> Result<Vec<String>, String> {
    parse(Path::new("list.txt"), text.as_bytes())
        .map(|prefixes| prefixes.iter().map(ToString::to_string).collect())
        .map_err(|error| error.to_string())
}

#[test]
fn everything_that_may_stand_in_a_list() {
    let text = "\u{feff}# head\r\n\r\n 192.0.2.0/24 \r\n10.0.0.0/8#x\n\t2001:db8::1 ; one\n;\n\
                198.51.100.1 - 198.51.100.4\n192.0.2.0/24\n2001:db8:1::-2001:db8:1::2";
    assert_eq!(
        parse_texts(text).unwrap(),
        [
            "10.0.0.0/8",
            "192.0.2.0/24",
            "198.51.100.1/32",
            "198.51.100.2/31",
            "198.51.100.4/32",
            "2001:db8::1/128",
            "2001:db8:1::/127",
            "2001:db8:1::2/128",
        ]
    );
}

#[test]
fn a_bad_line_is_named() {
    for (text, error) in [
        (
            "10.0.0.0/8\n\n10.0.0.1/8 # slip\n",
            "list.txt:3: `10.0.0.1/8`: 10.0.0.1/8 has bits set after the first 8; \
             write 10.0.0.0/8 for the whole prefix, or 10.0.0.1 for the one address",
        ),
        (
            "192.0.2.9-192.0.2.1",
            "list.txt:1: `192.0.2.9-192.0.2.1`: the range ends before it begins; \
             write 192.0.2.1-192.0.2.9",
        ),
        (
            "192.0.2.9-2001:db8::1",
            "list.txt:1: `192.0.2.9-2001:db8::1`: a range cannot begin with 192.0.2.9 and end with \
             2001:db8::1, which is of the other address family",
        ),
        (
            "2001:db8::1-192.0.2.9",
            "list.txt:1: `2001:db8::1-192.0.2.9`: a range cannot begin with 2001:db8::1 and end with \
             192.0.2.9, which is of the other address family",
        ),
        (
            "10.0.0.0/8-11.0.0.0",
            "list.txt:1: `10.0.0.0/8-11.0.0.0`: `10.0.0.0/8` is not an address; \
             a range is written `first-last`, with an address at each end",
        ),
        (
            "10.0.0.0/8 11.0.0.0/8",
            "list.txt:1: `10.0.0.0/8 11.0.0.0/8`: more than one entry in a line; \
             a comment starts with #, ; or //",
        ),
        (
            "10.0.0.\u{1b}[31m0/8",
            "list.txt:1: `10.0.0.\\u{1b}[31m0/8`: `10.0.0.\\u{1b}[31m0` is neither an IPv4 nor an IPv6 \
             address; write a prefix like 192.0.2.0/24 or 2001:db8::/32, or an address",
        ),
        (
            "# nothing\n\n",
            "list.txt: it holds no prefix and no domain; leave the file out if that is intended",
        ),
        (
            "",
            "list.txt: it holds no prefix and no domain; leave the file out if that is intended",
        ),
    ] {
        assert_eq!(parse_texts(text).unwrap_err(), error);
    }
}

#[test]
fn what_is_no_text_is_refused_with_its_line() {
    let utf16 = b"\xff\xfe1\x000\x00";
    for (bytes, line) in [(&utf16[..], 1), (b"10.0.0.0/8\n\n\x80\n", 3)] {
        let error = parse(Path::new("list.txt"), bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "list.txt:{line}: it is not UTF-8 text; a prefix list is plain text with one prefix a line"
            )
        );
    }
}

#[test]
fn many_errors_are_counted_and_the_first_shown() {
    let text: String = (0..17).map(|line| format!("bad{line}\n")).collect();
    let error = parse(Path::new("list.txt"), text.as_bytes()).unwrap_err();
    assert_eq!(error.count(), 17);
    let lines: Vec<_> = error
        .problems()
        .iter()
        .map(|problem| problem.place)
        .collect();
    assert_eq!(lines, [1, 2, 3, 4, 5].map(|line| Some(Place::Line(line))));
    let text = error.to_string();
    assert!(
        text.starts_with("the lists have 17 errors:\n  list.txt:1: `bad0`: "),
        "{text}"
    );
    assert!(text.ends_with("\n  and 12 more"), "{text}");
    let json = serde_json::to_value(&error).unwrap();
    assert_eq!(json["more"], 12);
    assert_eq!(json["problems"][4]["line"], 5);
    assert!(
        json["problems"][4]["message"]
            .as_str()
            .unwrap()
            .starts_with("`bad4`: ")
    );
}

#[test]
fn files_are_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        File::create(&path)
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        path
    };
    let good = write("good", "10.0.0.0/8\n");
    let other = write("other", "10.0.0.0/8\n1.0.0.0/8\n");
    let bad = write("bad", "10.0.0.0/8\nx\n");
    let missing = folder.path().join("missing");

    let prefixes = load_files(&[&good, &other]).unwrap();
    let texts: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["1.0.0.0/8", "10.0.0.0/8"]);

    let error = load_files(&[&good, &bad, &missing, &folder.path().to_owned()]).unwrap_err();
    let problems = error.problems();
    assert_eq!(problems.len(), 3);
    assert!(matches!(
        problems[0].kind,
        ProblemKind::Content(Fault::Entry { .. })
    ));
    assert_eq!(
        (&problems[0].file, problems[0].place),
        (&bad, Some(Place::Line(2)))
    );
    assert!(matches!(problems[1].kind, ProblemKind::Read(_)));
    assert!(
        error
            .to_string()
            .contains("missing: reading it failed: No such file or directory")
    );
    assert!(load_files::<PathBuf>(&[]).unwrap().is_empty());
}

#[test]
fn lists_of_any_format_become_one_set() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let plain = write(
        "plain",
        "10.0.0.0/24\n10.0.1.0-10.0.1.127\nexample.com\n.example.net\n",
    );
    let ipset = write(
        "ipset",
        "create x hash:net\nadd x 10.0.1.128/25\nadd x 10.0.0.7\n",
    );
    let clash = write(
        "clash",
        "DST-PORT,80\nIP-CIDR,192.0.2.9/24,no-resolve\nDOMAIN,x.example\n",
    );
    let table = write(
        "a:b",
        "2|apnic|x|2|x|x|x\napnic|CN|ipv4|1.0.1.0|768|x|allocated\napnic|JP|ipv6|2001:200::|32|x|allocated\n",
    );
    let sources = [
        plain.clone(),
        ipset,
        clash.clone(),
        format!("{}:cn", table.display()).into(),
    ]
    .map(Source::new);
    let mut told = Vec::new();
    let loaded = load_prefixes(&sources, &mut |progress| {
        told.push(progress.done <= progress.total);
    })
    .unwrap();
    let texts: Vec<String> = loaded.entries.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        ["1.0.1.0/24", "1.0.2.0/23", "10.0.0.0/23", "192.0.2.0/24"]
    );
    assert_eq!(
        loaded.notes,
        [
            format!("{}: passed over domains (2)", plain.display()),
            format!(
                "{}: passed over domains (1), rules about something else than names and destinations (1)",
                clash.display()
            ),
        ]
    );
    assert_eq!(told, [true; 4]);

    let domains = load_domains(&sources[..1], &mut |_| {}).unwrap();
    assert_eq!(
        domains
            .entries
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["example.com", ".example.net"]
    );
    assert_eq!(
        domains.notes,
        [format!("{}: passed over prefixes (2)", plain.display())]
    );

    for (text, message) in [
        (
            "example.com\n",
            "it holds domains only (1 of them), and this is about prefixes; name a list of prefixes",
        ),
        (
            "DST-PORT,80\nDST-PORT,81\n",
            "it holds no prefix and no domain but rules about something else than names and destinations (2); name another list",
        ),
    ] {
        let path = write("wrong", text);
        let error = load_files(&[&path]).unwrap_err();
        assert_eq!(error.to_string(), format!("{}: {message}", path.display()));
    }
    let error = load_domains(&sources[1..2], &mut |_| {}).unwrap_err();
    assert!(
        error.to_string().contains("prefixes only (2 of them)"),
        "{error}"
    );

    let error = load_files(&[format!("{}:ch", table.display())]).unwrap_err();
    let message = format!(
        "{}: it holds no list `ch`; did you mean `CN`?",
        table.display()
    );
    assert_eq!(error.to_string(), message);
    assert_eq!(
        serde_json::to_value(&error).unwrap()["problems"][0]["line"],
        serde_json::Value::Null
    );
}

#[test]
fn a_file_that_is_cut_off_is_refused_with_its_name_and_the_byte() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ads.srs");
    // A rule set of sing-box with the keyword `ads`, compressed by zlib 1.2.13.
    let file = b"SRS\x03\x78\xda\x63\x64\x60\x66\x64\x4e\x4c\x29\xfe\xcf\x00\x00\x07\x11\x02\x40";
    let source = [Source::new(&path)];
    for end in 3..file.len() {
        std::fs::write(&path, &file[..end]).unwrap();
        let error = load_domains(&source, &mut |_| {}).unwrap_err();
        assert_eq!(error.problems()[0].place, Some(Place::Byte(end)));
        let start = format!("{}, byte {end}: the file ends within ", path.display());
        assert!(error.to_string().starts_with(&start), "{error}");
    }
    std::fs::write(&path, file).unwrap();
    let loaded = load_domains(&source, &mut |_| {}).unwrap();
    assert_eq!(loaded.entries, [Domain::Keyword("ads".to_owned())]);
}

#[test]
fn ranges_cannot_fill_the_memory() {
    // One line of 254 prefixes each, all different.
    let text: String = (0..12_000)
        .map(|block| {
            let (high, low) = (block / 0x1000, block % 0x1000);
            format!("{high:x}:{low:x}::1-{high:x}:{low:x}:ffff:ffff:ffff:ffff:ffff:fffe\n")
        })
        .collect();
    let error = parse(Path::new("list.txt"), text.as_bytes()).unwrap_err();
    assert!(
        matches!(
            error.problems()[0].kind,
            ProblemKind::Content(Fault::TooManyPrefixes(_))
        ),
        "{error}"
    );
}

/// Prefixes of one family as pairs of first and last address.
fn spans(prefixes: &[IpNet]) -> Vec<(u128, u128)> {
    let number = |address| match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    };
    prefixes
        .iter()
        .map(|prefix| (number(prefix.network()), number(prefix.broadcast())))
        .collect()
}

/// Is the range covered exactly, and do no two neighbours make up one prefix? A cover of a range
/// by disjoint prefixes in which no such pair is left is the smallest one.
fn check_range(first: IpAddr, last: IpAddr) -> Result<(), TestCaseError> {
    let prefixes = parse(Path::new("list.txt"), format!("{first}-{last}").as_bytes())
        .map_err(|error| TestCaseError::fail(error.to_string()))?;
    let spans = spans(&prefixes);
    let ends = self::spans(&[IpNet::from(first), IpNet::from(last)]);
    prop_assert_eq!(spans[0].0, ends[0].0);
    prop_assert_eq!(spans[spans.len() - 1].1, ends[1].1);
    for (pair, nets) in spans.windows(2).zip(prefixes.windows(2)) {
        prop_assert_eq!(pair[0].1 + 1, pair[1].0);
        prop_assert!(
            nets[0].prefix_len() != nets[1].prefix_len()
                || nets[0].supernet() != nets[1].supernet(),
            "{} and {} are one prefix",
            nets[0],
            nets[1]
        );
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_range_of_ipv4_is_covered_by_the_fewest_prefixes(a: u32, b: u32) {
        check_range(IpAddr::V4(a.min(b).into()), IpAddr::V4(a.max(b).into()))?;
    }

    #[test]
    fn a_range_of_ipv6_is_covered_by_the_fewest_prefixes(a: u128, b: u128) {
        check_range(IpAddr::V6(a.min(b).into()), IpAddr::V6(a.max(b).into()))?;
    }

    #[test]
    fn short_ranges_and_both_ends_of_the_space(near in 0..300_u32, length in 0..300_u32) {
        for first in [near, u32::MAX - near] {
            let last = first.saturating_add(length);
            check_range(IpAddr::V4(first.into()), IpAddr::V4(last.into()))?;
            check_range(IpAddr::V4(first.into()), IpAddr::V4(u32::MAX.into()))?;
            check_range(IpAddr::V4(0.into()), IpAddr::V4(last.into()))?;
            let (first, last) = (u128::MAX - u128::from(near), u128::MAX);
            check_range(IpAddr::V6(first.into()), IpAddr::V6(last.into()))?;
        }
    }

    #[test]
    fn a_list_that_is_printed_is_read_back(mut prefixes in prop::collection::vec(
        prefix::tests::any_prefix(), 1..50
    )) {
        let text: String = prefixes.iter().map(|prefix| format!("{prefix}\n")).collect();
        prefix::normalize(&mut prefixes);
        prop_assert_eq!(parse(Path::new("list.txt"), text.as_bytes()).unwrap(), prefixes);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes: Vec<u8>, text in "[0-9a-f:./# ;\r\n-]{0,200}") {
        for bytes in [&bytes[..], text.as_bytes()] {
            if let Err(error) = parse(Path::new("list.txt"), bytes) {
                prop_assert!(error.count() > 0 && !error.to_string().is_empty());
            }
        }
    }
}
