//! The documentation says what the program does: its links lead somewhere, its examples are configurations, and no key and
//! no word is missing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path, PathBuf},
};

use anyhow::{Context, Result};
use lab::Lab;
use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};
use serde_json::Value;
use tproxy_common::abi::{Origin, Reason};
use tproxy_userspace::{
    config::{Config, Stage},
    data::Outcome,
};

/// The folder of the repository.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The pages of the book, and what stands beside it, by their paths from the root.
fn pages() -> Result<BTreeMap<PathBuf, String>> {
    let mut pages = BTreeMap::new();
    let mut add = |path: PathBuf| -> Result<()> {
        let text = fs::read_to_string(root().join(&path))
            .with_context(|| format!("reading {}", path.display()))?;
        pages.insert(path, text);
        Ok(())
    };
    add("README.md".into())?;
    add("ARCHITECTURE.md".into())?;
    for entry in fs::read_dir(root().join("docs"))? {
        let name = entry?.file_name();
        if Path::new(&name)
            .extension()
            .is_some_and(|ending| ending == "md")
        {
            add(Path::new("docs").join(name))?;
        }
    }
    Ok(pages)
}

fn page(name: &str) -> Result<String> {
    let path = root().join("docs").join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

fn events(text: &str) -> Parser<'_> {
    Parser::new_ext(text, Options::ENABLE_TABLES)
}

/// What links can lead to in a page: its headings as they stand in an address.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut heading: Option<String> = None;
    for event in events(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let heading = heading.take().unwrap_or_default().to_lowercase();
                let kept = heading.chars().filter_map(|c| match c {
                    _ if c.is_whitespace() => Some('-'),
                    _ if c.is_alphanumeric() || matches!(c, '-' | '_') => Some(c),
                    _ => None,
                });
                let plain: String = kept.collect();
                let mut anchor = plain.clone();
                let mut number = 0;
                while !found.insert(anchor) {
                    number += 1;
                    anchor = format!("{plain}-{number}");
                }
            }
            _ => {}
        }
    }
    found
}

/// Where the links and pictures of a page lead.
fn links(text: &str) -> Vec<String> {
    events(text)
        .filter_map(|event| match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                Some(dest_url.into_string())
            }
            _ => None,
        })
        .collect()
}

/// `a/b/../c` as `a/c`; None if it leads out of the repository.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(part) => plain.push(part),
            Component::CurDir => {}
            Component::ParentDir if plain.pop() => {}
            _ => return None,
        }
    }
    Some(plain)
}

/// The links that lead nowhere, each with its page. `exists` tells of files that are no pages.
fn broken(pages: &BTreeMap<PathBuf, String>, exists: impl Fn(&Path) -> bool) -> Vec<String> {
    let mut broken = Vec::new();
    for (path, text) in pages {
        for link in links(text) {
            if link.starts_with("https://") || link.starts_with("http://") {
                continue;
            }
            let (file, anchor) = link
                .split_once('#')
                .map_or((&*link, None), |(file, anchor)| (file, Some(anchor)));
            let target = match file {
                "" => Some(path.clone()),
                file => plain(&path.parent().unwrap_or(Path::new("")).join(file)),
            };
            let why = match target {
                None => Some("leads out of the repository"),
                // What is outside of the book has no page in it.
                Some(target) if path.starts_with("docs") && !target.starts_with("docs") => {
                    Some("leads out of the book")
                }
                Some(target) => match (pages.get(&target), anchor) {
                    (Some(text), Some(anchor)) if !anchors(text).contains(anchor) => {
                        Some("there is no such heading")
                    }
                    (None, _) if !exists(&target) => Some("there is no such file"),
                    _ => None,
                },
            };
            if let Some(why) = why {
                broken.push(format!("{}: {link}: {why}", path.display()));
            }
        }
    }
    broken
}

