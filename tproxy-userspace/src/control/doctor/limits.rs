//! Limits of the machine that the proxy meets: open files and tracked connections.

use std::fs;

use nix::sys::resource::{Resource, getrlimit};

use super::{Facts, Finding};
use crate::control::sysctl;

/// What is known of limits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The limit of open files, soft and hard: of the proxy that runs, else of this process.
    pub open_files: Option<(u64, u64)>,
    /// The process of the proxy, if it is that one's.
    pub proxy: Option<u32>,
    /// `fs.nr_open`: the most that a limit of open files can be.
    pub nr_open: Option<u64>,
    /// `fs.file-max`: the most files of the machine.
    pub file_max: Option<u64>,
    /// `nf_conntrack_count` and `nf_conntrack_max`, if connections are tracked.
    pub conntrack: Option<(u64, u64)>,
}

/// What the configuration lets in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Files {
    /// Open files for all connections and associations that are let in.
    pub needed: u64,
    /// TCP connections among them.
    pub connections: u64,
    /// UDP associations among them.
    pub associations: u64,
}

/// Reads the limits.
pub(super) fn gather(proxy: Option<u32>) -> Limits {
    let number = |key: &str| sysctl::read(key).ok().and_then(|value| value.parse().ok());
    let of_proxy = proxy
        .and_then(|pid| fs::read_to_string(format!("/proc/{pid}/limits")).ok())
        .and_then(|text| open_files(&text));
    let count = number("net/netfilter/nf_conntrack_count");
    Limits {
        open_files: of_proxy.or_else(|| getrlimit(Resource::RLIMIT_NOFILE).ok()),
        proxy: proxy.filter(|_| of_proxy.is_some()),
        nr_open: number("fs/nr_open"),
        file_max: number("fs/file-max"),
        conntrack: count.zip(number("net/netfilter/nf_conntrack_max")),
    }
}

/// From the text of `/proc/PID/limits` (`proc(5)`).
fn open_files(text: &str) -> Option<(u64, u64)> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    let mut words = line.split_ascii_whitespace().map(|word| match word {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    });
    Some((words.next()??, words.next()??))
}

/// Are there open files for all that is let in?
pub(super) fn files(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "open files";
    let (limits, wanted) = (&facts.limits, facts.files);
    let Some((soft, hard)) = limits.open_files else {
        return vec![
            Finding::hint(CHECK, "their limit could not be read")
                .because("each connection takes two")
                .remedy("ulimit -Hn"),
        ];
    };
    let whose = limits.proxy.map_or("this process".to_owned(), |pid| {
        format!("the proxy (process {pid})")
    });
    let let_in = format!(
        "{} for {} connections and {} associations",
        wanted.needed, wanted.connections, wanted.associations
    );
    let mut findings = Vec::new();
    if hard < wanted.needed {
        let first = match limits.nr_open {
            Some(most) if most < wanted.needed => {
                format!("sysctl -w fs.nr_open={}; then ", wanted.needed)
            }
            _ => String::new(),
        };
        findings.push(
            Finding::hint(CHECK, format!("{whose} may have {hard} (soft {soft}), and the configuration lets in what needs {let_in}"))
                .because("with none left, new connections of devices are refused or wait")
                .remedy(format!(
                    "{first}`LimitNOFILE={0}` in the service, `ulimit -Hn {0}` in a shell; or lower `[tcp] max_connections` \
                     and `[udp] max_associations`",
                    wanted.needed
                )),
        );
    }
    if let Some(most) = limits.file_max.filter(|most| *most < wanted.needed) {
        findings.push(
            Finding::hint(CHECK, format!("the whole machine may have {most}, and the configuration lets in what needs {let_in}"))
                .because("with none left, no program of the machine can open anything")
                .remedy(format!("sysctl -w fs.file-max={}", wanted.needed.saturating_mul(2))),
        );
    }
    if findings.is_empty() {
        let raised = if soft < hard {
            format!(" (soft {soft}; tproxy-bpf raises it)")
        } else {
            String::new()
        };
        findings.push(Finding::ok(
            CHECK,
            format!("{whose} may have {hard}{raised}; needed: {let_in}"),
        ));
    }
    findings
}

/// Is there room for tracked connections?
pub(super) fn conntrack(facts: &Facts) -> Vec<Finding> {
    const CHECK: &str = "conntrack";
    let Some((count, max)) = facts.limits.conntrack else {
        return Vec::new();
    };
    // Without a limit.
    if max == 0 || count < max / 10 * 9 {
        return vec![Finding::ok(
            CHECK,
            format!("{count} connections are tracked, at most {max}"),
        )];
    }
    vec![
        Finding::hint(CHECK, format!("{count} connections are tracked, of at most {max}"))
            .because("when it is full the kernel drops the first packet of each new connection, of proxied ones too")
            .remedy(format!("sysctl -w net.netfilter.nf_conntrack_max={}", max.saturating_mul(2))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_of_a_process_are_read() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max processes             unlimited            unlimited            processes \n\
                    Max open files            1024                 524288               files     \n";
        assert_eq!(open_files(text), Some((1024, 524_288)));
        assert_eq!(
            open_files("Max open files  unlimited  unlimited  files"),
            Some((u64::MAX, u64::MAX))
        );
        assert_eq!(open_files("Max open files"), None);
        let own = gather(Some(std::process::id()));
        assert_eq!(own.open_files, getrlimit(Resource::RLIMIT_NOFILE).ok());
        assert_eq!(own.proxy, Some(std::process::id()));
    }
}
