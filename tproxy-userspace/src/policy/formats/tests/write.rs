//! Writers of the binary formats, made from their descriptions and not from the readers.

use std::io::Write as _;
use std::net::IpAddr;

use ipnet::IpNet;

pub fn varint(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A length-delimited field of Protocol Buffers.
pub fn field(number: u8, contents: &[u8]) -> Vec<u8> {
    [
        &[number << 3 | 2][..],
        &varint(contents.len() as u64),
        contents,
    ]
    .concat()
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// One list of a geoip.dat.
pub fn geoip(code: &str, prefixes: &[IpNet], inverse: bool) -> Vec<u8> {
    let mut list = field(1, code.as_bytes());
    for prefix in prefixes {
        let mut cidr = field(1, &octets(prefix.network()));
        // As proto3 has it, zero is left out.
        if prefix.prefix_len() > 0 {
            cidr.push(2 << 3);
            cidr.extend(varint(prefix.prefix_len().into()));
        }
        list.extend(field(2, &cidr));
    }
    if inverse {
        list.extend([3 << 3, 1]);
    }
    field(1, &list)
}

/// One list of a geosite.dat: type, value, attributes.
pub fn geosite(code: &str, domains: &[(u8, &str, &[&str])]) -> Vec<u8> {
    let mut list = field(1, code.as_bytes());
    for (kind, value, attributes) in domains {
        let mut domain = Vec::new();
        if *kind != 0 {
            domain.extend([1 << 3, *kind]);
        }
        domain.extend(field(2, value.as_bytes()));
        for key in *attributes {
            domain.extend(field(
                3,
                &[field(1, key.as_bytes()), vec![2 << 3, 1]].concat(),
            ));
        }
        list.extend(field(2, &domain));
    }
    field(1, &list)
}

/// The trie of these keys, level by level: leaves, bits, labels.
pub fn trie(keys: &[String]) -> (Vec<u64>, Vec<u64>, Vec<u8>) {
    fn set(words: &mut Vec<u64>, index: usize, value: bool) {
        words.resize(words.len().max(index / 64 + 1), 0);
        words[index / 64] |= u64::from(value) << (index % 64);
    }
    let keys: std::collections::BTreeSet<&[u8]> = keys.iter().map(String::as_bytes).collect();
    let (mut leaves, mut bits, mut labels, mut position) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut level = std::collections::VecDeque::from([Vec::new()]);
    let mut number = 0;
    while let Some(node) = level.pop_front() {
        if keys.contains(&node[..]) {
            set(&mut leaves, number, true);
        }
        let children: std::collections::BTreeSet<u8> = keys
            .iter()
            .filter_map(|key| key.strip_prefix(&node[..])?.first().copied())
            .collect();
        for child in children {
            set(&mut bits, position, false);
            position += 1;
            labels.push(child);
            level.push_back([&node[..], &[child]].concat());
        }
        set(&mut bits, position, true);
        position += 1;
        number += 1;
    }
    (leaves, bits, labels)
}

pub fn reversed(name: &str) -> String {
    name.chars().rev().collect()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// The item of an .srs with names; the marks are in the keys.
pub fn srs_names(keys: &[String]) -> Vec<u8> {
    let keys: Vec<String> = keys.iter().map(|key| reversed(key)).collect();
    let (leaves, bits, labels) = trie(&keys);
    [
        vec![2, 0],
        varint(leaves.len() as u64),
        words(&leaves),
        varint(bits.len() as u64),
        words(&bits),
        varint(labels.len() as u64),
        labels,
    ]
    .concat()
}

/// The item with addresses, or with those of the source.
pub fn srs_addresses(item: u8, ranges: &[(IpAddr, IpAddr)]) -> Vec<u8> {
    let mut bytes = vec![item, 1];
    bytes.extend((ranges.len() as u64).to_be_bytes());
    for (first, last) in ranges {
        for address in [first, last] {
            let octets = octets(*address);
            bytes.push(octets.len() as u8);
            bytes.extend(octets);
        }
    }
    bytes
}

pub fn srs_texts(item: u8, texts: &[&str]) -> Vec<u8> {
    let mut bytes = vec![item];
    bytes.extend(varint(texts.len() as u64));
    for text in texts {
        bytes.extend(varint(text.len() as u64));
        bytes.extend(text.as_bytes());
    }
    bytes
}

pub fn srs_rule(items: &[Vec<u8>], inverted: bool) -> Vec<u8> {
    [&[0][..], &items.concat(), &[0xff, u8::from(inverted)]].concat()
}

pub fn srs_logical(mode: u8, rules: &[Vec<u8>]) -> Vec<u8> {
    [
        &[1, mode][..],
        &varint(rules.len() as u64),
        &rules.concat(),
        &[0],
    ]
    .concat()
}

pub fn srs(version: u8, rules: &[Vec<u8>]) -> Vec<u8> {
    let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    zlib.write_all(&[varint(rules.len() as u64), rules.concat()].concat())
        .unwrap();
    [b"SRS", &[version][..], &zlib.finish().unwrap()].concat()
}

fn mrs_head(behaviour: u8, count: usize) -> Vec<u8> {
    [
        b"MRS\x01",
        &[behaviour][..],
        &(count as u64).to_be_bytes(),
        &0_u64.to_be_bytes(),
        &[1],
    ]
    .concat()
}

/// What an .mrs of names unpacks to.
pub fn mrs_names(names: &[String]) -> Vec<u8> {
    let keys: Vec<String> = names.iter().map(|name| reversed(name)).collect();
    let (leaves, bits, labels) = trie(&keys);
    let count = |count: usize| (count as u64).to_be_bytes().to_vec();
    [
        mrs_head(0, names.len()),
        count(leaves.len()),
        words(&leaves),
        count(bits.len()),
        words(&bits),
        count(labels.len()),
        labels,
    ]
    .concat()
}

/// What an .mrs of addresses unpacks to.
pub fn mrs_addresses(ranges: &[(IpAddr, IpAddr)]) -> Vec<u8> {
    let mut bytes = mrs_head(1, ranges.len());
    bytes.extend((ranges.len() as u64).to_be_bytes());
    for address in ranges.iter().flat_map(|(first, last)| [first, last]) {
        bytes.extend(match address {
            IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            IpAddr::V6(address) => address.octets(),
        });
    }
    bytes
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

/// A value of a MaxMind database.
pub enum Value {
    Text(&'static str),
    Short(u16),
    Number(u32),
    Long(u64),
    Map(Vec<(&'static str, Self)>),
    Array(Vec<Self>),
    /// To what is at this place of the data.
    Pointer(usize),
}

impl Value {
    pub fn bytes(&self) -> Vec<u8> {
        // Types beyond seven have a byte of their own.
        let control = |kind: u8, size: usize| {
            assert!(size < 29, "longer ones are not needed here");
            if kind > 7 {
                vec![size as u8, kind - 7]
            } else {
                vec![kind << 5 | size as u8]
            }
        };
        match self {
            Self::Text(text) => [control(2, text.len()), text.as_bytes().to_vec()].concat(),
            Self::Number(number) => [control(6, 4), number.to_be_bytes().to_vec()].concat(),
            Self::Short(number) => [control(5, 2), number.to_be_bytes().to_vec()].concat(),
            Self::Long(number) => [control(9, 8), number.to_be_bytes().to_vec()].concat(),
            Self::Map(pairs) => {
                let pairs = pairs
                    .iter()
                    .map(|(key, value)| [Self::Text(key).bytes(), value.bytes()].concat());
                [control(7, pairs.len()), pairs.collect::<Vec<_>>().concat()].concat()
            }
            Self::Array(values) => {
                let bytes: Vec<_> = values.iter().map(Self::bytes).collect();
                [control(11, values.len()), bytes.concat()].concat()
            }
            Self::Pointer(at) => vec![1 << 5 | (at >> 8) as u8, *at as u8],
        }
    }
}

/// A MaxMind database. A prefix has the number of its record; `aliases` has the nodes of the addresses of IPv4 once more under
/// 2002::/16.
pub fn mmdb(
    bits: usize,
    version: u16,
    networks: &[(IpNet, usize)],
    records: &[Value],
    aliases: bool,
) -> Vec<u8> {
    const NONE: usize = usize::MAX;
    // Children of each node: another node, or a record (counted down from the top).
    let mut nodes = vec![[NONE; 2]];
    let leaf = |record: usize| usize::MAX - 1 - record;
    let insert = |nodes: &mut Vec<[usize; 2]>, address: u128, length: u8, target: usize| {
        let mut node = 0;
        for depth in 0..length {
            let side = (address >> (127 - depth) & 1) as usize;
            if depth + 1 == length {
                nodes[node][side] = target;
            } else {
                if nodes[node][side] == NONE {
                    nodes.push([NONE; 2]);
                    nodes[node][side] = nodes.len() - 1;
                }
                node = nodes[node][side];
            }
        }
    };
    for (prefix, record) in networks {
        let (address, length) = match prefix {
            IpNet::V4(prefix) if version == 4 => (
                u128::from(u32::from(prefix.network())) << 96,
                prefix.prefix_len(),
            ),
            IpNet::V4(prefix) => (u32::from(prefix.network()).into(), 96 + prefix.prefix_len()),
            IpNet::V6(prefix) => (prefix.network().into(), prefix.prefix_len()),
        };
        insert(&mut nodes, address, length, leaf(*record));
    }
    if aliases {
        let start = (0..96).fold(0, |node, _| nodes[node][0]);
        insert(&mut nodes, 0x2002 << 112, 16, start);
    }
    let mut data = Vec::new();
    let places: Vec<usize> = records
        .iter()
        .map(|record| {
            let place = data.len();
            data.extend(record.bytes());
            place
        })
        .collect();
    let count = nodes.len();
    let number = |child: usize| match child {
        NONE => count,
        node if node < count => node,
        record => count + 16 + places[usize::MAX - 1 - record],
    };
    let mut bytes = Vec::new();
    for [left, right] in nodes
        .iter()
        .map(|node| node.map(|child| number(child) as u32))
    {
        let (l, r) = (left.to_be_bytes(), right.to_be_bytes());
        match bits {
            24 => bytes.extend([l[1], l[2], l[3], r[1], r[2], r[3]]),
            28 => bytes.extend([l[1], l[2], l[3], l[0] << 4 | r[0], r[1], r[2], r[3]]),
            _ => bytes.extend([l, r].concat()),
        }
    }
    bytes.extend([0; 16]);
    bytes.extend(data);
    bytes.extend(b"\xab\xcd\xefMaxMind.com");
    let metadata = Value::Map(vec![
        ("binary_format_major_version", Value::Short(2)),
        ("binary_format_minor_version", Value::Short(0)),
        ("build_epoch", Value::Long(0)),
        ("database_type", Value::Text("sing-geoip")),
        ("description", Value::Map(vec![])),
        ("ip_version", Value::Short(version)),
        ("languages", Value::Array(vec![])),
        ("node_count", Value::Number(count as u32)),
        ("record_size", Value::Short(bits as u16)),
    ]);
    bytes.extend(metadata.bytes());
    bytes
}
