//! Prefix and domain sets, their file formats, and the rules over them.

pub mod aggregate;
pub mod domain;
pub mod formats;
pub mod group;
pub mod health;
pub mod learned;
pub mod list;
pub mod port;
pub mod prefix;
pub mod prefix_set;
pub mod rule;
pub mod source;
