//! Which format a file has: from its content first, then from its name.

use std::path::Path;

use super::reading::{Trouble, text};
use super::{Fault, Format, clash, geodat, ipset, mmdb, mrs, nft, srs};
use crate::policy::domain::name;

/// How much of a file is looked at, in bytes.
const LOOKED_AT: usize = 64 << 10;

pub(super) fn detect(name: &Path, bytes: &[u8]) -> Result<Format, Trouble> {
    if bytes.starts_with(srs::MAGIC) {
        return Ok(Format::Srs);
    }
    if bytes.starts_with(mrs::ZSTD_MAGIC) {
        return Ok(Format::Mrs);
    }
    for (magic, kind) in [
        (&b"\x1f\x8b"[..], "gzip"),
        (b"PK\x03\x04", "zip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"BZh", "bzip2"),
    ] {
        if bytes.starts_with(magic) {
            return Err(Trouble::whole(Fault::Archive(kind)));
        }
    }
    let head = &bytes[..bytes.len().min(LOOKED_AT)];
    if mmdb::metadata(bytes).is_some() {
        return Ok(Format::Mmdb);
    }
    let extension = name.extension().unwrap_or_default().to_ascii_lowercase();
    let extension = extension.to_str().unwrap_or_default();
    let control = head
        .iter()
        .any(|byte| byte.is_ascii_control() && !byte.is_ascii_whitespace());
    if !control {
        return of_text(text(bytes)?, extension);
    }
    if let Some(kind) = geodat::kind(bytes) {
        return Ok(kind);
    }
    let no_text = std::str::from_utf8(head).is_err_and(|error| error.error_len().is_some());
    match extension {
        _ if !no_text && !head.contains(&0) => {}
        // A database that is cut off is told as such.
        "mmdb" | "metadb" | "db" => return Ok(Format::Mmdb),
        // Text of two bytes a letter.
        _ if bytes.starts_with(b"\xff\xfe") => return Err(Trouble::line(1, Fault::NotText)),
        _ => return Err(Trouble::whole(Fault::Unknown)),
    }
    of_text(text(bytes)?, extension)
}

fn of_text(text: &str, extension: &str) -> Result<Format, Trouble> {
    match text.trim_start().as_bytes().first() {
        Some(b'{') if text.contains("\"nftables\"") => return Ok(Format::NftJson),
        Some(b'{') => return Ok(Format::SingBox),
        _ => {}
    }
    if let Some(format) = text.lines().find_map(of_line) {
        // In mihomo's text a name without `+.` is the name alone, so one such line decides for all.
        let mihomo =
            format == Format::Plain && text.lines().any(|line| line.trim_start().starts_with("+."));
        return Ok(if mihomo { Format::Mihomo } else { format });
    }
    Ok(match extension {
        "yaml" | "yml" => Format::Clash,
        "json" => Format::SingBox,
        _ => Format::Plain,
    })
}

/// What the first line says that is more than a comment.
fn of_line(line: &str) -> Option<Format> {
    let line = line.trim();
    // Comments of all formats; `!` is one of filter lists alone.
    if line.is_empty() || line.starts_with(['#', ';']) || line.starts_with("//") {
        return None;
    }
    let mut words = line.split_whitespace();
    let first = words.next().unwrap_or("");
    let lower = first.to_ascii_lowercase();
    let fields = line.split('|').count();
    Some(
        if line.starts_with('!')
            || line.starts_with("||")
            || line.starts_with("@@")
            || lower.starts_with("[adblock")
        {
            Format::AdGuard
        } else if fields >= 6 {
            Format::Delegated
        } else if clash::opens(line) {
            Format::Clash
        } else if ipset::opens(line) {
            Format::Ipset
        } else if nft::opens(line) {
            Format::Nft
        } else if super::dnsmasq::opens(line) {
            Format::Dnsmasq
        } else if first.parse::<std::net::IpAddr>().is_ok()
            && words
                .next()
                .is_some_and(|word| name::normalize(word).is_ok())
        {
            Format::Hosts
        } else {
            Format::Plain
        },
    )
}
