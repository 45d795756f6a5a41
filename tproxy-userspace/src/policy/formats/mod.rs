//! One reader for all formats that lists of prefixes and domains come in.
//!
//! A format is found from the content, and from the file's name only where the content leaves it open.
//! The readers take bytes and do no input or output. Foreign bytes may be anything: nothing here
//! panics, takes more memory than a small multiple of its input, or loops without getting on.

mod adguard;
mod clash;
mod cursor;
mod delegated;
mod detect;
mod dnsmasq;
mod fault;
mod geodat;
mod hosts;
mod ipset;
mod mmdb;
mod mrs;
mod nft;
mod plain;
mod reading;
mod singbox;
mod srs;
mod trie;
mod unpack;

#[cfg(test)]
mod tests;

use std::fmt;
use std::path::Path;

pub use self::fault::{EntryError, Fault, Place};
pub(super) use self::reading::MOST_PREFIXES;
use self::reading::Reading;
pub use self::reading::{Entries, PassedOver, Trouble, Troubles};
use super::aggregate;
use super::source::Selector;

/// A format of list files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// One prefix, address, range or domain a line.
    Plain,
    /// v2ray's `geoip.dat`.
    GeoIp,
    /// v2ray's `geosite.dat`.
    GeoSite,
    /// A MaxMind database of countries or autonomous systems, sing-geoip, metadb.
    Mmdb,
    /// The table of delegations of a regional Internet registry.
    Delegated,
    /// A script or dump of nft.
    Nft,
    /// `nft --json`.
    NftJson,
    /// A dump of ipset.
    Ipset,
    /// sing-box's binary rule set.
    Srs,
    /// sing-box's rule set in JSON.
    SingBox,
    /// mihomo's binary rule set.
    Mrs,
    /// mihomo's text of domains, in which a name without `+.` is the name alone.
    Mihomo,
    /// Lines of rules as Clash and Surge have them, alone or as YAML.
    Clash,
    /// Configuration of dnsmasq.
    Dnsmasq,
    /// A table of hosts.
    Hosts,
    /// A filter list in the syntax of AdGuard and its kin.
    AdGuard,
}

impl Format {
    /// All of them.
    pub const ALL: [Self; 16] = [
        Self::Plain,
        Self::GeoIp,
        Self::GeoSite,
        Self::Mmdb,
        Self::Delegated,
        Self::Nft,
        Self::NftJson,
        Self::Ipset,
        Self::Srs,
        Self::SingBox,
        Self::Mrs,
        Self::Mihomo,
        Self::Clash,
        Self::Dnsmasq,
        Self::Hosts,
        Self::AdGuard,
    ];

    /// Does a file of this format hold many lists, so that one has to be chosen by its code?
    #[must_use]
    pub fn has_codes(self) -> bool {
        matches!(
            self,
            Self::GeoIp | Self::GeoSite | Self::Mmdb | Self::Delegated
        )
    }
}

/// With an article: "a plain list".
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain => "a plain list",
            Self::GeoIp => "a geoip.dat",
            Self::GeoSite => "a geosite.dat",
            Self::Mmdb => "a MaxMind database",
            Self::Delegated => "a registry's table of delegations",
            Self::Nft | Self::NftJson => "an nft set",
            Self::Ipset => "an ipset dump",
            Self::Srs | Self::SingBox => "a sing-box rule set",
            Self::Mrs | Self::Mihomo => "a mihomo rule set",
            Self::Clash => "a list of Clash rules",
            Self::Dnsmasq => "a dnsmasq configuration",
            Self::Hosts => "a hosts file",
            Self::AdGuard => "a filter list",
        })
    }
}

/// Reads a list. `name` is the name of the file, `selector` says which of its lists is meant.
///
/// The prefixes of a range are the fewest that cover it. Nothing else is joined or put in order.
///
/// # Errors
/// When the format is not known, when the file is cut off or holds what the format does not have, or
/// when it holds no such list. There is no half list. Of a text every bad line is told, of other
/// formats the first problem. (A cut that leaves a whole file cannot be noticed: between two lines of a text,
/// or between two lists of a `.dat`.)
pub fn read(name: &Path, bytes: &[u8], selector: Option<&Selector>) -> Result<Entries, Troubles> {
    let format = detect::detect(name, bytes).map_err(Troubles::from)?;
    read_as(format, bytes, selector)
}

/// Reads a list of this format.
///
/// # Errors
/// As [`read`].
pub fn read_as(
    format: Format,
    bytes: &[u8],
    selector: Option<&Selector>,
) -> Result<Entries, Troubles> {
    if let Some(selector) = selector.filter(|_| !format.has_codes()) {
        return Err(Trouble::whole(Fault::NoCodes {
            format,
            code: selector.to_string(),
        })
        .into());
    }
    let mut out = Reading::default();
    match format {
        Format::Plain => plain::read(bytes, plain::Bare::WithBelow, &mut out),
        Format::Mihomo => plain::read(bytes, plain::Bare::Alone, &mut out),
        Format::GeoIp => geodat::geoip(bytes, selector, &mut out),
        Format::GeoSite => geodat::geosite(bytes, selector, &mut out),
        Format::Mmdb => mmdb::read(bytes, selector, &mut out),
        Format::Delegated => delegated::read(bytes, selector, &mut out),
        Format::Nft => nft::read(bytes, &mut out),
        Format::NftJson => nft::json(bytes, &mut out),
        Format::Ipset => ipset::read(bytes, &mut out),
        Format::Srs => srs::read(bytes, &mut out),
        Format::SingBox => singbox::read(bytes, &mut out),
        Format::Mrs => mrs::read(bytes, &mut out),
        Format::Clash => clash::read(bytes, &mut out),
        Format::Dnsmasq => dnsmasq::read(bytes, &mut out),
        Format::Hosts => hosts::read(bytes, &mut out),
        Format::AdGuard => adguard::read(bytes, &mut out),
    }?;
    let mut entries = out.finish()?;
    if selector.is_some_and(|selector| selector.negated) {
        entries.prefixes = aggregate::complement(&entries.prefixes);
    }
    Ok(entries)
}

/// Reads foreign bytes as this format, for tests with arbitrary input: nothing may come of it but
/// entries or errors.
pub fn fuzz(format: Format, bytes: &[u8]) {
    let selectors = [
        None,
        Some(Selector::new("cn")),
        Some(Selector::new("!cn")),
        Some(Selector::new("cn@ads")),
    ];
    for selector in &selectors {
        if let Err(troubles) = read_as(format, bytes, selector.as_ref()) {
            assert!(troubles.count() > 0);
        }
    }
    // Beyond the compression, which few bytes pass.
    match format {
        Format::Srs => drop(srs::unpacked(bytes, &mut Reading::default())),
        Format::Mrs => drop(mrs::unpacked(bytes, &mut Reading::default())),
        _ => {}
    }
    drop(read(Path::new("foreign"), bytes, None));
}
