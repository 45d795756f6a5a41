//! Limits, and what the limit of open files allows.

use std::time::Duration;

use serde::Serialize;

/// Files that are neither relays nor pipes: runtime, maps, listeners and receivers, logs, the control socket.
const OTHER_FILES: u64 = 128;
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
/// With no limit of connections there are as many as files; with fewer than these a house notices.
pub const ENOUGH_CONNECTIONS: u64 = 1024;
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
    /// How many open files [`Self::new`] needs to let so many connections (None: no limit is set) and associations in, and
    /// some connections at any rate.
    #[must_use]
    pub fn files_for(connections: Option<u64>, associations: u64) -> u64 {
        let taken = OTHER_FILES
            .saturating_add(MOST_PIPES * FILES_PER_PIPE)
            .saturating_add(associations.saturating_mul(FILES_PER_ASSOCIATION));
        let room = |connections: u64| {
            taken.saturating_add(connections.saturating_mul(FILES_PER_CONNECTION))
        };
        match connections {
            Some(connections) => room(connections),
            None => room(ENOUGH_CONNECTIONS)
                .max(associations.saturating_mul(FILES_TO_ALLOW_ASSOCIATION)),
        }
    }

    /// Divides `open_files`. A limit that is configured is taken as it is, but associations take no files that connections
    /// may need: those of `max_connections`, or else half of all.
    #[must_use]
    pub fn new(open_files: u64, limits: &Limits) -> Self {
        let pipes = (open_files / 32).min(MOST_PIPES);
        let other = OTHER_FILES + pipes * FILES_PER_PIPE;
        let left = |taken: u64, each: u64| (open_files.saturating_sub(other + taken) / each).max(1);
        let most_associations = limits.max_connections.map_or_else(
            || (open_files / FILES_TO_ALLOW_ASSOCIATION).max(1),
            |configured| {
                let taken = (configured as u64).saturating_mul(FILES_PER_CONNECTION);
                left(taken, FILES_PER_ASSOCIATION)
            },
        );
        let associations = limits.max_associations.map_or_else(
            || (open_files / 8).min(MOST_ASSOCIATIONS),
            |configured| configured as u64,
        );
        let associations = associations.clamp(1, most_associations);
        let connections = limits.max_connections.map_or_else(
            || left(associations * FILES_PER_ASSOCIATION, FILES_PER_CONNECTION),
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
        for open_files in [512, 1024, 4096, 20_000, 1 << 20, 1 << 30] {
            let budget = Budget::new(open_files, &Limits::default());
            let used = OTHER_FILES as usize
                + 2 * (budget.connections + budget.associations + budget.pipes);
            assert!(used as u64 <= open_files, "{budget:?} needs {used}");
            assert!(budget.connections as u64 >= open_files / 7);
        }
    }

    #[test]
    fn the_files_that_are_asked_for_are_enough() {
        for (connections, associations) in [
            (None, 4096),
            (None, 16),
            (None, 16_384),
            (Some(1024), 4096),
            (Some(9_000), 16),
            (Some(600), 9_000),
        ] {
            let limits = Limits {
                max_connections: connections,
                max_associations: Some(associations),
                ..Limits::default()
            };
            let files = Budget::files_for(connections.map(|most| most as u64), associations as u64);
            let budget = Budget::new(files, &limits);
            assert_eq!(budget.associations, associations, "{budget:?}");
            let enough = ENOUGH_CONNECTIONS as usize;
            assert!(
                budget.connections >= connections.unwrap_or(enough),
                "{budget:?}"
            );
            assert!(files < 20_000 || associations > 9_000, "{files}");
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
        assert!(budget.connections > 700, "{budget:?}");
        assert_eq!(Budget::new(20_000, &few).associations, 4096);
        // A limit so low that nothing is left still lets one through rather than none.
        assert_eq!(Budget::new(10, &Limits::default()).connections, 1);
    }
}
