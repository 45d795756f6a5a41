//! Hearing of cgroups that come and go, by inotify on the folders that are above them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::unix::AsyncFd;

use super::folder;
use crate::config::CgroupPath;
use crate::control::Error;

/// tokio asks for a number.
struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// A folder that is watched.
struct Watched {
    descriptor: WatchDescriptor,
    /// The folder that is meant: another one of the same name is watched anew.
    inode: u64,
    /// The names in it that matter.
    names: BTreeSet<OsString>,
}

/// Tells when a cgroup of a set comes or goes, or a file is written.
pub struct Watch {
    queue: AsyncFd<Queue>,
    root: PathBuf,
    /// Folder and name of the file.
    file: (PathBuf, OsString),
    folders: BTreeMap<PathBuf, Watched>,
}

impl Watch {
    /// Watches for writes to a file, which need not be there, but its folder. `root` is where cgroup2
    /// is mounted.
    ///
    /// # Errors
    /// [`Error::File`], when there is no inotify left for example.
    pub fn open(root: &Path, file: &Path) -> Result<Self, Error> {
        let failed = |error: io::Error| Error::File {
            operation: "watch",
            path: root.to_owned(),
            reason: error,
            advice: "; the sysctl fs/inotify/max_user_instances says how many watchers there may be",
        };
        let queue = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)
            .map_err(|error| failed(error.into()))?;
        let name = file.file_name().unwrap_or(OsStr::new(""));
        #[expect(
            deprecated,
            reason = "its successor is unsafe; `Queue` names one descriptor, which it owns"
        )]
        let queue = AsyncFd::new(Queue(queue)).map_err(failed)?;
        let mut watch = Self {
            queue,
            root: root.to_owned(),
            file: (
                file.parent().unwrap_or(Path::new("/")).to_owned(),
                name.to_owned(),
            ),
            folders: BTreeMap::new(),
        };
        watch.set(&BTreeSet::new())?;
        Ok(watch)
    }

    /// Makes it these cgroups that are watched for. What changes from here on is told of.
    ///
    /// # Errors
    /// [`Error::File`], when there are no watches left for example.
    pub fn set(&mut self, cgroups: &BTreeSet<CgroupPath>) -> Result<(), Error> {
        let mut wanted: BTreeMap<PathBuf, BTreeSet<OsString>> = BTreeMap::new();
        let mut want = |folder: &Path, name: &OsStr| {
            let names = wanted.entry(folder.to_owned()).or_default();
            names.insert(name.to_owned());
        };
        want(&self.file.0, &self.file.1);
        for cgroup in cgroups {
            // All that are above it, since one that goes takes with it what was known below.
            let path = folder(&self.root, cgroup);
            let mut below = &*path;
            while below != self.root
                && let (Some(above), Some(name)) = (below.parent(), below.file_name())
            {
                want(above, name);
                below = above;
            }
        }
        let surplus = |path: &PathBuf, _: &mut Watched| !wanted.contains_key(path);
        for (_, watched) in self.folders.extract_if(.., surplus) {
            // A folder that is gone has taken its watch along.
            let _ = self.queue.get_ref().0.rm_watch(watched.descriptor);
        }
        // From above to below: a folder that comes after its turn is told of by the one above it.
        for (path, names) in wanted {
            self.watch(path, names)?;
        }
        Ok(())
    }

    fn watch(&mut self, path: PathBuf, names: BTreeSet<OsString>) -> Result<(), Error> {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ONLYDIR;
        let inode = fs::metadata(&path).map(|found| found.ino()).ok();
        if let Some(watched) = self.folders.get_mut(&path) {
            if inode == Some(watched.inode) {
                watched.names = names;
                return Ok(());
            }
            let _ = self.queue.get_ref().0.rm_watch(watched.descriptor);
            self.folders.remove(&path);
        }
        let Some(inode) = inode else {
            return Ok(());
        };
        match self.queue.get_ref().0.add_watch(&path, flags) {
            Ok(descriptor) => {
                let watched = Watched {
                    descriptor,
                    inode,
                    names,
                };
                self.folders.insert(path, watched);
                Ok(())
            }
            // It has gone again.
            Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
            Err(error) => Err(Error::File {
                operation: "watch",
                path,
                reason: error.into(),
                advice: "; the sysctl fs/inotify/max_user_watches says how much may be watched",
            }),
        }
    }

    /// Waits until something has changed that matters. Cancelling it loses nothing.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.queue.readable().await?;
            let read = ready.try_io(|queue| queue.get_ref().0.read_events().map_err(Into::into));
            let events = match read {
                // Nothing there after all.
                Err(_) => continue,
                Ok(Err(error)) if error.kind() == ErrorKind::Interrupted => continue,
                Ok(events) => events?,
            };
            let matters = events.iter().any(|event| {
                // Some were lost, whatever they were about.
                event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW)
                    || event.name.as_ref().is_some_and(|name| {
                        self.folders.values().any(|watched| {
                            watched.descriptor == event.wd && watched.names.contains(name)
                        })
                    })
            });
            if matters {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    fn paths(paths: &[&str]) -> BTreeSet<CgroupPath> {
        paths.iter().map(|path| path.parse().unwrap()).collect()
    }

    /// Is nothing told, though a write to the file comes through?
    async fn is_quiet(watch: &mut Watch, file: &Path) {
        fs::write(file, "x").unwrap();
        timeout(SOON, watch.changed()).await.unwrap().unwrap();
        let more = timeout(Duration::from_millis(20), watch.changed()).await;
        assert!(more.is_err(), "something is told twice");
    }

    #[tokio::test]
    async fn what_comes_and_goes_is_told_at_every_level() {
        // Any folder does.
        let dir = tempfile::tempdir().unwrap();
        let (root, file) = (dir.path().join("root"), dir.path().join("file"));
        fs::create_dir(&root).unwrap();
        let mut watch = Watch::open(&root, &file).unwrap();
        let cgroups = paths(&["/a/b/c", "/a/d"]);
        watch.set(&cgroups).unwrap();
        fs::create_dir(root.join("other")).unwrap();
        is_quiet(&mut watch, &file).await;
        for round in 0..3 {
            for path in ["a", "a/b", "a/b/c", "a/d"] {
                fs::create_dir(root.join(path)).unwrap();
                let told = timeout(SOON, watch.changed()).await;
                told.unwrap_or_else(|_| panic!("{path} in round {round}"))
                    .unwrap();
                watch.set(&cgroups).unwrap();
            }
            fs::create_dir(root.join("a/other")).unwrap();
            fs::remove_dir(root.join("a/other")).unwrap();
            is_quiet(&mut watch, &file).await;
            for path in ["a/b/c", "a/b", "a/d", "a"] {
                fs::remove_dir(root.join(path)).unwrap();
                let told = timeout(SOON, watch.changed()).await;
                told.unwrap_or_else(|_| panic!("the end of {path} in round {round}"))
                    .unwrap();
                watch.set(&cgroups).unwrap();
            }
        }
        watch.set(&BTreeSet::new()).unwrap();
        fs::create_dir(root.join("a")).unwrap();
        is_quiet(&mut watch, &file).await;
        assert_eq!(watch.folders.len(), 1);
    }
}
