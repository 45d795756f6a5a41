//! `splice(2)`: bytes go from socket to socket through a pipe without a copy through this process.
//!
//! Writing to a connection that is gone raises `SIGPIPE`; Rust programs ignore that signal from
//! their start on, so that it comes as `EPIPE`.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::{SysconfVar, pipe2, sysconf};

/// The capacity below which making a pipe smaller is not worth another try, in bytes.
const SMALLEST: usize = 64 << 10;

/// A pipe that carries bytes between two sockets.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    places: usize,
}

impl Pipe {
    /// A pipe of `wanted` bytes, or smaller where the kernel allows no more: without
    /// `CAP_SYS_RESOURCE` all pipes of a user share `fs.pipe-user-pages-soft`.
    ///
    /// # Errors
    /// `EMFILE` or `ENFILE` when no more files can be opened.
    pub fn new(wanted: usize) -> io::Result<Self> {
        let (read, write) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let mut size = wanted;
        while size >= SMALLEST {
            let asked = i32::try_from(size).unwrap_or(i32::MAX);
            if fcntl(&write, FcntlArg::F_SETPIPE_SZ(asked)).is_ok() {
                break;
            }
            size /= 4;
        }
        let capacity = fcntl(&write, FcntlArg::F_GETPIPE_SZ)?;
        let capacity = usize::try_from(capacity).unwrap_or(0);
        let page = sysconf(SysconfVar::PAGE_SIZE)?;
        let page = page.and_then(|page| usize::try_from(page).ok());
        Ok(Self {
            read,
            write,
            capacity,
            places: page.map_or(0, |page| capacity / page),
        })
    }

    /// What it holds, in bytes, if each of its pages is full.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// How many pages it holds, each full or with a byte alone.
    #[must_use]
    pub fn places(&self) -> usize {
        self.places
    }

    /// Moves up to `limit` bytes from a socket into the pipe. 0: the peer sent FIN.
    ///
    /// # Errors
    /// `WouldBlock` when the socket is empty or the pipe is full, else the socket's error.
    pub fn fill(&self, socket: &impl AsFd, limit: usize) -> io::Result<usize> {
        moved(socket, &self.write, limit)
    }

    /// Moves up to `held` bytes from the pipe into a socket. `held` must be no more than lies in
    /// the pipe: the kernel would wait for the rest before it sends the last segment.
    ///
    /// # Errors
    /// `WouldBlock` when the socket's send buffer is full, else the socket's error.
    pub fn drain(&self, socket: &impl AsFd, held: usize) -> io::Result<usize> {
        moved(&self.read, socket, held)
    }
}

fn moved(from: &impl AsFd, into: &impl AsFd, bytes: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(from, None, into, None, bytes, flags) {
            Err(Errno::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn bytes_pass_and_an_empty_socket_would_block() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = listener.local_addr().expect("bound");
        let mut left = TcpStream::connect(address).expect("it listens");
        let (right, _) = listener.accept().expect("a client came");
        right.set_nonblocking(true).expect("a plain flag");
        let pipe = Pipe::new(1 << 20).expect("files are left");
        assert!(pipe.capacity() >= 4096);

        let nothing = pipe.fill(&right, 1 << 20).expect_err("nothing was sent");
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);

        left.write_all(b"there and back").expect("connected");
        let mut held = 0;
        while held < 14 {
            match pipe.fill(&right, 1 << 20) {
                Ok(bytes) => held += bytes,
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert_eq!(pipe.drain(&right, held).expect("room is there"), 14);
        let mut back = [0; 14];
        left.read_exact(&mut back).expect("sent back");
        assert_eq!(&back, b"there and back");
    }

    #[test]
    fn fewer_bytes_than_places_have_emptied_the_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let mut left =
            TcpStream::connect(listener.local_addr().expect("bound")).expect("it listens");
        left.set_nodelay(true).expect("a plain option");
        let (right, _) = listener.accept().expect("a client came");
        let pipe = Pipe::new(SMALLEST).expect("files are left");
        assert!(pipe.places() > 0);
        let (mut partly, mut wholly) = (false, false);
        for count in (1..40).chain([200, 700]) {
            // Each in a segment of its own.
            (0..count).for_each(|_| left.write_all(b"1").expect("connected"));
            let mut waiting = vec![0; count];
            while right.peek(&mut waiting).expect("connected") < count {}
            let mut moved = 0;
            right.set_nonblocking(true).expect("a plain flag");
            while moved < count {
                let filled = pipe.fill(&right, SMALLEST).expect("some are left");
                moved += filled;
                if filled < pipe.places() {
                    assert_eq!(moved, count, "it has not been emptied");
                    wholly = true;
                }
                partly |= moved < count;
                let mut rest = vec![0; filled];
                nix::unistd::read(&pipe.read, &mut rest).expect("they lie there");
            }
            right.set_nonblocking(false).expect("a plain flag");
        }
        assert!(
            wholly && partly,
            "a full pipe and an empty socket were seen"
        );
    }
}
