//! The clock, by which certificates and the keys of Shadowsocks 2022 are judged.

use std::path::Path;
use std::time::SystemTime;

use super::{Facts, Finding};
use crate::net::clock_is_set;

/// What is known of the clock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Has somebody told the kernel that it is set by a time server? None: it cannot be asked.
    pub set: Option<bool>,
    /// What it says.
    pub now: SystemTime,
    /// Files that cannot have been written later than now, and when they were.
    pub written: Vec<(String, SystemTime)>,
}

/// Asks the kernel, and the files named.
pub(super) fn gather(files: &[&Path]) -> Clock {
    let written = files.iter().filter_map(|file| {
        let time = std::fs::metadata(file)
            .and_then(|metadata| metadata.modified())
            .ok()?;
        Some((file.display().to_string(), time))
    });
    Clock {
        set: clock_is_set(),
        written: written.collect(),
        now: SystemTime::now(),
    }
}

/// Is the clock right, as far as can be known without asking anybody?
pub(super) fn check(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "clock";
    const REMEDY: &str = "timedatectl set-ntp true; or set it: date -s 'YYYY-MM-DD HH:MM:SS'";
    let Clock { set, now, written } = &facts.clock;
    let time = |time: SystemTime| {
        // Earlier times cannot be written.
        humantime::format_rfc3339_seconds(time.max(SystemTime::UNIX_EPOCH))
    };
    let later = written
        .iter()
        .filter(|(_, written)| written > now)
        .max_by_key(|(_, written)| *written);
    if let Some((file, written)) = later {
        let found = format!(
            "it says {}, and {file} was written at {}",
            time(*now),
            time(*written)
        );
        return vec![
            Finding::problem(CHECK, found)
                .because("one of the two is wrong; with a wrong clock no certificate is valid (TLS, DoT, DoH), and Shadowsocks 2022 refuses")
                .remedy(format!("{REMEDY}; if the clock is right: touch {file}")),
        ];
    }
    vec![match set {
        Some(true) => Finding::ok(CHECK, format!("{}, set by a time server", time(*now))),
        Some(false) => Finding::hint(CHECK, format!("{}, and no time server has set it", time(*now)))
            .because("a clock that is off by more than 30 s ends Shadowsocks 2022, and far off no certificate is valid (TLS, DoT, DoH)")
            .remedy(REMEDY),
        None => Finding::hint(CHECK, format!("{}; whether a time server has set it cannot be asked", time(*now)))
            .because("with a wrong clock no certificate is valid (TLS, DoT, DoH)")
            .remedy(REMEDY),
    }]
}
