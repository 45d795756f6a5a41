//! Malformed and odd frames, each a file that says what it is, what the parser makes of it and what
//! becomes of it.
//!
//! A file has a line of `#` words, `packet:` with what was understood, `verdict:` with what follows
//! (`-` where there are no addresses to decide on), and the bytes of the frame in hexadecimal.

use std::fs;
use std::path::{Path, PathBuf};

use tproxy_common::abi::{FragmentFate, Reason, Settings};
use tproxy_common::packet::{Addresses, Packet, Transport, Unparsed, parse_frame};
use tproxy_common::verdict::{Connection, Facts, Locality, Target, Verdict, decide};

/// A gateway 192.0.2.1/24 that bypasses 2001:db8:b::/48, lets everyone in and holds no connection.
struct Gateway;

impl Facts for Gateway {
    fn settings(&self) -> Settings {
        Settings::default()
    }

    fn locality(&self, addresses: &Addresses) -> Locality {
        let Addresses::V4 { destination, .. } = addresses else {
            return Locality::Foreign;
        };
        match destination.to_ne_bytes() {
            [192, 0, 2, 1] => Locality::Address,
            [192, 0, 2, _] => Locality::Subnet,
            _ => Locality::Foreign,
        }
    }

    fn bypassed(&self, addresses: &Addresses) -> bool {
        let prefix = [0x20, 0x01, 0x0d, 0xb8, 0, 0xb];
        matches!(addresses, Addresses::V6 { destination, .. }
            if destination.map(u32::to_ne_bytes).as_flattened().starts_with(&prefix))
    }

    fn admitted(&self, _: &Addresses) -> bool {
        true
    }

    fn connection(&self, _: &Packet) -> Connection {
        Connection::Unknown
    }

    fn fragment(&self, _: &Packet) -> Option<FragmentFate> {
        None
    }
}

fn packet_words(parsed: Result<Packet, Unparsed>) -> String {
    let packet = match parsed {
        Ok(packet) => packet,
        Err(Unparsed::NotIp) => return "not_ip".to_owned(),
        Err(Unparsed::Malformed) => return "malformed".to_owned(),
    };
    let transport = match packet.transport {
        Transport::Tcp { opens: true, .. } => "tcp_opens",
        Transport::Tcp { opens: false, .. } => "tcp",
        Transport::Udp { .. } => "udp",
        Transport::LaterFragment { tcp: true } => "later_tcp",
        Transport::LaterFragment { tcp: false } => "later_udp",
        Transport::Other => "other",
        Transport::CutOff => "cut_off",
        Transport::Buried => "buried",
    };
    let fragment = if packet.fragment.is_one() {
        " fragment"
    } else {
        ""
    };
    format!("{transport}{fragment}")
}

fn verdict_words(parsed: Result<Packet, Unparsed>) -> String {
    let Ok(packet) = parsed else {
        return "-".to_owned();
    };
    match decide(&packet, &Gateway) {
        Verdict::Pass(reason) => format!("pass {}", reason.word()),
        Verdict::Drop(reason) => format!("drop {}", reason.word()),
        Verdict::Steer(Target::Listener) => "steer listener".to_owned(),
        Verdict::Steer(Target::Resolver | Target::OwnResolver) => "steer resolver".to_owned(),
        Verdict::Steer(Target::Connection) => "steer connection".to_owned(),
        Verdict::Steer(Target::Gone) => "steer gone".to_owned(),
        Verdict::Steer(Target::Reassembly) => "steer reassembly".to_owned(),
    }
}

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let mut files = fs::read_dir(folder)
        .expect("the corpus is there")
        .map(|entry| entry.expect("a folder that can be read").path())
        .collect::<Vec<_>>();
    files.sort();
    files
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name))
}

/// The lines that are neither words nor fields.
fn frame(text: &str) -> Vec<u8> {
    let digits = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.contains(':'))
        .flat_map(str::chars)
        .filter(|digit| !digit.is_whitespace())
        .map(|digit| digit.to_digit(16).expect("a hexadecimal digit"))
        .collect::<Vec<_>>();
    assert_eq!(digits.len() % 2, 0, "half a byte is missing");
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] << 4 | pair[1]).expect("two digits"))
        .collect()
}

#[test]
fn every_frame_of_the_corpus_is_judged_as_its_file_says() {
    let files = files();
    assert!(files.len() >= 50, "only {} files were found", files.len());
    let mut wrong = Vec::new();
    for file in &files {
        let name = file.file_stem().unwrap_or_default().display().to_string();
        let text = fs::read_to_string(file).expect("a text");
        let packet = field(&text, "packet: ").expect("a line `packet:`");
        let verdict = field(&text, "verdict: ").expect("a line `verdict:`");
        let parsed = parse_frame(frame(&text).as_slice());
        for (expected, found) in [
            (packet, packet_words(parsed)),
            (verdict, verdict_words(parsed)),
        ] {
            if expected != found {
                wrong.push(format!("{name}: {expected} was expected, it is {found}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_refusal_has_a_frame_in_the_corpus() {
    let texts = files()
        .iter()
        .map(|file| fs::read_to_string(file).expect("a text"))
        .collect::<Vec<_>>();
    for reason in [
        Reason::MalformedTransport,
        Reason::LongExtensionChain,
        Reason::LoneFragment,
    ] {
        let verdict = format!("drop {}", reason.word());
        assert!(
            texts
                .iter()
                .any(|text| field(text, "verdict: ") == Some(&verdict)),
            "none is dropped as {}",
            reason.word()
        );
    }
}
