use std::hint::black_box;
use std::time::Instant;

use proptest::prelude::*;

use super::*;

fn set(domains: &[&str]) -> DomainSet {
    let domains = domains.iter().map(|text| text.parse::<Domain>().unwrap());
    DomainSet::new(domains.zip(0..)).unwrap()
}

#[test]
fn each_form_matches_what_it_says() {
    for (domain, names, others) in [
        (
            "x.com",
            &["x.com", "X.Com.", "a.x.com", "a.b.x.com"][..],
            &[
                "ax.com", "com", "x.com.cn", "x.comx", "", ".", "x", "a..", "x.com..",
            ][..],
        ),
        (
            ".x.com",
            &["a.x.com", "a.b.X.com."],
            &["x.com", "x.com.", "ax.com"],
        ),
        ("full:x.com", &["x.com", "x.com."], &["a.x.com", "ax.com"]),
        (
            "keyword:GooGle",
            &["google", "www.Google.com", "agooglea.x"],
            &["goo.gle", ""],
        ),
        (
            r"regexp:^ad[0-9]+\.X\.com$",
            &["ad1.x.com", "AD77.x.com."],
            &["ad.x.com", "bad1.x.com"],
        ),
        ("cn", &["cn", "a.cn"], &["acn"]),
        ("例え.JP", &["xn--r8jz45g.jp", "a.xn--r8jz45g.jp"], &["jp"]),
        ("_dmarc.x.com.", &["_dmarc.x.com"], &["x.com"]),
    ] {
        let set = set(&[domain]);
        assert_eq!(set.len(), 1);
        for name in names {
            assert_eq!(set.lookup(name), Some(0), "{domain} {name:?}");
        }
        for name in others {
            assert_eq!(set.lookup(name), None, "{domain} {name:?}");
        }
    }
}

#[test]
fn the_smallest_tag_that_is_taken_wins() {
    let set = set(&[
        "keyword:www",
        "full:www.x.com",
        "www.x.com",
        ".x.com",
        "regexp:x",
        "com",
        "full:com",
    ]);
    assert_eq!(set.lookup("www.x.com"), Some(0));
    assert_eq!(set.lookup("a.x.com"), Some(3));
    assert_eq!(set.lookup("x.com"), Some(4));
    assert_eq!(set.lookup("com"), Some(5));
    assert_eq!(set.first("www.x.com", u32::MAX, |tag| tag > 1), Some(2));
    assert_eq!(set.first("www.x.com", u32::MAX, |tag| tag > 3), Some(4));
    assert_eq!(set.first("www.x.com", 4, |tag| tag > 4), None);
    let mut offered = Vec::new();
    set.first("com", u32::MAX, |tag| {
        offered.push(tag);
        false
    });
    assert_eq!(offered, [5, 6]);
}

#[test]
fn an_empty_set_holds_nothing() {
    let set = DomainSet::new::<&str>([]).unwrap();
    assert!(set.is_empty());
    assert_eq!(set.lookup("x.com"), None);
    assert_eq!(set.lookup(""), None);
}

#[test]
fn what_stands_twice_is_held_once() {
    let domains = [
        (Domain::Full("x.com"), 1),
        (Domain::Below("X.com."), 1),
        (Domain::Suffix("x.com"), 2),
    ];
    let set = DomainSet::new(domains).unwrap();
    assert_eq!(set.len(), 2);
    assert_eq!(set.lookup("a.x.com"), Some(1));
    assert_eq!(set.first("x.com", u32::MAX, |tag| tag != 1), Some(2));
}

#[test]
fn tags_of_any_size_are_kept() {
    let tags = [0, 1, 61, 62, 63, 64, 255, 256, u32::MAX - 1, u32::MAX];
    let names: Vec<String> = tags.iter().map(|tag| format!("n{tag}.x")).collect();
    let domains = names.iter().map(Domain::Suffix);
    let set = DomainSet::new(domains.zip(tags)).unwrap();
    for (name, tag) in names.iter().zip(tags) {
        assert_eq!(set.lookup(name), Some(tag));
    }
}

#[test]
fn the_longest_name_is_looked_up_and_a_longer_one_is_none() {
    let label = "a".repeat(63);
    let longest = [&*label, &label, &label, &label[..61]].join(".");
    assert_eq!(longest.len(), name::LONGEST);
    let set = set(&[&longest, "keyword:aaa"]);
    assert_eq!(set.lookup(&format!("{longest}.")), Some(0));
    assert_eq!(set.lookup(&format!("b{longest}")), None);
}

