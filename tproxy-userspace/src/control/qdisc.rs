//! The clsact qdisc of kernels without tcx. aya adds it; it cannot remove it.

use netlink_packet_route::tc::TcHandle;

/// Why the qdisc was not removed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no netlink socket.
    #[error("opening a netlink socket failed: {0}")]
    Socket(#[source] std::io::Error),
    /// The kernel refused.
    #[error("removing the clsact qdisc from {name} failed: {source}")]
    Remove {
        /// The link.
        name: String,
        /// Why.
        #[source]
        source: rtnetlink::Error,
    },
}

/// Removes the clsact qdisc of a link.
///
/// # Errors
/// [`Error`].
pub async fn remove_clsact(index: u32, name: &str) -> Result<(), Error> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
    let connection = tokio::spawn(connection);
    let mut request = handle.qdisc().del(index as i32);
    let message = request.message_mut();
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: 0xffff, minor: 0 };
    let removed = request.execute().await;
    connection.abort();
    removed.map_err(|source| Error::Remove { name: name.into(), source })
}
