//! Passwords on the command line: every user of the machine can read `/proc/PID/cmdline`, so what is secret there is
//! overwritten as soon as it was read.

use std::fs;

use crate::config::secret_parts;

/// Overwrites the secret parts of the process's arguments with `*`, so that they are as long as before.
///
/// Nobody may change or read the arguments at the same time: to be called while there is one thread, after they were parsed.
pub fn hide() {
    let Some((start, end)) = place() else {
        return;
    };
    let Ok(text) = fs::read("/proc/self/cmdline") else {
        return;
    };
    if text.len() != end - start {
        return;
    }
    let mut at = 0;
    for argument in text.split(|byte| *byte == 0) {
        for secret in secrets(argument) {
            let first = (start + at + secret.start) as *mut u8;
            // SAFETY: the kernel put the arguments there, from `start` to `end`, for the process to have and to write
            // to (`proc_pid_stat(5)`, arg_start); the range lies within one of them and holds no terminating zero.
            unsafe { std::ptr::write_bytes(first, b'*', secret.len()) };
        }
        at += argument.len() + 1;
    }
}

/// The secret parts of an argument. `--outbound=URL` counts like `URL`.
fn secrets(argument: &[u8]) -> Vec<std::ops::Range<usize>> {
    let Ok(text) = std::str::from_utf8(argument) else {
        return Vec::new();
    };
    secret_parts(text)
}

/// From where to where the arguments are in memory.
fn place() -> Option<(usize, usize)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The name of the program, in brackets, may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    // Of all fields these are the 48th and 49th; the third is the first here.
    let mut fields = rest.split_ascii_whitespace().skip(48 - 3);
    let mut number = || {
        fields
            .next()?
            .parse::<usize>()
            .ok()
            .filter(|place| *place > 0)
    };
    Some((number()?, number()?))
}
