//! The lock for edits that are small and many.

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::thread;
use std::time::Instant;

use super::{LOCK, LOCK_PATIENCE, Place, RETRY, is_same_file};
use crate::control::Error;

/// The lock of [`Place::lock`] for a running proxy that edits again and again. Its file stays open, it does not name
/// its holder, and who watches [`Place::changes`] is not told: that is for what commands change.
#[derive(Debug)]
pub struct EditLock {
    file: File,
    path: PathBuf,
}

/// An [`EditLock`] that is held until this is dropped.
#[derive(Debug)]
pub struct Editing<'l>(&'l File);

impl Place {
    /// The lock for small edits, not yet held.
    ///
    /// # Errors
    /// [`Error::File`], when nobody has held the lock before for example.
    pub fn edit_lock(&self) -> Result<EditLock, Error> {
        EditLock::open(self.run.join(LOCK))
    }
}

impl EditLock {
    fn open(path: PathBuf) -> Result<Self, Error> {
        // Not for writing, or closing it would count as a change.
        let file = File::open(&path).map_err(Error::file("open", &path))?;
        Ok(Self { file, path })
    }

    /// Waits for it. Blocks the thread, for some seconds at most.
    ///
    /// # Errors
    /// [`Error::Locked`].
    pub fn hold(&mut self) -> Result<Editing<'_>, Error> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            match self.file.try_lock() {
                Ok(()) if is_same_file(&self.file, &self.path) => return Ok(Editing(&self.file)),
                // Somebody has removed it, and others lock the one that is there now.
                Ok(()) => *self = Self::open(std::mem::take(&mut self.path))?,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => thread::sleep(RETRY),
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::Locked {
                        path: self.path.clone(),
                        holder: "another process".to_owned(),
                        advice: "wait until that command has ended",
                    });
                }
                Err(TryLockError::Error(error)) => {
                    return Err(Error::file("lock", &self.path)(error));
                }
            }
        }
    }
}

impl Drop for Editing<'_> {
    fn drop(&mut self) {
        // What fails here fails again at the next try, which tells.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::scratch;
    use super::*;

    #[test]
    fn it_keeps_commands_out_while_it_is_held_and_follows_a_file_that_was_replaced() {
        let (_folder, place) = scratch();
        drop(place.lock().unwrap());
        let path = place.changes();
        let written = std::fs::read(&path).unwrap();
        let mut lock = place.edit_lock().unwrap();
        for _ in 0..2 {
            let editing = lock.hold().unwrap();
            let other = File::open(&path).unwrap();
            assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
            drop(editing);
            assert!(other.try_lock().is_ok());
            drop(other);
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, &written).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), written);
    }
}
