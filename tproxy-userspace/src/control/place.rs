//! Where a gateway keeps its state.
//!
//! A gateway is one network namespace. What belongs to it lies in two folders named after the
//! namespace's inode: pins in the BPF file system, files in `/run`. Both are gone after a reboot.

mod edit;
mod owner;

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sys::socket::sockopt::{GetStruct, PeerCredentials};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};
use serde::Serialize;

pub use self::edit::{EditLock, Editing};
pub use self::owner::Owner;
use super::life::{Life, life};
use super::{Error, cgroup};

/// Where the BPF file system is by custom.
const BPFFS: &str = "/sys/fs/bpf";
/// Where files go that live until the next boot.
const RUN: &str = "/run";
/// The folder of all gateways of this machine, in either place.
const FOLDER: &str = "tproxy-bpf";

/// Held by commands while they change state.
const LOCK: &str = "lock";
/// Held by a proxy as long as it runs.
const PROXY_LOCK: &str = "proxy.lock";
/// Held by a process as long as it listens to decisions.
const TRACE_LOCK: &str = "trace.lock";
/// Where a running proxy is asked things. A killed one leaves it behind.
const CONTROL_SOCKET: &str = "control.sock";
/// Where a running proxy is taken over from. A killed one leaves it behind.
const TAKEOVER_SOCKET: &str = "takeover.sock";
/// Holds the namespace's cookie: inode numbers are used again, cookies are not.
const COOKIE: &str = "namespace";

/// All files that say who is here, in the order in which they go. The lock of the commands is the last one: until then
/// nobody else changes anything.
const FILES: [&str; 6] = [
    CONTROL_SOCKET,
    TAKEOVER_SOCKET,
    PROXY_LOCK,
    TRACE_LOCK,
    COOKIE,
    LOCK,
];

/// How the name of a file ends that takes the place of another one when it is written.
const NEW: &str = "new";

const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// Long enough to outlast a `proxy_pid` of another process, which holds the lock for an instant.
const PROXY_LOCK_PATIENCE: Duration = Duration::from_millis(500);
const RETRY: Duration = Duration::from_millis(20);

/// `SO_NETNS_COOKIE` (Linux 5.14): a number that no other network namespace gets until the next boot.
#[derive(Clone, Copy, Debug)]
struct NetnsCookie;
nix::getsockopt_impl!(
    NetnsCookie,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64,
    GetStruct<u64>
);

/// The two folders of one gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pins: PathBuf,
    run: PathBuf,
    namespace: u64,
    cookie: u64,
    /// The folders are not for this process to remove: a keeper does.
    kept: bool,
}

/// A lock that is held until this is dropped or the process dies.
#[derive(Debug)]
pub struct Lock {
    /// Keeps the flock; closing the last descriptor of it lets go.
    file: File,
    /// Whose folders may have got files that are not their owner's.
    place: Option<Place>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(place) = &self.place {
            place.settle();
        }
    }
}

impl Lock {
    /// The lock, to be given to another process.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A lock that another process has given. It holds as long as one of the two has it.
    #[must_use]
    pub fn given(file: OwnedFd) -> Self {
        Self {
            file: file.into(),
            place: None,
        }
    }

    /// Says that it is this process that holds it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn claim(&mut self) -> io::Result<()> {
        self.file.rewind()?;
        self.file.set_len(0)?;
        writeln!(self.file, "{}", std::process::id())
    }
}

impl Place {
    /// The place of the network namespace that the calling thread is in. Mounts a BPF file system
    /// if there is none, and clears what a dead namespace with the same inode number left. Makes no folder.
    ///
    /// # Errors
    /// When the namespace cannot be told, no BPF file system can be had, or the dead namespace's
    /// left-overs cannot be removed.
    pub fn current() -> Result<Self, Error> {
        let file = Path::new("/proc/thread-self/ns/net");
        let namespace = fs::metadata(file).map_err(Error::file("read", file))?.ino();
        let cookie = netns_cookie()?;
        let place = Self::at(&bpffs()?, Path::new(RUN), namespace, cookie);
        place.clear_if_dead()?;
        Ok(place)
    }

    fn at(bpffs: &Path, run: &Path, namespace: u64, cookie: u64) -> Self {
        let folder = Path::new(FOLDER).join(namespace.to_string());
        Self {
            pins: bpffs.join(&folder),
            run: run.join(&folder),
            namespace,
            cookie,
            kept: false,
        }
    }

    /// The inode number of the network namespace.
    #[must_use]
    pub fn namespace(&self) -> u64 {
        self.namespace
    }

