//! What this process itself uses.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};

/// A snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Time on a CPU, user and system.
    pub cpu: Duration,
    /// Resident memory, in bytes.
    pub resident: u64,
    /// Open files.
    pub open_files: u64,
}

/// What it uses now. What cannot be told is 0.
#[must_use]
pub fn usage() -> Usage {
    let cpu = getrusage(UsageWho::RUSAGE_SELF).map_or(Duration::ZERO, |usage| {
        let time = usage.user_time() + usage.system_time();
        Duration::from_micros(u64::try_from(time.num_microseconds()).unwrap_or_default())
    });
    Usage {
        cpu,
        resident: resident().unwrap_or_default(),
        open_files: open_files().unwrap_or_default(),
    }
}

/// Resident memory, in bytes.
#[must_use]
pub fn resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    let page = sysconf(SysconfVar::PAGE_SIZE).ok()??;
    Some(pages * u64::try_from(page).ok()?)
}

fn open_files() -> io::Result<u64> {
    const FOLDER: &str = "/proc/self/fd";
    // Since Linux 6.2 the size is the number of files: no need to list thousands of them.
    let size = fs::metadata(FOLDER)?.len();
    if size > 0 {
        return Ok(size);
    }
    // The folder itself is open meanwhile.
    Ok(fs::read_dir(FOLDER)?.count().saturating_sub(1) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_uses_something() {
        let usage = usage();
        assert!(usage.resident > 1 << 20, "{usage:?}");
        assert!(usage.open_files >= 3, "{usage:?}");
        let before = open_files().unwrap();
        let _file = fs::File::open("/proc/self/statm").unwrap();
        // Other tests of this process open files as well.
        assert!(open_files().unwrap() + 16 > before);
    }
}
