//! Pipes for the bytes in flight.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use crate::net::splice::Pipe;

/// Bytes of a pipe where the kernel allows it (`fs.pipe-max-size` is 1 MiB by default).
const PIPE_BYTES: usize = 1 << 20;
/// Past its limits the kernel gives pipes of a page or two; a copy is faster than such a one.
const WORTHWHILE: usize = 64 << 10;
/// Unused pipes that are kept. Without `CAP_SYS_RESOURCE` the kernel allows a user 64 of this size.
const KEPT: usize = 64;

/// A bounded set of pipes, shared by all connections.
#[derive(Debug)]
pub struct PipePool {
    state: Mutex<State>,
    most: usize,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<Pipe>,
    lent: usize,
}

impl PipePool {
    /// A pool that lends at most `most` pipes at once.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self {
            state: Mutex::default(),
            most,
        }
    }

    /// Lends an empty pipe. None when all are lent or the kernel gives no more.
    #[must_use]
    pub fn lend(self: &Arc<Self>) -> Option<Lent> {
        let mut state = self.state();
        if state.lent >= self.most {
            return None;
        }
        let pipe = match state.free.pop() {
            Some(pipe) => pipe,
            None => Pipe::new(PIPE_BYTES)
                .ok()
                .filter(|pipe| pipe.capacity() >= WORTHWHILE)?,
        };
        state.lent += 1;
        drop(state);
        Some(Lent {
            pipe: Some(pipe),
            held: 0,
            pool: Arc::clone(self),
        })
    }

    /// How many pipes are lent.
    #[cfg(test)]
    pub fn lent(&self) -> usize {
        self.state().lent
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // No code that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pipe on loan. It goes back to the pool on drop, unless bytes are left in it.
#[derive(Debug)]
pub struct Lent {
    pipe: Option<Pipe>,
    held: usize,
    pool: Arc<PipePool>,
}

impl Lent {
    /// Moves what the socket has into the pipe, as [`Pipe::fill`].
    pub fn fill(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let filled = self.pipe().fill(socket, PIPE_BYTES)?;
        self.held += filled;
        Ok(filled)
    }

    /// Is the socket empty, of which so many bytes have just been moved into the empty pipe?
    ///
    /// A pipe is full when all its places are, and a place holds a byte or more. So with fewer bytes than places, it was not
    /// for want of room that there were no more. None at all is FIN.
    #[must_use]
    pub fn has_emptied(&self, filled: usize) -> bool {
        (1..self.pipe().places()).contains(&filled)
    }

    /// Moves what the pipe has into the socket, as [`Pipe::drain`].
    pub fn drain(&mut self, socket: &impl AsFd) -> io::Result<usize> {
        let drained = self.pipe().drain(socket, self.held)?;
        self.held -= drained;
        Ok(drained)
    }

    /// Bytes in the pipe.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    fn pipe(&self) -> &Pipe {
        self.pipe.as_ref().expect("only drop takes it")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        state.lent -= 1;
        if self.held == 0 && state.free.len() < KEPT {
            state.free.extend(self.pipe.take());
        }
    }
}
