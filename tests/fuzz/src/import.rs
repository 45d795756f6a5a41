//! Set-ups of other programs, as a configuration.

use std::path::Path;

use tproxy_userspace::config::Config;
use tproxy_userspace::import::{ImportError, Input, Options, import};

use crate::bytes::assert_printable;

/// Rules that name the set `near`.
const RULES: &str = "*mangle\n-A PREROUTING -m set --match-set near dst -j RETURN\n-A PREROUTING -p tcp -j TPROXY --on-port 1\n";
/// The set.
const SETS: &str = "create near hash:net\nadd near 192.0.2.0/24\n";

/// What iptables-save prints.
pub fn rules(bytes: &[u8]) {
    sound(&[[RULES.as_bytes(), bytes].concat(), SETS.into()]);
}

/// What ipset save prints.
pub fn sets(bytes: &[u8]) {
    sound(&[RULES.into(), [SETS.as_bytes(), bytes].concat()]);
}

/// A configuration of Xray or V2Ray.
pub fn configuration(bytes: &[u8]) {
    sound(&[bytes.to_vec()]);
    sound(&[bytes.to_vec(), RULES.into(), SETS.into()]);
}

/// What is printed is a configuration, and what is told can be shown.
fn sound(files: &[Vec<u8>]) {
    let inputs: Vec<Input> = files
        .iter()
        .map(|bytes| Input {
            name: "file".to_owned(),
            bytes: bytes.clone(),
        })
        .collect();
    match import(&inputs, &Options::default()) {
        Ok(imported) => {
            assert_printable(&imported.notes.to_string());
            let config = Config::parse(&imported.toml, Path::new("config.toml"));
            assert!(!config.expect("it was checked").outbounds.is_empty());
            let again = import(&inputs, &Options::default());
            assert_eq!(again.ok().as_ref(), Some(&imported));
        }
        Err(error) => {
            assert!(!matches!(error, ImportError::Unfit { .. }), "{error}");
            assert_printable(&error.to_string());
        }
    }
}
