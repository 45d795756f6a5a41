//! Between two processes of one gateway: messages with open files, and datagrams that stay whole.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv,
    recvmsg, sendmsg, setsockopt, socketpair, sockopt,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::UnixStream;

/// Files that go with one message. The kernel takes 253 (`SCM_MAX_FD`).
pub const MOST_FILES: usize = 128;
/// Buffer of a [`Channel`], in bytes: some datagrams of the largest size, many of the usual one.
const CHANNEL_BUFFER: usize = 4 << 20;

/// Sends a message: its length, then its bytes. The files go with the length.
///
/// # Errors
/// The kernel's, or `InvalidInput` for too much of either.
pub async fn send(
    stream: &mut UnixStream,
    bytes: &[u8],
    files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let length = u32::try_from(bytes.len());
    let length = length.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    if files.len() > MOST_FILES {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let header = length.to_be_bytes();
    let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&files)];
    let control: &[ControlMessage<'_>] = if files.is_empty() { &[] } else { &rights };
    let sent = stream
        .async_io(Interest::WRITABLE, || {
            let parts = [IoSlice::new(&header)];
            Ok(sendmsg::<()>(
                stream.as_raw_fd(),
                &parts,
                control,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL,
                None,
            )?)
        })
        .await?;
    stream.write_all(&header[sent..]).await?;
    stream.write_all(bytes).await
}

/// Receives a message of at most `most` bytes, and the files that came with it.
///
/// # Errors
/// The kernel's; `UnexpectedEof` when the other side has gone, `InvalidData` for a longer message.
pub async fn receive(stream: &mut UnixStream, most: usize) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut header = [0; size_of::<u32>()];
    let mut files = Vec::new();
    let got = stream
        .async_io(Interest::READABLE, || {
            let mut control = cmsg_space!([RawFd; MOST_FILES]);
            let mut parts = [IoSliceMut::new(&mut header)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
            for one in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(descriptors) = one {
                    // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows of them.
                    files.extend(
                        descriptors
                            .into_iter()
                            .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                    );
                }
            }
            Ok(message.bytes)
        })
        .await?;
    if got == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.read_exact(&mut header[got..]).await?;
    let length = u32::from_be_bytes(header) as usize;
    if length > most {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; length];
    stream.read_exact(&mut bytes).await?;
    Ok((bytes, files))
}

/// One end of a connection between two processes that keeps the bounds of what is sent.
#[derive(Debug)]
pub struct Channel(AsyncFd<OwnedFd>);

impl Channel {
    /// Two ends: one to use, one to give away.
    ///
    /// # Errors
    /// When this machine has no file left.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (own, other) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        for end in [&own, &other] {
            setsockopt(end, sockopt::SndBufForce, &CHANNEL_BUFFER)?;
        }
        Ok((Self::new(own)?, other))
    }

    /// The end that was given away, in the other process.
    ///
    /// # Errors
    /// When the runtime's poller refuses it.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub fn new(end: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` stands for the same open descriptor until it is dropped, which only its owner does.
        Ok(Self(unsafe { AsyncFd::register(end) }?))
    }

    /// This end once more, to be given away.
    ///
    /// # Errors
    /// When this machine has no file left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.0.get_ref().try_clone()
    }

    /// Sends the parts as one message.
    ///
    /// # Errors
    /// `WouldBlock` when there is no room now; `BrokenPipe` and `ConnectionReset` when the other end is gone.
    pub fn try_send(&self, parts: &[IoSlice<'_>]) -> io::Result<()> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.0.as_raw_fd(), parts, &[], flags, None)?;
        Ok(())
    }

    /// Receives one message; 0 bytes when the other end is gone. What does not fit into the buffer is lost. Nothing is
    /// lost when the future is dropped.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let receive = |fd: &OwnedFd| {
            let fd = fd.as_fd().as_raw_fd();
            Ok(recv(fd, buffer, MsgFlags::MSG_DONTWAIT)?)
        };
        self.0.async_io(Interest::READABLE, receive).await
    }

    /// Waits until the other end is gone. What still comes is lost.
    pub async fn closed(&self) {
        while let Ok(1..) = self.receive(&mut [0]).await {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::*;

    #[tokio::test]
    async fn a_message_brings_its_files_and_its_bytes() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"written by one process").unwrap();
        let bytes = vec![7; 1 << 20];
        let wanted = bytes.clone();
        let sending = tokio::spawn(async move {
            send(&mut one, &bytes, &[file.as_fd(), file.as_fd()])
                .await
                .unwrap();
            send(&mut one, b"second", &[]).await.unwrap();
        });
        let (found, files) = receive(&mut other, 1 << 20).await.unwrap();
        assert_eq!((found, files.len()), (wanted, 2));
        let (found, none) = receive(&mut other, 6).await.unwrap();
        assert_eq!((&found[..], none.len()), (&b"second"[..], 0));
        sending.await.unwrap();
        let gone = receive(&mut other, 6).await.unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::UnexpectedEof);
        let mut file = std::fs::File::from(files.into_iter().next().unwrap());
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "written by one process");
    }

    #[tokio::test]
    async fn a_message_that_is_too_long_is_refused() {
        let (mut one, mut other) = UnixStream::pair().unwrap();
        send(&mut one, b"1234567", &[]).await.unwrap();
        let error = receive(&mut other, 6).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn a_channel_keeps_the_largest_datagram_whole_and_tells_of_its_end() {
        let (one, other) = Channel::pair().unwrap();
        let other = Channel::new(other).unwrap();
        let payload = vec![3; 65_507];
        one.try_send(&[IoSlice::new(b"head"), IoSlice::new(&payload)])
            .unwrap();
        one.try_send(&[IoSlice::new(b"next")]).unwrap();
        let mut buffer = vec![0; 70_000];
        assert_eq!(other.receive(&mut buffer).await.unwrap(), 65_511);
        assert_eq!(buffer[..5], *b"head\x03");
        assert_eq!(other.receive(&mut buffer).await.unwrap(), 4);
        one.try_send(&[IoSlice::new(b"last")]).unwrap();
        drop(one);
        other.closed().await;
        assert_eq!(other.receive(&mut buffer).await.unwrap(), 0);
        let error = other.try_send(&[IoSlice::new(b"x")]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
