//! Limits, and what the limit of open files allows.

use std::time::Duration;

use serde::Serialize;

/// Files that are neither relays nor pipes: runtime, maps, listeners, logs, the control socket.
const OTHER_FILES: u64 = 64;
/// Files a TCP connection holds while it idles: the device's side and the upstream side.
const FILES_PER_CONNECTION: u64 = 2;
/// Files a UDP association holds at most: the datagram socket, and SOCKS5's control connection.
const FILES_PER_ASSOCIATION: u64 = 2;
/// Files of a pipe.
const FILES_PER_PIPE: u64 = 2;
/// More pipes than this help nobody: they are only held while bytes are in flight.
const MOST_PIPES: u64 = 256;
/// Of so many open files there is one association at most, and with it half of the files are for connections.
const FILES_TO_ALLOW_ASSOCIATION: u64 = 2 * FILES_PER_ASSOCIATION;
/// More associations than this by default are a scan, not use.
const MOST_ASSOCIATIONS: u64 = 16_384;

/// What the proxy allows. Durations are counted from the last byte or datagram in either direction.
#[derive(Clone, Debug)]
pub struct Limits {
    /// TCP connections at once. None: as many as the limit of open files allows.
    pub max_connections: Option<usize>,
    /// An established connection without a byte for this long is ended. The default is the 2 h 4 min that
    /// RFC 5382 (REQ-5) asks of gateways.
    pub tcp_idle: Duration,
    /// How long the upstream side may take to answer, the handshakes with its servers included.
    pub connect_timeout: Duration,
    /// After this long without a packet, TCP asks the peer whether it still lives.
    pub keepalive: Duration,
    /// An association without a datagram for this long is ended (RFC 4787, REQ-5).
    pub udp_idle: Duration,
    /// The same for one that has only ever spoken to port 53.
    pub udp_dns_idle: Duration,
    /// UDP associations at once, over both families; beyond it the longest unused one makes room.
    /// None: as many as the limit of open files allows.
    pub max_associations: Option<usize>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: None,
            tcp_idle: Duration::from_secs(2 * 3600 + 4 * 60),
            connect_timeout: Duration::from_secs(10),
            keepalive: Duration::from_secs(300),
            udp_idle: Duration::from_secs(300),
            udp_dns_idle: Duration::from_secs(10),
            max_associations: None,
        }
    }
}

/// How the open files are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// The limit of open files that this was worked out from.
    pub open_files: u64,
    /// TCP connections at once.
    pub connections: usize,
    /// UDP associations at once.
    pub associations: usize,
    /// Pipes at once; beyond it bytes are copied.
    pub pipes: usize,
}

impl Budget {
    /// How many open files [`Self::new`] needs to let so many connections and associations in.
    #[must_use]
    pub fn files_for(connections: u64, associations: u64) -> u64 {
        OTHER_FILES
            .saturating_add(MOST_PIPES * FILES_PER_PIPE)
            .saturating_add(connections.saturating_mul(FILES_PER_CONNECTION))
            .saturating_add(associations.saturating_mul(FILES_PER_ASSOCIATION))
            .max(associations.saturating_mul(FILES_TO_ALLOW_ASSOCIATION))
    }

    /// Divides `open_files`. A limit that is configured is taken as it is, but associations never take more than half of the
    /// files: the rest is for connections.
    #[must_use]
    pub fn new(open_files: u64, limits: &Limits) -> Self {
        let pipes = (open_files / 32).min(MOST_PIPES);
        let associations = limits.max_associations.map_or_else(
            || (open_files / 8).clamp(1, MOST_ASSOCIATIONS),
            |configured| {
                (configured as u64).clamp(1, (open_files / FILES_TO_ALLOW_ASSOCIATION).max(1))
            },
        );
        let taken = OTHER_FILES
            .saturating_add(pipes * FILES_PER_PIPE)
            .saturating_add(associations.saturating_mul(FILES_PER_ASSOCIATION));
        let connections = limits.max_connections.map_or_else(
            || (open_files.saturating_sub(taken) / FILES_PER_CONNECTION).max(1),
            |configured| configured as u64,
        );
        let count = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Self {
            open_files,
            connections: count(connections),
            associations: count(associations),
            pipes: count(pipes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_never_exceed_the_whole() {
        for open_files in [256, 1024, 4096, 20_000, 1 << 20, 1 << 30] {
            let budget = Budget::new(open_files, &Limits::default());
            let used = OTHER_FILES as usize
                + 2 * (budget.connections + budget.associations + budget.pipes);
            assert!(used as u64 <= open_files, "{budget:?} needs {used}");
            assert!(budget.connections as u64 >= open_files / 5);
        }
    }

    #[test]
    fn the_files_that_are_asked_for_are_enough() {
        for (connections, associations) in [(1024, 4096), (9_000, 16), (0, 16_384)] {
            let limits = Limits {
                max_associations: Some(associations),
                ..Limits::default()
            };
            let files = Budget::files_for(connections as u64, associations as u64);
            let budget = Budget::new(files, &limits);
            assert_eq!(budget.associations, associations, "{budget:?}");
            assert!(budget.connections >= connections, "{budget:?}");
        }
    }

    #[test]
    fn what_is_configured_counts() {
        let limits = Limits {
            max_connections: Some(3),
            max_associations: Some(5),
            ..Limits::default()
        };
        let budget = Budget::new(1024, &limits);
        assert_eq!((budget.connections, budget.associations), (3, 5));
        // What is configured for a machine that lets in more leaves room for connections where it does not.
        let few = Limits {
            max_associations: Some(4096),
            ..Limits::default()
        };
        let budget = Budget::new(4096, &few);
        assert_eq!(budget.associations, 1024);
        assert!(budget.connections > 800, "{budget:?}");
        assert_eq!(Budget::new(20_000, &few).associations, 4096);
        // A limit so low that nothing is left still lets one through rather than none.
        assert_eq!(Budget::new(10, &Limits::default()).connections, 1);
    }
}
