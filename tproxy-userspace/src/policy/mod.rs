//! Prefix sets and their file formats.
