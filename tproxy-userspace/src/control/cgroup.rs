//! cgroup2: where it is mounted.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Error, place};

const MOUNTS: &str = "/proc/thread-self/mountinfo";

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
