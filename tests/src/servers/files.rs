//! Files of known content, kept between runs, and their SHA-256.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

const BLOCK: usize = 1 << 20;

/// A file of a given size whose blocks all differ, so that lost, doubled or exchanged bytes show in its hash.
#[derive(Clone, Debug)]
pub struct Content {
    /// Where it is. Shared by all labs: not to be written to.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
}

impl Content {
    /// The file of `bytes` bytes; made when it is asked for the first time and then kept under `target`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn of(bytes: u64) -> Result<Self> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/lab-files");
        fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
        let path = dir.join(format!("{bytes}.bin"));
        let hash = dir.join(format!("{bytes}.sha256"));
        if let Ok(sha256) = fs::read_to_string(&hash)
            && fs::metadata(&path).is_ok_and(|found| found.len() == bytes)
        {
            return Ok(Self {
                path,
                bytes,
                sha256,
            });
        }
        // Several processes may do this at once: each writes its own and the last one wins.
        remove_unfinished(&dir);
        let own = unfinished(&dir)?;
        let sha256 = write(own.as_file(), bytes)
            .with_context(|| format!("writing {bytes} bytes to {}", path.display()))?;
        own.persist(&path)?;
        let own = unfinished(&dir)?;
        own.as_file().write_all(sha256.as_bytes())?;
        own.persist(&hash)?;
        Ok(Self {
            path,
            bytes,
            sha256,
        })
    }
}

/// A file to write to, which says whose it is.
fn unfinished(dir: &Path) -> io::Result<tempfile::NamedTempFile> {
    let prefix = format!("unfinished-{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempfile_in(dir)
}

/// Removes those of processes that are gone.
fn remove_unfinished(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name
            .strip_prefix("unfinished-")
            .and_then(|rest| rest.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            fs::remove_file(entry.path()).ok();
        }
    }
}

fn write(mut file: &File, bytes: u64) -> io::Result<String> {
    let mut block = vec![0; BLOCK];
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for word in block.chunks_exact_mut(8) {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_ne_bytes());
    }
    let mut hasher = Hasher::default();
    let mut left = bytes;
    let mut index = 0_u64;
    while left > 0 {
        block[..8].copy_from_slice(&index.to_be_bytes());
        let length = usize::try_from(left).map_or(BLOCK, |left| left.min(BLOCK));
        file.write_all(&block[..length])?;
        hasher.update(&block[..length]);
        left -= length as u64;
        index += 1;
    }
    Ok(hasher.finish())
}

/// SHA-256 of a stream.
#[derive(Clone, Debug, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Goes on with these bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The hash in hexadecimal.
    #[must_use]
    pub fn finish(self) -> String {
        use std::fmt::Write as _;
        let mut text = String::with_capacity(64);
        for byte in self.0.finalize() {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text
    }
}

/// Reads to the end; gives SHA-256 in hexadecimal and the number of bytes.
///
/// # Errors
/// The reader's.
pub fn hash_reader(mut reader: impl Read) -> io::Result<(String, u64)> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 1 << 18];
    let mut bytes = 0;
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok((hasher.finish(), bytes));
        }
        hasher.update(&buffer[..read]);
        bytes += read as u64;
    }
}

/// SHA-256 of a file, in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn hash_file(path: &Path) -> Result<String> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    Ok(hash_reader(file)?.0)
}
