//! Whose the folders of a gateway are: root's, or those of the user that the proxy runs as.
//!
//! Commands run as root, so what they make in the folders of another user is given to that user when they let go of the
//! lock.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::AtFlags;
use nix::unistd::{Gid, Uid, fchownat, geteuid};

use super::{Error, Place, create_folder, remove_if_empty};
use crate::control::cgroup;

/// Only who is in the group may look for a name in a folder whose group it is.
const PASSABLE: u32 = 0o010;
/// The same for everybody: the folder of all gateways, which tells nothing.
const OPEN: u32 = 0o011;

/// Whose the folders are, and whose members may use the control socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Whether the group may use the control socket.
    pub shared: bool,
}

impl Place {
    /// Whose the folder for files is; none if there is no folder.
    #[must_use]
    pub fn owner(&self) -> Option<Owner> {
        let folder = fs::metadata(&self.run).ok()?;
        Some(Owner {
            uid: folder.uid(),
            gid: folder.gid(),
            shared: folder.mode() & PASSABLE != 0,
        })
    }

    /// Makes the folders if they are not there, and gives them with all that is in them to an owner.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn give(&self, owner: Owner) -> Result<(), Error> {
        let all = create_folder(&self.run)?.parent().expect("it lies in one");
        let beyond = owner.shared || owner.uid != 0;
        let mode = fs::metadata(all).map_err(Error::file("read", all))?.mode();
        if beyond && mode & OPEN != OPEN {
            set_mode(all, mode | OPEN)?;
        }
        create_folder(&self.pins)?;
        for folder in [&self.pins, &self.run] {
            // Only the owner of a folder may change its mode.
            give(folder, 0, owner.gid)?;
            let group = if owner.shared && *folder == self.run {
                PASSABLE
            } else {
                0
            };
            set_mode(folder, 0o700 | group)?;
            give_below(folder, owner.uid, owner.gid)?;
            give(folder, owner.uid, owner.gid)?;
        }
        Ok(())
    }

    /// Keeps the folder for pins open, for a process that will not be allowed to pass the folders above it any more, and that
    /// leaves both folders to a keeper in the end.
    ///
    /// # Errors
    /// [`Error::File`] when it is not there.
    pub fn hold(&mut self) -> Result<(), Error> {
        let folder = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
            .open(&self.pins)
            .map_err(Error::file("open", &self.pins))?;
        // For as long as the process lives.
        self.pins = PathBuf::from(format!("/proc/self/fd/{}", folder.into_raw_fd()));
        self.kept = true;
        Ok(())
    }

    /// Removes the folders of a proxy that is gone, if it has left nothing in them, and then the gateway's own cgroup.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn tidy(&self) -> Result<(), Error> {
        if self.kept {
            return Ok(());
        }
        remove_if_empty(&self.pins)?;
        if self.pins.exists() {
            return Ok(());
        }
        cgroup::remove_own(self.namespace)?;
        remove_if_empty(&self.run)
    }

    /// Gives to the owner of the folders what root made there. What does not go is told by who needs it.
    pub(super) fn settle(&self) {
        if !geteuid().is_root() {
            return;
        }
        for folder in [&self.pins, &self.run] {
            let Ok(found) = fs::metadata(folder) else {
                continue;
            };
            if found.uid() != 0 {
                let _ = give_below(folder, found.uid(), found.gid());
            }
        }
    }
}

fn set_mode(folder: &Path, mode: u32) -> Result<(), Error> {
    let mode = Permissions::from_mode(mode & 0o7777);
    fs::set_permissions(folder, mode).map_err(Error::file("change the mode of", folder))
}

/// Not what a name elsewhere leads to as well: in its folder a user may make names for files that are not its own.
fn give(path: &Path, uid: u32, gid: u32) -> Result<(), Error> {
    let change = || -> io::Result<()> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
            .open(path)?;
        let found = file.metadata()?;
        let elsewhere = !found.is_dir() && found.nlink() != 1;
        if elsewhere || (found.uid(), found.gid()) == (uid, gid) {
            return Ok(());
        }
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        Ok(fchownat(
            &file,
            "",
            Some(uid),
            Some(gid),
            AtFlags::AT_EMPTY_PATH,
        )?)
    };
    match change() {
        // Its owner removed it meanwhile.
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result.map_err(Error::file("change the owner of", path)),
    }
}

fn give_below(folder: &Path, uid: u32, gid: u32) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(Error::file("read", folder))? {
        let path = entry.map_err(Error::file("read", folder))?.path();
        give(&path, uid, gid)?;
    }
    Ok(())
}
