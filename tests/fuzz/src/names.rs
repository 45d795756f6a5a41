//! Domain names, patterns of them and sets.

use tproxy_userspace::policy::domain::{Domain, DomainSet, name, pattern};
use tproxy_userspace::policy::prefix;
use tproxy_userspace::policy::source::{Selector, Source};

use crate::bytes::assert_printable;

/// The first line is a name that is looked up among the others.
pub fn set(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n');
    let asked = lines.next().unwrap_or_default();
    one(asked);
    let mut domains: Vec<(Domain, u32)> = Vec::new();
    for (line, tag) in lines.zip(0..64) {
        match line.parse::<Domain>() {
            Ok(domain) => {
                assert_eq!(domain.to_string().parse().as_ref(), Ok(&domain));
                // Tags of all sizes, some of them twice.
                domains.push((domain, tag % 5 * 40));
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    // Regular expressions are tried alone: all together they may be too large.
    let (regexes, plain): (Vec<_>, Vec<_>) = domains
        .into_iter()
        .partition(|(domain, _)| matches!(domain, Domain::Regex(_)));
    let set = DomainSet::new(plain.clone()).expect("each of them is in order");
    let wanted = plain
        .iter()
        .filter(|(domain, _)| matches(domain, asked))
        .map(|(_, tag)| *tag)
        .min();
    assert_eq!(set.lookup(asked), wanted, "{asked:?} in {plain:?}");
    for (domain, tag) in regexes.into_iter().take(1) {
        let set = DomainSet::new([(domain, tag)]).expect("it is in order");
        assert!(set.lookup(asked).is_none_or(|found| found == tag));
    }
}

/// Does the name match? As slow and plain as can be.
fn matches(domain: &Domain, asked: &str) -> bool {
    let asked = asked
        .strip_suffix('.')
        .unwrap_or(asked)
        .to_ascii_lowercase();
    if asked.len() > name::LONGEST {
        return false;
    }
    let below = |name: &String| asked.ends_with(&format!(".{name}"));
    match domain {
        Domain::Suffix(name) => asked == *name || below(name),
        Domain::Below(name) => below(name),
        Domain::Full(name) => asked == *name,
        Domain::Keyword(word) => asked.contains(word.as_str()),
        Domain::Regex(_) => false,
    }
}

fn one(text: &str) {
    if let Ok(name) = name::normalize(text) {
        assert_eq!(name::normalize(&name).as_ref(), Ok(&name), "{text:?}");
        assert!(name.len() <= name::LONGEST && !name.ends_with('.'));
    }
    for read in [pattern::wildcard, pattern::glob] {
        if let Ok(domain) = read(text) {
            assert_eq!(domain.to_string().parse::<Domain>(), Ok(domain), "{text:?}");
        }
    }
    match prefix::parse(text) {
        Ok(read) => {
            assert_eq!(prefix::parse(&read.to_string()), Ok(read), "{text:?}");
            assert_eq!(read.trunc(), read);
        }
        Err(error) => assert_printable(&error.to_string()),
    }
    let source = Source::new(text);
    let (file, selector) = source.resolve(|_| false);
    if let Some(selector) = selector {
        assert_eq!(Selector::new(&selector.to_string()), selector, "{text:?}");
        assert_eq!(format!("{}:{selector}", file.display()), text);
    }
}
