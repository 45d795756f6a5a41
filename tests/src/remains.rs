//! What a lab leaves when it goes, and clearing it away: processes, namespaces, folders.
//!
//! Everything a lab makes carries a prefix, `tp<process id>-<number>-`, so clearing needs no list
//! and also works for a test that was killed.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, Once, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use tproxy_userspace::control::cgroup;

use crate::{guest, ns::NETNS_DIR, process, wait};

/// The prefixes of the labs of this process.
static LABS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Where the program under test keeps its pins, in a folder by the inode of its network namespace.
pub(crate) const PINS: &str = "/sys/fs/bpf/tproxy-bpf";
/// Where it keeps its other state, likewise.
pub(crate) const STATE: &str = "/run/tproxy-bpf";

/// The folder of a lab.
pub(crate) fn folder(prefix: &str) -> PathBuf {
    std::env::temp_dir().join(prefix.trim_end_matches('-'))
}

pub(crate) fn register(prefix: &str) {
    LABS.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(prefix.to_owned());
}

pub(crate) fn clear(prefix: &str) {
    for (name, inode) in namespaces(prefix) {
        kill_all_in(inode);
        for folder in [PINS, STATE] {
            fs::remove_dir_all(Path::new(folder).join(inode.to_string())).ok();
        }
        if let Err(error) = cgroup::remove_own(inode) {
            eprintln!("{error}");
        }
        let mut command = Command::new("ip");
        command.args(["netns", "del", &name]);
        let deleted = process::run(command, Duration::from_secs(10)).and_then(process::Output::ok);
        // It may be that a signal's cleaning and the lab's own meet.
        if let Err(error) = deleted
            && Path::new(NETNS_DIR).join(&name).exists()
        {
            eprintln!("removing namespace {name}: {error:#}");
        }
    }
    if let Some(cgroup) = guest::group_of(prefix.trim_end_matches('-')) {
        guest::remove_cgroups(&cgroup);
    }
    fs::remove_dir_all(folder(prefix)).ok();
    LABS.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|lab| lab != prefix);
}

/// Clears all labs of this process.
pub(crate) fn clear_all() {
    let labs = LABS.lock().unwrap_or_else(PoisonError::into_inner).clone();
    for prefix in labs {
        clear(&prefix);
    }
}

/// Clears, once, the labs of processes that are gone.
pub(crate) fn clear_stale() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut stale: Vec<String> = namespaces("tp")
            .into_iter()
            .filter_map(|(name, _)| {
                let (pid, rest) = name.strip_prefix("tp")?.split_once('-')?;
                let (number, _) = rest.split_once('-')?;
                let pid: u32 = pid.parse().ok()?;
                let gone = !Path::new(&format!("/proc/{pid}")).exists();
                gone.then(|| format!("tp{pid}-{number}-"))
            })
            .collect();
        stale.sort();
        stale.dedup();
        for prefix in stale {
            eprintln!("clearing {prefix}*, left by a process that is gone");
            clear(&prefix);
        }
    });
}

fn namespaces(prefix: &str) -> Vec<(String, u64)> {
    let Ok(entries) = fs::read_dir(NETNS_DIR) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let inode = fs::metadata(entry.path()).ok()?.ino();
            name.starts_with(prefix).then_some((name, inode))
        })
        .collect()
}

fn processes_in(inode: u64) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            // A zombie has no namespaces any more, so it is not counted.
            let namespace = fs::metadata(entry.path().join("ns/net")).ok()?;
            (namespace.ino() == inode).then(|| Pid::from_raw(pid))
        })
        .filter(|pid| *pid != Pid::this())
        .collect()
}

fn kill_all_in(inode: u64) {
    let all_gone = wait::until("killed processes", Duration::from_secs(5), || {
        let processes = processes_in(inode);
        for pid in &processes {
            kill(*pid, Signal::SIGKILL).ok();
        }
        Ok(processes.is_empty().then_some(()))
    });
    if let Err(error) = all_gone {
        eprintln!("{error:#}");
    }
}
