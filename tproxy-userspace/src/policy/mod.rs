//! Prefix sets and their file formats.

pub mod list;
pub mod prefix;
