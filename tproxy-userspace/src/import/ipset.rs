//! What `ipset save` prints: the sets that rules name.

use std::collections::BTreeMap;

use ipnet::IpNet;

use super::notes::shown;
use crate::policy::aggregate::{aggregate, range};

/// The sets by name.
#[derive(Debug, Default)]
pub(super) struct Sets(BTreeMap<String, Set>);

/// One of them.
#[derive(Debug, Default)]
struct Set {
    /// The file that it stands in.
    file: String,
    prefixes: Vec<IpNet>,
    /// Lines that are no prefix.
    others: usize,
    /// Only addresses and networks can be taken for prefixes.
    kind: String,
}

/// More prefixes than this would make a configuration that nobody reads.
pub(super) const MOST_PREFIXES: usize = 2_000;

impl Sets {
    /// Adds what a file holds. Lines that are of another form are passed over: they add nothing.
    pub fn read(&mut self, file: &str, text: &str) {
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (verb, name) = (words.next(), words.next());
            let Some(name) = name else { continue };
            let mut entry = |sets: &mut Self| -> Option<()> {
                let set = sets.0.get_mut(name)?;
                let word = words.next()?;
                // An exception makes the whole set something else.
                match prefixes(word).filter(|_| !line.ends_with(" nomatch")) {
                    Some(found) => set.prefixes.extend(found),
                    None => set.others += 1,
                }
                Some(())
            };
            match verb {
                Some("create") => {
                    let set = Set {
                        file: shown(file),
                        kind: words.next().unwrap_or_default().to_owned(),
                        ..Set::default()
                    };
                    self.0.insert(name.to_owned(), set);
                }
                Some("add") => {
                    entry(self);
                }
                _ => {}
            }
        }
        for set in self.0.values_mut() {
            set.prefixes = aggregate(&set.prefixes);
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The prefixes of a set, and the file that they come from; or why they are not to be had.
    pub fn prefixes(&self, name: &str) -> Result<(&[IpNet], &str), String> {
        let Some(set) = self.0.get(name) else {
            return Err("its contents are in no file that was given".to_owned());
        };
        if !matches!(&*set.kind, "hash:net" | "hash:ip" | "bitmap:ip") {
            return Err(format!(
                "it is a set of {}, not of addresses",
                shown(&set.kind)
            ));
        }
        if set.others > 0 {
            return Err(format!("{} of its entries are no prefixes", set.others));
        }
        Ok((&set.prefixes, &set.file))
    }
}

/// A prefix with or without host bits, an address, or a range.
fn prefixes(word: &str) -> Option<Vec<IpNet>> {
    if let Some((first, last)) = word.split_once('-') {
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        let found: Vec<IpNet> = range(first, last).collect();
        return (!found.is_empty()).then_some(found);
    }
    super::prefix(word).map(|prefix| vec![prefix])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_found_by_name() {
        let mut sets = Sets::default();
        sets.read(
            "sets",
            "create near hash:net family inet\nadd near 198.18.0.0/16\nadd near 198.19.0.0/16\nadd near 203.0.113.4 timeout 30\n\
             create ports bitmap:port range 0-100\nadd ports 53\ncreate holes hash:net\nadd holes 10.0.0.0/8\nadd holes 10.1.0.0/16 nomatch\n\
             add nobody 192.0.2.1\n",
        );
        let (prefixes, file) = sets.prefixes("near").unwrap();
        let texts: Vec<String> = prefixes.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["198.18.0.0/15", "203.0.113.4/32"]);
        assert_eq!(file, "sets");
        assert!(sets.prefixes("ports").unwrap_err().contains("bitmap:port"));
        assert!(sets.prefixes("holes").unwrap_err().contains("1 of its"));
        assert!(sets.prefixes("nobody").unwrap_err().contains("no file"));
    }
}
