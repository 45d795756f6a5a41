//! Sets of prefixes and domains, and the file formats that they come in.

pub mod aggregate;
pub mod domain;
pub mod formats;
pub mod list;
pub mod prefix;
pub mod source;
