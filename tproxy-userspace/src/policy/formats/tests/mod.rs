mod binary;
mod foreign;
mod text;
mod write;

use std::path::Path;

use ipnet::IpNet;

use super::*;
use crate::policy::prefix;

/// Reads a file whose format is found from its content.
fn entries(bytes: impl AsRef<[u8]>, code: Option<&str>) -> Result<Entries, Troubles> {
    read(
        Path::new("list"),
        bytes.as_ref(),
        code.map(Selector::new).as_ref(),
    )
}

/// The prefixes and the domains of a list, as text.
fn texts(bytes: impl AsRef<[u8]>, code: Option<&str>) -> (String, String) {
    let entries = entries(bytes, code).unwrap_or_else(|troubles| panic!("{troubles:?}"));
    let prefixes: Vec<String> = entries.prefixes.iter().map(ToString::to_string).collect();
    let domains: Vec<String> = entries.domains.iter().map(ToString::to_string).collect();
    (prefixes.join(" "), domains.join(" "))
}

fn passed_over(bytes: impl AsRef<[u8]>) -> Vec<(&'static str, usize)> {
    let entries = entries(bytes, None).unwrap_or_else(|troubles| panic!("{troubles:?}"));
    entries
        .passed_over
        .iter()
        .map(|kind| (kind.what, kind.count))
        .collect()
}

/// The only thing that is wrong, as a message without the file's name.
fn refused(bytes: impl AsRef<[u8]>, code: Option<&str>) -> String {
    let troubles = entries(bytes, code).expect_err("accepted");
    let [trouble] = &troubles.list[..] else {
        panic!("{troubles:?}")
    };
    let place = trouble
        .place
        .map_or_else(String::new, |place| place.to_string());
    format!("{place}: {}", trouble.fault)
}

fn nets(texts: &[&str]) -> Vec<IpNet> {
    texts
        .iter()
        .map(|text| prefix::parse(text).unwrap())
        .collect()
}
