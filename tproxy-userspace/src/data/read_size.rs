//! How much to read at once: little from a connection that says little, much from one that does not stop.

/// Bytes of a read: at first, and when there is more than that.
pub const LEAST: usize = 4 << 10;
/// The most bytes of a read.
pub const MOST: usize = 64 << 10;

/// The bytes to ask for with the next read.
#[derive(Clone, Copy, Debug)]
pub struct ReadSize(usize);

impl Default for ReadSize {
    fn default() -> Self {
        Self(LEAST)
    }
}

impl ReadSize {
    /// So many.
    #[must_use]
    pub fn get(self) -> usize {
        self.0
    }

    /// So many came.
    pub fn came(&mut self, read: usize) {
        if read >= self.0 {
            self.0 = (2 * self.0).min(MOST);
        } else if read < self.0 / 4 {
            self.0 = (self.0 / 2).max(LEAST);
        }
    }
}
