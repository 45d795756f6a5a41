//! Programs that `cargo xtask setup` puts into the project's own folder.

use std::path::{Path, PathBuf};

fn own() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/bin")
}

/// A program of the project's own folder, or else of `PATH`.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(own())
        .chain(std::env::split_paths(&path))
        .map(|folder| folder.join(name))
        .find(|program| program.is_file())
}

/// A program of the project's own folder alone, where its version is known.
#[must_use]
pub fn pinned(name: &str) -> Option<PathBuf> {
    Some(own().join(name)).filter(|program| program.is_file())
}
