//! The names that the two DNS servers know, each in its own way.

/// The zone of near names. Those that are not named below stand for [`near_site`](crate::Split::near_site).
pub const NEAR_ZONE: &str = "near.test";
/// The zone of far names. The near server says of each that it is [`forged`](crate::Split::forged).
pub const FAR_ZONE: &str = "far.test";
/// A near site.
pub const NEAR: &str = "www.near.test";
/// A far site.
pub const FAR: &str = "www.far.test";
/// A near site at an address that a far one has, too.
pub const SHARED_NEAR: &str = "shared.near.test";
/// A far site at an address that a near one has, too.
pub const SHARED_FAR: &str = "shared.far.test";
/// Another name (CNAME) of [`NEAR`].
pub const ALIAS_NEAR: &str = "alias.near.test";
/// Another name (CNAME) of [`FAR`].
pub const ALIAS_FAR: &str = "alias.far.test";
/// A TXT record of over 3,000 bytes: it is truncated over UDP.
pub const BIG_NEAR: &str = "big.near.test";
/// The same on the far side.
pub const BIG_FAR: &str = "big.far.test";
/// A name that does not exist (NXDOMAIN).
pub const GONE_NEAR: &str = "gone.near.test";
/// The same on the far side.
pub const GONE_FAR: &str = "gone.far.test";
/// A name that the near server never answers for.
pub const SILENT_NEAR: &str = "silent.near.test";
/// The same on the far side.
pub const SILENT_FAR: &str = "silent.far.test";
