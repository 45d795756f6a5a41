//! What this process itself uses, and what another one does.

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

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It runs, or waits for something.
    Goes,
    /// It was stopped by a signal (SIGSTOP, Ctrl-Z) or by a debugger, and does nothing until it is let go on.
    Stopped,
    /// It has ended, or there was none of this number.
    Gone,
}

/// What the process of this number does.
#[must_use]
pub fn life(pid: u32) -> Life {
    // The name before it is in parentheses and may hold any character.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, rest)| rest.chars().next());
    match state {
        None | Some('Z' | 'X') => Life::Gone,
        Some('T' | 't') => Life::Stopped,
        Some(_) => Life::Goes,
    }
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
    use std::process::Command;
    use std::thread;

    use nix::sys::signal::{Signal, kill};
    use nix::unistd::Pid;

    use super::*;

    #[test]
    fn a_process_goes_is_stopped_and_is_gone() {
        assert_eq!(life(std::process::id()), Life::Goes);
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_raw(child.id().cast_signed());
        let becomes = |wanted: Life| {
            while life(child.id()) != wanted {
                thread::yield_now();
            }
        };
        kill(pid, Signal::SIGSTOP).unwrap();
        becomes(Life::Stopped);
        kill(pid, Signal::SIGKILL).unwrap();
        // Nobody has waited for it yet.
        becomes(Life::Gone);
        child.wait().unwrap();
        assert_eq!(life(0), Life::Gone);
    }

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
