//! cgroup2: where it is mounted, and the cgroup of a gateway's own that `exempt run` starts commands in.

mod watch;

use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

use super::{Error, place};
use crate::config::CgroupPath;

pub use watch::Watch;

const MOUNTS: &str = "/proc/thread-self/mountinfo";
/// The processes of a cgroup; writing a number here moves that process.
const PROCESSES: &str = "cgroup.procs";
/// How often a cgroup is emptied whose processes go on to make new ones.
const EMPTYINGS: u32 = 1_000;

/// Where cgroup2 is mounted: `/sys/fs/cgroup`, or beside version 1 (the hybrid layout), or wherever else.
/// The first mount counts. `None` on a machine without it.
///
/// # Errors
/// [`Error::File`] when the mounts cannot be read.
pub fn mount() -> Result<Option<PathBuf>, Error> {
    let path = Path::new(MOUNTS);
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    Ok(find(&text))
}

/// In the text of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
fn find(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        if after.split(' ').next() != Some("cgroup2") {
            return None;
        }
        Some(PathBuf::from(place::unescape(before.split(' ').nth(4)?)))
    })
}

/// Where a cgroup is below the root of cgroup2.
#[must_use]
pub fn folder(root: &Path, path: &CgroupPath) -> PathBuf {
    root.join(path.as_str().trim_start_matches('/'))
}

/// The id of a cgroup, which is its inode number (the kernel's `cgroup_id`). `None` if there is no such cgroup.
#[must_use]
pub fn id(root: &Path, path: &CgroupPath) -> Option<u64> {
    let found = fs::metadata(folder(root, path)).ok()?;
    found.is_dir().then(|| found.ino())
}

/// The cgroup of a gateway's own. Its name follows from the inode number of the network namespace, so
/// that it is found again whatever became of who made it.
#[must_use]
pub fn own(namespace: u64) -> CgroupPath {
    format!("/tproxy-bpf.{namespace}")
        .parse()
        .expect("letters and digits after a slash")
}

/// Makes a cgroup, if it is not there.
///
/// # Errors
/// [`Error::File`].
pub fn make(root: &Path, path: &CgroupPath) -> Result<(), Error> {
    let folder = folder(root, path);
    match DirBuilder::new().mode(0o755).create(&folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            Err(Error::file("make the cgroup", &folder)(error))
        }
        _ => Ok(()),
    }
}

/// Moves the calling process into a cgroup, and with it whatever it starts.
///
/// # Errors
/// [`Error::File`].
pub fn enter(root: &Path, path: &CgroupPath) -> Result<(), Error> {
    let file = folder(root, path).join(PROCESSES);
    // 0 is who writes, whatever its number in which namespace.
    fs::write(&file, "0").map_err(Error::file("move this process into", &file))
}

/// Removes the gateway's own cgroup, if it is there. Its processes live on at the root of cgroup2.
///
/// # Errors
/// [`Error::File`].
pub fn remove_own(namespace: u64) -> Result<(), Error> {
    let Some(root) = mount()? else {
        return Ok(());
    };
    let own = folder(&root, &own(namespace));
    for _ in 0..EMPTYINGS {
        match remove_tree(&root, &own) {
            // A process of it made another one meanwhile.
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {}
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::file("remove the cgroup", &own)(error));
            }
            _ => return Ok(()),
        }
    }
    Err(Error::File {
        operation: "remove the cgroup",
        path: own,
        reason: Errno::EBUSY.into(),
        advice: "; its processes go on to make new ones: end them, then `tproxy-bpf detach`",
    })
}

/// Empties a cgroup and those below it, and removes them from below.
fn remove_tree(root: &Path, folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(root, &entry.path())?;
        }
    }
    let outside = root.join(PROCESSES);
    for process in fs::read_to_string(folder.join(PROCESSES))?.lines() {
        match fs::write(&outside, process) {
            // It has ended.
            Err(error) if error.raw_os_error() == Some(Errno::ESRCH as i32) => {}
            result => result?,
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_in_each_layout() {
        let unified = "25 1 0:22 / /sys rw - sysfs sysfs rw\n\
                       30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n";
        assert_eq!(find(unified), Some("/sys/fs/cgroup".into()));
        let hybrid = "31 25 0:27 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n\
                      32 31 0:28 / /sys/fs/cgroup/cgroup2 rw - cgroup cgroup rw,name=cgroup2\n\
                      33 31 0:29 / /sys/fs/cgroup/uni\\040fied rw shared:9 master:1 - cgroup2 none rw\n\
                      34 31 0:29 / /elsewhere rw - cgroup2 none rw\n";
        assert_eq!(find(hybrid), Some("/sys/fs/cgroup/uni fied".into()));
        assert_eq!(
            find("31 25 0:27 / / rw - ext4 /dev/sda rw\n\nbroken\n"),
            None
        );
    }
}
