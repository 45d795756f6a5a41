//! The clsact qdisc of kernels without tcx. aya adds it; it cannot remove it.

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};

use super::{Error, Netlink};

/// Removes the clsact qdisc of a link.
///
/// # Errors
/// [`Error::Netlink`].
pub async fn remove_clsact(netlink: &Netlink, index: u32, name: &str) -> Result<(), Error> {
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    netlink
        .change(&RouteNetlinkMessage::DelQueueDiscipline(message), 0)
        .await
        .map_err(Error::netlink(
            "remove",
            format!("the clsact qdisc of {name}"),
        ))
}
