//! Whether another process goes on.

use std::fs;

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
}