/// The rows of a page's tables, each with the heading that it stands below.
fn rows(text: &str) -> Vec<(String, Vec<String>)> {
    let mut rows = Vec::new();
    let mut heading = String::new();
    let (mut in_heading, mut cell) = (false, None::<String>);
    let mut row = Vec::new();
    for event in events(text) {
        match event {
            Event::Start(Tag::Heading { .. }) => {
                heading.clear();
                in_heading = true;
            }
            Event::End(TagEnd::Heading(_)) => in_heading = false,
            Event::Start(Tag::TableCell) => cell = Some(String::new()),
            Event::End(TagEnd::TableCell) => row.extend(cell.take()),
            Event::End(TagEnd::TableRow) => rows.push((heading.clone(), std::mem::take(&mut row))),
            Event::End(TagEnd::TableHead) => row.clear(),
            Event::Text(text) if in_heading => heading.push_str(&text),
            Event::Code(text) if in_heading => heading.push_str(&text),
            Event::Text(text) => {
                if let Some(cell) = &mut cell {
                    cell.push_str(&text);
                }
            }
            Event::Code(text) => {
                if let Some(cell) = &mut cell {
                    cell.push_str(&format!("`{text}`"));
                }
            }
            _ => {}
        }
    }
    rows
}

/// What stands between a cell's first two backquotes.
fn code(cell: &str) -> Option<&str> {
    cell.split('`').nth(1)
}

#[test]
fn no_link_leads_nowhere() -> Result<()> {
    let broken = broken(&pages()?, |path| root().join(path).exists());
    assert!(broken.is_empty(), "{broken:#?}");
    Ok(())
}

#[test]
fn broken_links_are_found() {
    let page = |path: &str, text: &str| (PathBuf::from(path), text.to_owned());
    let pages = BTreeMap::from([
        page(
            "README.md",
            "[a](docs/a.md) [gone](docs/gone.md) [there](LICENSE) [far](https://example.com/x#y)",
        ),
        page(
            "docs/a.md",
            "# One `two`, three\n## Twice\n## Twice\n[own](#one-two-three) [second](#twice-1) [third](#twice-2) [b](b.md#x)\n\
             ![picture](x.png) [out](../README.md) [further](../../x)\n```text\n[no](link.md)\n```\n",
        ),
        page("docs/b.md", "no heading"),
    ]);
    let found = broken(&pages, |path| path == Path::new("LICENSE"));
    assert_eq!(
        found,
        [
            "README.md: docs/gone.md: there is no such file",
            "docs/a.md: #twice-2: there is no such heading",
            "docs/a.md: b.md#x: there is no such heading",
            "docs/a.md: x.png: there is no such file",
            "docs/a.md: ../README.md: leads out of the book",
            "docs/a.md: ../../x: leads out of the repository",
        ]
    );
}

#[test]
fn the_summary_has_every_page_once() -> Result<()> {
    let mut named = links(&page("SUMMARY.md")?);
    named.sort();
    let mut there: Vec<String> = pages()?
        .into_keys()
        .filter_map(|path| Some(path.strip_prefix("docs").ok()?.to_str()?.to_owned()))
        .filter(|name| name != "SUMMARY.md")
        .collect();
    there.sort();
    assert_eq!(named, there);
    Ok(())
}

#[test]
fn every_example_is_a_configuration() -> Result<()> {
    let mut examples = 0;
    for (path, text) in pages()? {
        if !path.starts_with("docs") {
            continue;
        }
        let blocks = text.split("```toml\n").skip(1);
        for block in blocks.filter_map(|rest| rest.split("```").next()) {
            if let Err(error) = Config::parse(block, &path) {
                panic!("{}: {error}\n{block}", path.display());
            }
            examples += 1;
        }
    }
    assert!(examples >= 15, "{examples}");
    Ok(())
}

/// What the defaults of a key look like in TOML, if it has some that can be shown.
fn default(config: &toml_like::Table, table: &str, key: &str) -> Option<String> {
    config.get(&(table.to_owned(), key.to_owned())).cloned()
}

/// The lines `key = value` of what `Config` prints, by table.
mod toml_like {
    use std::collections::BTreeMap;

    pub type Table = BTreeMap<(String, String), String>;

    pub fn read(text: &str) -> Table {
        let mut table = String::new();
        let mut found = Table::new();
        for line in text.lines() {
            if line.starts_with('[') {
                line.clone_into(&mut table);
            } else if let Some((key, value)) = line.split_once(" = ") {
                found.insert((table.clone(), key.to_owned()), value.to_owned());
            }
        }
        found
    }
}