#[test]
fn refuses_with_a_remedy() {
    let forms = "write x.com, .x.com (only what is below it), full:x.com, keyword:x or regexp:x";
    for (text, error) in [
        ("", format!("`` is not a domain name: it has an empty part; {forms}")),
        (".", format!("`.` is not a domain name: it has an empty part; {forms}")),
        ("a..b", format!("`a..b` is not a domain name: it has an empty part; {forms}")),
        ("a b", format!("`a b` is not a domain name: ' ' cannot stand in a name; {forms}")),
        (
            "geosite:cn",
            format!("`geosite:cn` is not a domain name: ':' cannot stand in a name; {forms}"),
        ),
        (
            "*.x.com",
            "`*.x.com` is not a domain name: '*' cannot stand in a name; write .x.com for all below it".to_owned(),
        ),
        (
            "domain:x.com",
            "`domain:x.com` is not a domain name: ':' cannot stand in a name; \
             write x.com for it and all below it".to_owned(),
        ),
        ("keyword:", "an empty keyword is in every name; write a part of a name, of: a-z 0-9 - _ .".to_owned()),
        (
            "keyword:a/b",
            "no domain name holds the keyword `a/b`; write a part of a name, of: a-z 0-9 - _ .".to_owned(),
        ),
        (
            "regexp:a(b",
            "`a(b` is not a usable regular expression: unclosed group; \
             write one of ASCII characters, without look-around and back references".to_owned(),
        ),
        (
            "regexp:(?=a)",
            "`(?=a)` is not a usable regular expression: \
             look-around, including look-ahead and look-behind, is not supported; \
             write one of ASCII characters, without look-around and back references".to_owned(),
        ),
        (
            "regexp:(a{1000}){1000}",
            "`(a{1000}){1000}` is not a usable regular expression: it takes more than 1048576 bytes; \
             write one of ASCII characters, without look-around and back references".to_owned(),
        ),
    ] {
        assert_eq!(text.parse::<Domain>().unwrap_err().to_string(), error, "{text}");
    }
    for (text, reason) in [
        ("a".repeat(64), NameError::LongLabel(64)),
        ("a.".repeat(128), NameError::Long(255)),
        ("\u{fffd}".to_owned(), NameError::International),
        (".a".to_owned(), NameError::Empty),
    ] {
        assert_eq!(name::normalize(&text), Err(reason), "{text}");
    }
}

#[test]
fn a_set_names_what_is_wrong_with_it() {
    let one = |domain| DomainSet::new([(Domain::Suffix("x.com"), 0), (domain, 1)]);
    for (domain, error) in [
        (Domain::Suffix("a b"), "`a b` is not a domain name"),
        (Domain::Keyword("?"), "keyword `?`"),
        (Domain::Regex("["), "`[` is not a usable regular expression"),
    ] {
        let found = one(domain).unwrap_err().to_string();
        assert!(found.contains(error), "{found}");
    }
    let many = vec![(Domain::Regex("([a-z]{20}){400}"), 0); 40];
    assert_eq!(
        DomainSet::new(many).unwrap_err(),
        DomainError::Regexes { count: 40 }
    );
}

fn any_name() -> impl Strategy<Value = String> {
    prop::collection::vec("[ab]{1,2}|com|C", 1..5).prop_map(|labels| labels.join("."))
}

fn any_domain() -> impl Strategy<Value = Domain> {
    prop_oneof![
        any_name().prop_map(Domain::Suffix),
        any_name().prop_map(Domain::Below),
        any_name().prop_map(Domain::Full),
        "[ab.]{1,3}".prop_map(Domain::Keyword),
        "\\^?[ab.]{1,3}\\$?".prop_map(Domain::Regex),
    ]
}

fn naive(domain: &Domain, name: &str) -> bool {
    let name = name.to_lowercase();
    let below = |text: &str| name.ends_with(&format!(".{}", text.to_lowercase()));
    let itself = |text: &str| name == text.to_lowercase();
    match domain {
        Domain::Suffix(text) => itself(text) || below(text),
        Domain::Below(text) => below(text),
        Domain::Full(text) => itself(text),
        Domain::Keyword(text) => name.contains(text),
        Domain::Regex(text) => naive_regex(text, &name),
    }
}