    /// The network namespace's cookie, which is never used again.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// The folder for pins. It may not exist yet: [`Self::create_pins`].
    #[must_use]
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// The folder for files. It may not exist yet: [`Self::create_run`].
    #[must_use]
    pub fn run(&self) -> &Path {
        &self.run
    }

    /// Where a running proxy is asked things.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.run.join(CONTROL_SOCKET)
    }

    /// Where a running proxy is taken over from.
    #[must_use]
    pub fn takeover_socket(&self) -> PathBuf {
        self.run.join(TAKEOVER_SOCKET)
    }

    /// A file in [`Self::run`] that is written whenever a command has changed state and lets go of
    /// [`Self::lock`], so that a running proxy can look what has become of it.
    #[must_use]
    pub fn changes(&self) -> PathBuf {
        self.run.join(LOCK)
    }

    /// Makes the folder for pins, for its owner only, if it is not there.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be made.
    pub fn create_pins(&self) -> Result<&Path, Error> {
        create_folder(&self.pins)
    }

    /// Makes the folder for files, for its owner only, if it is not there.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be made.
    pub fn create_run(&self) -> Result<&Path, Error> {
        create_folder(&self.run)
    }

    /// Replaces a file of the folder for files at once, or makes it.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be written; the old one is then still there.
    pub(super) fn save(&self, file: &Path, value: &impl Serialize) -> Result<(), Error> {
        self.create_run()?;
        let new = file.with_extension(format!("json.{NEW}"));
        let write = || -> io::Result<()> {
            let mut out = own_file().truncate(true).open(&new)?;
            serde_json::to_writer_pretty(&mut out, value)?;
            out.write_all(b"\n")?;
            out.sync_all()?;
            fs::rename(&new, file)
        };
        // Half of it is of no use, and nobody would know whose it is.
        write()
            .inspect_err(|_| drop(fs::remove_file(&new)))
            .map_err(Error::file("write", file))
    }

    /// Waits for the lock that every command holds while it changes state. Blocks the thread, for
    /// some seconds at most.
    ///
    /// # Errors
    /// [`Error::Locked`] names the process that holds it.
    pub fn lock(&self) -> Result<Lock, Error> {
        self.acquire(
            LOCK,
            LOCK_PATIENCE,
            "wait until that command has ended, then try again",
        )
    }

    /// Takes the lock that a proxy holds as long as it runs.
    ///
    /// # Errors
    /// [`Error::Locked`] names the proxy that already runs.
    pub fn proxy_lock(&self) -> Result<Lock, Error> {
        self.acquire(
            PROXY_LOCK,
            PROXY_LOCK_PATIENCE,
            "a proxy already runs in this network namespace, stop it first",
        )
    }

    /// Takes the lock that is held as long as somebody listens to decisions. The caller holds [`Self::lock`], or
    /// `detach` might come between.
    ///
    /// # Errors
    /// [`Error::Locked`] names the process that listens.
    pub fn trace_lock(&self) -> Result<Lock, Error> {
        self.acquire(
            TRACE_LOCK,
            PROXY_LOCK_PATIENCE,
            "decisions are told to one at a time, so end that `tproxy-bpf trace` first",
        )
    }

    /// The process number of the proxy that runs here. Right after `kill -9` too, since it is the
    /// kernel that lets go of a dead process's lock.
    #[must_use]
    pub fn proxy_pid(&self) -> Option<u32> {
        let file = match File::open(self.run.join(PROXY_LOCK)) {
            Ok(file) => file,
            // A member of `[api] group` may use the socket, and nothing else.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return listener_of(&self.control_socket());
            }
            Err(_) => return None,
        };
        let deadline = Instant::now() + PROXY_LOCK_PATIENCE;
        loop {
            match file.try_lock_shared() {
                Err(TryLockError::WouldBlock) => {}
                // The file goes, and the lock with it.
                Ok(()) | Err(TryLockError::Error(_)) => return None,
            }
            // Between locking and writing its number a proxy has none.
            match read_pid(&self.run.join(PROXY_LOCK)) {
                Some(pid) => return Some(pid),
                None if Instant::now() >= deadline => return None,
                None => thread::sleep(RETRY),
            }
        }
    }

    /// Whether this process may not even ask if a proxy runs here.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        let asked = UnixStream::connect(self.control_socket());
        asked.is_err_and(|error| error.kind() == ErrorKind::PermissionDenied)
    }

    /// Removes both folders if nothing is left in them but locks, and their parents if they are
    /// empty then. A folder that is still in use stays. Lets go of `lock`.
    ///
    /// # Errors
    /// [`Error::File`] when a folder cannot be read or removed.
    pub fn remove(&self, lock: Lock) -> Result<(), Error> {
        self.remove_folder(&self.pins)?;
        let in_use = fs::read_dir(&self.run)
            .and_then(|mut entries| {
                entries.try_fold(false, |in_use, entry| {
                    let name = entry?.file_name();
                    // What a process was writing when it was killed is of no use to anybody.
                    if Path::new(&name).extension().is_some_and(|end| end == NEW) {
                        remove_file(&self.run.join(name)).map_err(io::Error::other)?;
                        return Ok(in_use);
                    }
                    Ok(in_use || !FILES.iter().any(|own| name == *own))
                })
            })
            .map_err(Error::file("read", &self.run))?;
        if in_use || self.proxy_pid().is_some() {
            return Ok(());
        }
        for name in FILES {
            remove_file(&self.run.join(name))?;
        }
        drop(lock);
        self.remove_folder(&self.run)
    }

    fn remove_folder(&self, folder: &Path) -> Result<(), Error> {
        match self.kept {
            true => Ok(()),
            false => remove_if_empty(folder),
        }
    }

    fn acquire(&self, name: &str, patience: Duration, advice: &'static str) -> Result<Lock, Error> {
        let path = self.run.join(name);
        let deadline = Instant::now() + patience;
        loop {
            self.create_run()?;
            let file = match own_file().read(true).open(&path) {
                Ok(file) => file,
                // `remove` of another process came between.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::file("open", &path)(error)),
            };
            match file.try_lock() {
                // A file that `remove` has unlinked protects nothing: take the one that is there now.
                Ok(()) if !is_same_file(&file, &path) => {}
                Ok(()) => {
                    let place = Some(self.clone());
                    let mut lock = Lock { file, place };
                    lock.claim().map_err(Error::file("write", &path))?;
                    let cookie = self.run.join(COOKIE);
                    let own = self.cookie.to_string();
                    if fs::read_to_string(&cookie).ok().as_ref() != Some(&own) {
                        own_file()
                            .truncate(true)
                            .mode(0o644)
                            .open(&cookie)
                            .and_then(|mut file| file.write_all(own.as_bytes()))
                            .map_err(Error::file("write", &cookie))?;
                    }
                    return Ok(lock);
                }
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(RETRY),
                Err(TryLockError::WouldBlock) => {
                    let holder = read_pid(&path).map_or_else(
                        || "another process".to_owned(),
                        |pid| match life(pid) {
                            Life::Stopped => format!(
                                "process {pid}, which is stopped (`kill -CONT {pid}` lets it go on),"
                            ),
                            _ => format!("process {pid}"),
                        },
                    );
                    return Err(Error::Locked {
                        path,
                        holder,
                        advice,
                    });
                }
                Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path)(error)),
            }
        }
    }

    /// A namespace's inode number is soon given to the next one. Pins of the dead one would then
    /// be taken for this one's.
    fn clear_if_dead(&self) -> Result<(), Error> {
        // A file without a number was being written when its writer was killed.
        let is_dead = || {
            fs::read_to_string(self.run.join(COOKIE))
                .ok()
                .and_then(|cookie| cookie.trim().parse::<u64>().ok())
                .is_some_and(|cookie| cookie != self.cookie)
        };
        if !is_dead() {
            return Ok(());
        }
        let file = self.run.join(LOCK);
        // Not `lock`: that writes the cookie before the clearing is done.
        let lock = own_file().open(&file).map_err(Error::file("open", &file))?;
        lock.lock().map_err(Error::file("lock", &file))?;
        // Another process may have cleared it while this one waited.
        if !is_dead() {
            return Ok(());
        }
        tracing::info!(
            folder = %self.pins.display(),
            "clearing the state of a network namespace that is no more"
        );
        // First: with the files goes what tells that there is something to clear.
        cgroup::remove_own(self.namespace)?;
        for folder in [&self.pins, &self.run] {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::file("remove", folder)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn netns_cookie() -> Result<u64, Error> {
    socket(
        AddressFamily::Unix,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .and_then(|socket| getsockopt(&socket, NetnsCookie))
    .map_err(|error| {
        Error::file(
            "identify the network namespace",
            Path::new("SO_NETNS_COOKIE"),
        )(error.into())
    })
}

/// The BPF file system: [`BPFFS`] if it is there, else the first that is, else one mounted at [`BPFFS`].
fn bpffs() -> Result<PathBuf, Error> {
    let file = Path::new("/proc/thread-self/mounts");
    let mounts = fs::read_to_string(file).map_err(Error::file("read", file))?;
    if let Some(found) = find_bpffs(&mounts) {
        return Ok(found);
    }
    mount(
        Some("bpf"),
        BPFFS,
        Some("bpf"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|reason| Error::BpfMount { reason })?;
    tracing::info!(
        "mounted a BPF file system at {BPFFS}; pins in it last as long as this mount namespace \
         (\"ip netns exec\" makes one for each command, \"nsenter --net\" does not)"
    );
    Ok(PathBuf::from(BPFFS))
}

/// Is there a BPF file system, without mounting one?
pub(super) fn has_bpffs() -> bool {
    fs::read_to_string("/proc/thread-self/mounts").is_ok_and(|mounts| find_bpffs(&mounts).is_some())
}

/// Looks in the text of `/proc/self/mounts` (`proc(5)`, `fstab(5)`).
fn find_bpffs(mounts: &str) -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (target, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            let writable = !options.split(',').any(|option| option == "ro");
            (kind == "bpf" && writable).then(|| PathBuf::from(unescape(target)))
        })
        .collect();
    let index = found.iter().position(|path| path == Path::new(BPFFS));
    (!found.is_empty()).then(|| found.swap_remove(index.unwrap_or(0)))
}

/// Undoes the octal escapes of space, tab, newline and backslash.
pub(super) fn unescape(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// How a file is opened for writing that lies in a folder that may be another user's: no name there leads elsewhere.
fn own_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true).mode(0o600);
    options.custom_flags(libc::O_NOFOLLOW);
    options
}

fn create_folder(folder: &Path) -> Result<&Path, Error> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(Error::file("create the folder", folder))?;
    Ok(folder)
}

