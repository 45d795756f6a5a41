//! The text of a configuration.

use std::path::Path;

use tproxy_userspace::config::{Config, ConfigError};

use crate::bytes::assert_printable;

/// A configuration, if the bytes are text.
pub fn text(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Config::parse(text, Path::new("/etc/tproxy-bpf.toml")) {
        Ok(config) => {
            let again = Config::parse(text, Path::new("/etc/tproxy-bpf.toml"));
            assert_eq!(again.ok().as_ref(), Some(&config));
            assert!(!config.outbounds.is_empty());
        }
        Err(error) => refused(text, &error),
    }
}

fn refused(text: &str, error: &ConfigError) {
    assert!(!error.findings().is_empty(), "an error without a reason");
    let lines: Vec<&str> = text.split('\n').collect();
    for finding in error.findings() {
        let position = finding.position.expect("the text was read");
        assert!((1..=lines.len()).contains(&position.line), "{position:?}");
        let characters = lines[position.line - 1].chars().count();
        assert!(
            (1..=characters + 1).contains(&position.column),
            "{position:?}"
        );
    }
    assert_printable(&error.to_string());
}
