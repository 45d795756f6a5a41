//! Configuration: a file to a validated `Config`.