/// Removes the folder and then its parent, each only if it is empty.
fn remove_if_empty(folder: &Path) -> Result<(), Error> {
    for folder in [Some(folder), folder.parent()].into_iter().flatten() {
        match fs::remove_dir(folder) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) if error.kind() == ErrorKind::DirectoryNotEmpty => return Ok(()),
            // A service manager gave it to this process alone, as a mount, and takes it back.
            Err(error) if error.kind() == ErrorKind::ResourceBusy => return Ok(()),
            Err(error) => return Err(Error::file("remove the folder", folder)(error)),
        }
    }
    Ok(())
}

fn remove_file(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn is_same_file(file: &File, path: &Path) -> bool {
    let identity = |metadata: io::Result<fs::Metadata>| {
        metadata
            .map(|metadata| (metadata.dev(), metadata.ino()))
            .ok()
    };
    identity(file.metadata()).is_some_and(|own| identity(fs::metadata(path)) == Some(own))
}

/// The process that listens at a socket.
fn listener_of(path: &Path) -> Option<u32> {
    let stream = UnixStream::connect(path).ok()?;
    let peer = getsockopt(&stream, PeerCredentials).ok()?;
    peer.pid().try_into().ok()
}

fn read_pid(path: &Path) -> Option<u32> {
    let mut text = String::new();
    File::open(path).ok()?.read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use nix::mount::{MntFlags, umount2};
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::control::testing::in_namespace;

    pub fn scratch() -> (tempfile::TempDir, Place) {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::at(&folder.path().join("bpf"), &folder.path().join("run"), 7, 1);
        (folder, place)
    }

    #[test]
    fn the_customary_bpffs_is_preferred_and_a_read_only_one_is_not_taken() {
        let mounts = "\
            none /run/my\\040bpf bpf rw,relatime 0 0\n\
            proc /proc proc rw 0 0\n\
            bpf /sys/fs/bpf bpf rw,nosuid 0 0\n";
        assert_eq!(find_bpffs(mounts), Some(PathBuf::from("/sys/fs/bpf")));
        let read_only = mounts.replace("rw,nosuid", "ro,nosuid");
        assert_eq!(find_bpffs(&read_only), Some(PathBuf::from("/run/my bpf")));
        assert_eq!(find_bpffs("proc /proc proc rw 0 0\n"), None);
    }

    #[test]
    fn a_held_lock_names_its_holder_and_a_dropped_one_is_free() {
        let (_folder, place) = scratch();
        let held = place.lock().unwrap();
        let error = place
            .acquire(LOCK, Duration::ZERO, "try later")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("process {}", std::process::id())),
            "{error}"
        );
        drop(held);
        place.acquire(LOCK, Duration::ZERO, "").unwrap();
    }

    #[test]
    fn folders_are_the_owners_alone() {
        let (_folder, place) = scratch();
        for folder in [place.create_pins().unwrap(), place.create_run().unwrap()] {
            assert_eq!(fs::metadata(folder).unwrap().mode() & 0o777, 0o700);
        }
    }

    #[test]
    fn remove_leaves_nothing_unless_something_is_in_use() {
        let (folder, place) = scratch();
        place.create_pins().unwrap();
        let lock = place.lock().unwrap();
        fs::write(place.run().join("sysctl.json"), "x").unwrap();
        fs::write(place.run().join(CONTROL_SOCKET), "").unwrap();
        place.remove(lock).unwrap();
        assert!(!place.pins().exists());
        assert!(place.run().join("sysctl.json").exists());

        fs::remove_file(place.run().join("sysctl.json")).unwrap();
        let lock = place.lock().unwrap();
        let proxy = place.proxy_lock().unwrap();
        place.remove(lock).unwrap();
        assert_eq!(place.proxy_pid(), Some(std::process::id()));
        drop(proxy);

        // A neighbour in the parent folder keeps that one.
        let neighbour = Place::at(&folder.path().join("bpf"), &folder.path().join("run"), 8, 2);
        neighbour.create_run().unwrap();
        place.remove(place.lock().unwrap()).unwrap();
        assert!(!place.run().exists());
        assert!(neighbour.run().exists());
        neighbour.remove(neighbour.lock().unwrap()).unwrap();
        assert!(!folder.path().join("run/tproxy-bpf").exists());
    }

    #[test]
    fn a_lock_file_that_was_unlinked_is_not_trusted() {
        let (_folder, place) = scratch();
        let held = place.lock().unwrap();
        let path = place.run().join(LOCK);
        let waiting = {
            let place = place.clone();
            thread::spawn(move || place.lock().unwrap())
        };
        place.remove(held).unwrap();
        let lock = waiting.join().unwrap();
        assert!(is_same_file(&lock.file, &path));
    }

    #[test]
    fn a_killed_proxy_is_not_taken_for_a_running_one() {
        let (_folder, place) = scratch();
        assert_eq!(place.proxy_pid(), None);
        place.create_run().unwrap();
        let path = place.run().join(PROXY_LOCK);
        // The shell writes its number once it holds the lock, as a proxy does.
        let mut child = Command::new("sh")
            .arg("-c")
            .arg("exec 9>>\"$0\"; flock -n 9 && echo $$ >\"$0\" && echo ready && exec sleep 60")
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0; 5];
        child.stdout.take().unwrap().read_exact(&mut ready).unwrap();
        assert_eq!(place.proxy_pid(), Some(child.id()));
        let error = place.proxy_lock().unwrap_err().to_string();
        assert!(
            error.contains(&format!("process {}", child.id())),
            "{error}"
        );
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(place.proxy_pid(), None);
        place.proxy_lock().unwrap();
    }

    #[test]
    fn the_state_of_a_dead_namespace_is_not_inherited() {
        let (folder, place) = scratch();
        place.create_pins().unwrap();
        fs::write(place.pins().join("BYPASS_V4"), "").unwrap();
        drop(place.lock().unwrap());
        place.clear_if_dead().unwrap();
        assert!(place.pins().join("BYPASS_V4").exists());

        let next = Place::at(&folder.path().join("bpf"), &folder.path().join("run"), 7, 2);
        assert_eq!(next.pins(), place.pins());
        next.clear_if_dead().unwrap();
        assert!(!next.pins().exists());
        assert!(!next.run().exists());
    }

    #[test]
    fn each_namespace_has_its_place_and_a_missing_bpffs_is_mounted() {
        in_namespace(|| async {
            let first = Place::current().unwrap();
            let other = thread::spawn(|| {
                unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
                mount(
                    None::<&str>,
                    "/",
                    None::<&str>,
                    MsFlags::MS_REC | MsFlags::MS_PRIVATE,
                    None::<&str>,
                )
                .unwrap();
                while let Ok(mounts) = fs::read_to_string("/proc/thread-self/mounts")
                    && let Some(path) = find_bpffs(&mounts)
                {
                    umount2(&path, MntFlags::MNT_DETACH).unwrap();
                }
                let place = Place::current().unwrap();
                assert!(has_bpffs());
                place.create_pins().unwrap();
                let lock = place.lock().unwrap();
                place.remove(lock).unwrap();
                assert!(!place.pins().exists());
                place
            })
            .join()
            .unwrap();
            assert_ne!(first.namespace(), other.namespace());
            assert_ne!(first.cookie, other.cookie);
            assert!(other.pins().starts_with(BPFFS));
            assert!(
                other
                    .run()
                    .ends_with(format!("tproxy-bpf/{}", other.namespace()))
            );
        });
    }
}