/// Of an expression that has only literals, dots and anchors at its ends.
fn naive_regex(text: &str, name: &str) -> bool {
    let (begins, text) = text
        .strip_prefix('^')
        .map_or((false, text), |text| (true, text));
    let (ends, text) = text
        .strip_suffix('$')
        .map_or((false, text), |text| (true, text));
    let fits = |at: usize| {
        let found = &name.as_bytes()[at..][..text.len()];
        (!begins || at == 0)
            && (!ends || at + text.len() == name.len())
            && text
                .bytes()
                .zip(found)
                .all(|(letter, found)| letter == b'.' || letter == *found)
    };
    name.len() >= text.len() && (0..=name.len() - text.len()).any(fits)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn finds_what_a_naive_search_finds(
        domains in prop::collection::vec((any_domain(), 0..70_u32), 0..40),
        names in prop::collection::vec(any_name(), 1..20),
        most in 0..80_u32,
        refused in prop::collection::hash_set(0..70_u32, 0..20),
    ) {
        let set = DomainSet::new(domains.clone()).unwrap();
        for name in names {
            let matching = || domains.iter().filter(|(domain, _)| naive(domain, &name)).map(|(_, tag)| *tag);
            prop_assert_eq!(set.lookup(&name), matching().min(), "{}", &name);
            let taken = |tag: &u32| *tag <= most && !refused.contains(tag);
            let first = set.first(&name, most, |tag| !refused.contains(&tag));
            prop_assert_eq!(first, matching().filter(taken).min(), "{}", &name);
        }
    }

    #[test]
    fn no_text_makes_it_panic(text in "\\PC*", form in "|\\.|full:|keyword:|regexp:") {
        if let Ok(domain) = format!("{form}{text}").parse::<Domain>() {
            prop_assert_eq!(domain.to_string().parse::<Domain>(), Ok(domain.clone()));
            let set = DomainSet::new([(domain, 0)]).unwrap();
            let _ = set.lookup(&text);
        }
    }
}

/// Names as the usual lists have them: two or three labels, 15 bytes on average.
fn many_names(count: u64) -> Vec<String> {
    let mut state = 1_u64;
    let mut next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        state >> 33
    };
    let letters = |number: u64, length: u64| {
        (0..length)
            .map(|at| char::from(b'a' + (number / 7_u64.pow(at as u32) % 26) as u8))
            .collect::<String>()
    };
    (0..count)
        .map(|index| {
            let top = ["com", "cn", "net", "com.cn", "org"][(next() % 5) as usize];
            let length = 4 + next() % 12;
            format!("{}{index}.{top}", letters(next(), length))
        })
        .collect()
}

/// `cargo test --release -p tproxy-userspace --lib policy::domain -- --ignored --nocapture`
#[test]
#[ignore = "prints figures; run it by hand in release mode"]
fn figures() {
    let names = many_names(100_000);
    let text: usize = names.iter().map(String::len).sum();
    let start = Instant::now();
    let set = DomainSet::new(names.iter().map(Domain::Suffix).zip(std::iter::repeat(5))).unwrap();
    let built = start.elapsed();
    let over = (set.bytes() - text) as f64 / names.len() as f64;
    println!(
        "100,000 names, {text} bytes of text: built in {built:?}, {over:.2} bytes an entry over the text"
    );
    let hits: Vec<String> = names.iter().map(|name| format!("www.{name}")).collect();
    let misses: Vec<String> = many_names(300_000)
        .iter()
        .skip(200_000)
        .map(|name| format!("www.{name}"))
        .collect();
    let keywords = ["google", "facebook", "twitter", "youtube", "telegram"].map(Domain::Keyword);
    let regexes = [r"^ad[0-9]+\.", r"(^|\.)cdn-[a-z]+\.x\.com$"].map(Domain::Regex);
    let names = names.iter().map(|name| Domain::Suffix(&**name));
    let all = names.chain(keywords).chain(regexes);
    let with_all = DomainSet::new(all.zip(std::iter::repeat(5))).unwrap();
    for (what, set) in [("suffixes", &set), ("and 5 keywords, 2 regexes", &with_all)] {
        for (which, names) in [("hit", &hits), ("miss", &misses)] {
            let start = Instant::now();
            let found = names
                .iter()
                .filter(|name| black_box(set.lookup(black_box(name))).is_some())
                .count();
            let each = start.elapsed() / names.len() as u32;
            println!("{what}: {which}: {each:?} ({found} found)");
        }
    }
}