#[test]
fn the_page_of_the_configuration_has_every_key_and_its_default() -> Result<()> {
    let keys = Config::keys();
    let is_table = |key: &str| {
        let names = [format!("[{key}]"), format!("[[{key}]]")];
        keys.iter().any(|(table, _)| names.contains(table))
    };
    let known: BTreeSet<(String, String)> = keys
        .iter()
        // Tables have headings.
        .filter(|(table, key)| !table.is_empty() || !is_table(key))
        .map(|(table, key)| (table.clone(), (*key).to_owned()))
        .collect();
    let tables: BTreeSet<&String> = known.iter().map(|(table, _)| table).collect();
    assert!(tables.len() >= 13 && known.len() >= 50, "{known:?}");

    let text = page("configuration.md")?;
    let preset = Config {
        dns: Config::parse("[dns]\nproxy = [\"192.0.2.1\"]", Path::new("x"))?.dns,
        ..Config::preset(Stage::Two)
    };
    let defaults = toml_like::read(&preset.to_string());
    let mut told = BTreeSet::new();
    for (heading, row) in rows(&text) {
        let table = if heading.starts_with('[') {
            heading.clone()
        } else {
            String::new()
        };
        let Some(key) = row.first().and_then(|cell| code(cell)) else {
            continue;
        };
        let place = (table.clone(), key.to_owned());
        assert!(told.insert(place.clone()), "{place:?} stands twice");
        let required = row.get(2).is_some_and(|cell| cell == "required");
        // Those of tables that there may be several of have no preset.
        if let Some(value) = default(&defaults, &table, key)
            && !table.starts_with("[[")
            && !required
        {
            let shown = row.get(2).and_then(|cell| code(cell));
            assert_eq!(shown, Some(&*value), "the default of {place:?}");
        }
    }
    let missing: Vec<_> = known.difference(&told).collect();
    let surplus: Vec<_> = told.difference(&known).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "docs/configuration.md: missing {missing:?}, not known to the program {surplus:?}"
    );
    Ok(())
}

#[test]
fn every_word_is_explained() -> Result<()> {
    let text = page("words.md")?;
    let explained: BTreeSet<String> = rows(&text)
        .iter()
        .flat_map(|(_, row)| {
            row.first()
                .map(|cell| cell.split('`').map(str::to_owned).collect::<Vec<_>>())
        })
        .flatten()
        .collect();
    let reasons = Reason::ALL.iter().map(|reason| reason.word());
    let outcomes = Outcome::ALL.iter().map(|outcome| outcome.word());
    let missing: Vec<&str> = reasons
        .chain(outcomes)
        .filter(|word| !explained.contains(*word))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/words.md says nothing of {missing:?}"
    );
    for origin in Origin::ALL {
        assert!(
            text.contains(&format!("`{}`", origin.word())),
            "{}",
            origin.word()
        );
    }
    // Failures have something to look at.
    let trouble = page("troubleshooting.md")?;
    let outcomes = [
        "connect_refused",
        "connect_timeout",
        "proxy_tls",
        "proxy_auth",
        "proxy_protocol",
        "loop",
    ];
    assert!(
        outcomes
            .iter()
            .all(|word| trouble.contains(&format!("`{word}`")))
    );
    Ok(())
}

#[test]
fn every_finding_of_doctor_is_on_the_page_of_troubles() -> Result<()> {
    let lab = Lab::new()?;
    let output = lab.tproxy_run(&["doctor", "--lan", lab.lan(), "--json"])?;
    let report: Value = output.json()?;
    let trouble = page("troubleshooting.md")?;
    let checks: BTreeSet<&str> = report["findings"]
        .as_array()
        .context("findings")?
        .iter()
        .filter_map(|finding| finding["check"].as_str())
        .collect();
    assert!(checks.len() >= 9, "{checks:?}");
    let missing: Vec<_> = checks
        .iter()
        .filter(|check| !trouble.contains(&format!("`{check}`")))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/troubleshooting.md says nothing of {missing:?}"
    );
    Ok(())
}
