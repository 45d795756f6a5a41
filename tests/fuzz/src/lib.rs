//! What every parser of foreign bytes has to keep to, whatever the bytes: one [`Target`] for each.
//!
//! A target panics when a parser breaks its word. That is more than not to panic: what is read and written again is
//! the same, places of errors lie within the input, memory has a bound, a sniffer that is fed in pieces finds the same.
//!
//! `cargo xtask fuzz` builds the program `fuzz` with LLVM's libFuzzer, which looks for such bytes. The ordinary tests run
//! every seed of `corpus/` through its target; bytes that once broke a parser are kept there.

#[cfg(feature = "libfuzzer")]
use libfuzzer_sys as _;

mod api;
mod bytes;
mod configuration;
mod connect;
mod dns;
mod import;
mod lists;
pub mod memory;
mod names;
mod packets;
mod prefixes;
mod protocols;
mod rewrite;
#[cfg(test)]
mod seeds;
mod sniff;
mod socks;
#[cfg_attr(not(test), expect(dead_code, reason = "the seeds use the rest"))]
#[path = "../../../tproxy-userspace/src/policy/formats/tests/write.rs"]
mod write;

use tproxy_userspace::policy::formats::Format;

/// Where the seeds are: a folder for each target.
pub const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/corpus");

/// A parser, and what is asked of it.
#[derive(Clone, Copy, Debug)]
pub struct Target(Which);

#[derive(Clone, Copy, Debug)]
enum Which {
    List(Format),
    /// What a file of this format unpacks to: chance seldom passes a compression.
    Unpacked(Format),
    Other(&'static str, Check),
}

/// Gives bytes to a parser and panics when it breaks its word.
type Check = fn(&[u8]);

const OTHERS: [(&str, Check); 20] = [
    ("api", api::words),
    ("config", configuration::text),
    ("connect", connect::replies),
    ("dns-query", dns::query),
    ("dns-response", dns::response),
    ("import-ipset", import::sets),
    ("import-iptables", import::rules),
    ("import-xray", import::configuration),
    ("list-any", lists::any),
    ("names", names::set),
    ("packets", packets::frame),
    ("outbound-urls", protocols::urls),
    ("prefixes", prefixes::arithmetic),
    ("shadowsocks", protocols::shadowsocks),
    ("sniff-quic", sniff::quic_datagrams),
    ("sniff-quic-frames", sniff::quic_frames),
    ("sniff-tcp", sniff::tcp),
    ("sniff-tls", sniff::tls),
    ("socks", socks::replies),
    ("trojan", protocols::trojan),
];

impl Target {
    /// All of them, a list format with one or two each.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let lists = Format::ALL.into_iter().flat_map(|format| {
            let unpacked = lists::packed(format, &[]).map(|_| Which::Unpacked(format));
            [Some(Which::List(format)), unpacked]
        });
        let others = OTHERS.map(|(name, check)| Which::Other(name, check));
        lists.flatten().chain(others).map(Self).collect()
    }

    /// Its name, and that of its folder of seeds.
    #[must_use]
    pub fn name(&self) -> String {
        match self.0 {
            Which::List(format) => format!("list-{format:?}").to_lowercase(),
            Which::Unpacked(format) => format!("list-{format:?}-unpacked").to_lowercase(),
            Which::Other(name, _) => name.to_owned(),
        }
    }

    /// Gives these bytes to the parser.
    ///
    /// # Panics
    /// It breaks its word.
    pub fn check(&self, bytes: &[u8]) {
        match self.0 {
            Which::List(format) => lists::of_format(format, bytes),
            Which::Unpacked(format) => lists::unpacked(format, bytes),
            Which::Other(_, check) => check(bytes),
        }
    }
}
