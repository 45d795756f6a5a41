//! Lists of prefixes and domains, in every format.

use std::collections::BTreeSet;
use std::path::Path;

use tproxy_userspace::policy::aggregate::aggregate;
use tproxy_userspace::policy::domain::{Domain, name};
use tproxy_userspace::policy::formats::{self, Entries, Format, Place, Troubles};
use tproxy_userspace::policy::source::Selector;

use crate::bytes::assert_printable;
use crate::{memory, prefixes, rewrite};

/// The most bytes in memory for each byte that is read. The dearest are a range of IPv6 in a dozen letters, which is 254
/// prefixes, and a name of one letter, which is an entry of its own.
const MEMORY_A_BYTE: usize = 2048;
/// The most beside that.
const MEMORY_AT_ALL: usize = 1 << 20;

/// Reads the bytes as this format.
pub fn of_format(format: Format, bytes: &[u8]) {
    // A compressed file may unpack to the limit, whatever its size.
    let unpacks = packed(format, &[]).is_some();
    let selectors: &[Option<&str>] = if format.has_codes() {
        &[None, Some("cn"), Some("!cn"), Some("cn@ads")]
    } else {
        &[None]
    };
    for selector in selectors {
        let selector = selector.map(Selector::new);
        let (result, memory) = memory::most(|| formats::read_as(format, bytes, selector.as_ref()));
        assert!(
            unpacks || memory <= MEMORY_AT_ALL + MEMORY_A_BYTE * bytes.len(),
            "{memory} bytes of memory for a file of {}",
            bytes.len()
        );
        match result {
            Ok(entries) => sound(&entries, Some(format)),
            Err(troubles) => told(&troubles, bytes, usize::MAX),
        }
    }
}

/// Reads the bytes as what a file of this format unpacks to.
pub fn unpacked(format: Format, bytes: &[u8]) {
    let file = packed(format, bytes).expect("it is a format that is compressed");
    let (result, memory) = memory::most(|| formats::read_as(format, &file, None));
    assert!(
        memory <= MEMORY_AT_ALL + MEMORY_A_BYTE * bytes.len(),
        "{memory} bytes of memory for {} unpacked ones",
        bytes.len()
    );
    match result {
        Ok(entries) => sound(&entries, Some(format)),
        Err(troubles) => told(&troubles, &file, bytes.len()),
    }
}

/// Finds the format too.
pub fn any(bytes: &[u8]) {
    for name in ["list", "list.yaml", "list.mmdb"] {
        match formats::read(Path::new(name), bytes, None) {
            Ok(entries) => sound(&entries, None),
            Err(troubles) => told(&troubles, bytes, usize::MAX),
        }
    }
}

/// A file that unpacks to these bytes, without any compression. None for a format that is not compressed.
pub fn packed(format: Format, bytes: &[u8]) -> Option<Vec<u8>> {
    match format {
        Format::Srs => Some([b"SRS\x03", &zlib(bytes)[..]].concat()),
        Format::Mrs => Some(zstd(bytes)),
        Format::Plain
        | Format::GeoIp
        | Format::GeoSite
        | Format::Mmdb
        | Format::Delegated
        | Format::Nft
        | Format::NftJson
        | Format::Ipset
        | Format::SingBox
        | Format::Mihomo
        | Format::Clash
        | Format::Dnsmasq
        | Format::Hosts
        | Format::AdGuard => None,
    }
}

/// zlib with blocks as they are (RFC 1950 section 2.2, RFC 1951 section 3.2.4). A fuzzer has no time to compress.
fn zlib(bytes: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 1 << 10;
    let mut stream = vec![0x78, 0x01];
    let mut blocks = bytes.chunks(BLOCK).peekable();
    loop {
        let block = blocks.next().unwrap_or_default();
        let last = blocks.peek().is_none();
        let length = block.len() as u16;
        stream.push(u8::from(last));
        stream.extend([length.to_le_bytes(), (!length).to_le_bytes()].concat());
        stream.extend(block);
        if last {
            break;
        }
    }
    let (low, high) = bytes.iter().fold((1, 0), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    stream.extend((high << 16 | low).to_be_bytes());
    stream
}

/// A zstd frame of blocks as they are (RFC 8878 section 3.1.1): the size of the contents in eight bytes, no checksum.
fn zstd(bytes: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 1 << 10;
    let mut frame = b"\x28\xb5\x2f\xfd\xe0".to_vec();
    frame.extend((bytes.len() as u64).to_le_bytes());
    let mut blocks = bytes.chunks(BLOCK).peekable();
    loop {
        let block = blocks.next().unwrap_or_default();
        let last = blocks.peek().is_none();
        let header = (block.len() as u32) << 3 | u32::from(last);
        frame.extend(&header.to_le_bytes()[..3]);
        frame.extend(block);
        if last {
            return frame;
        }
    }
}

/// Errors say where, within the file, and can be shown.
fn told(troubles: &Troubles, file: &[u8], unpacked: usize) {
    assert!(!troubles.list.is_empty(), "an error without a reason");
    let lines = file.iter().filter(|byte| **byte == b'\n').count() + 1;
    for trouble in &troubles.list {
        match trouble.place {
            None => {}
            Some(Place::Line(line)) => assert!((1..=lines).contains(&line), "line {line}"),
            Some(Place::Byte(at)) => assert!(at <= file.len(), "byte {at}"),
            Some(Place::UnpackedByte(at)) => assert!(at <= unpacked, "unpacked byte {at}"),
        }
        assert_printable(&trouble.fault.to_string());
    }
}

/// What was read is what entries are, and is read again from what writers make of it.
fn sound(entries: &Entries, format: Option<Format>) {
    for prefix in &entries.prefixes {
        assert_eq!(*prefix, prefix.trunc(), "bits behind the length");
    }
    for domain in &entries.domains {
        match domain {
            Domain::Suffix(text) | Domain::Below(text) | Domain::Full(text) => {
                assert_eq!(name::normalize(text).as_ref(), Ok(text));
                assert_eq!(domain.to_string().parse().as_ref(), Ok(domain));
            }
            Domain::Keyword(text) => {
                assert!(!text.is_empty());
                assert_eq!(text.to_lowercase(), *text);
            }
            Domain::Regex(text) => assert!(!text.is_empty()),
        }
    }
    if entries.prefixes.len() > 512 || entries.domains.len() > 64 {
        return;
    }
    prefixes::check(&entries.prefixes);
    let Some(format) = format else { return };
    for format in [format, Format::Plain] {
        let kept = rewrite::what_it_can_say(format, entries);
        if kept.prefixes.is_empty() && kept.domains.is_empty() {
            continue;
        }
        let file = rewrite::written(format, &kept);
        let selector = format.has_codes().then(|| Selector::new("cn"));
        let again = formats::read_as(format, &file, selector.as_ref())
            .unwrap_or_else(|troubles| panic!("{format:?} of {kept:?}: {troubles:?}"));
        assert_eq!(
            aggregate(&again.prefixes),
            aggregate(&kept.prefixes),
            "{format:?}"
        );
        assert_eq!(meant(&again.domains), meant(&kept.domains), "{format:?}");
    }
}

/// A name and all below it is the same as both apart.
fn meant(domains: &[Domain]) -> BTreeSet<Domain> {
    let parts = |domain: &Domain| match domain {
        Domain::Suffix(text) => vec![Domain::Full(text.clone()), Domain::Below(text.clone())],
        other => vec![other.clone()],
    };
    domains.iter().flat_map(parts).collect()
}
