//! The clsact qdisc of kernels without tcx. aya adds it; it cannot remove it.

use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};

use super::{Error, Netlink, NetlinkError};

/// Has a link the clsact qdisc, or the older ingress, which has the same place?
///
/// # Errors
/// [`Error::Netlink`].
pub async fn has_clsact(netlink: &Netlink, index: u32, name: &str) -> Result<bool, Error> {
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let all = netlink.dump(&request).await;
    let all = all.map_err(Error::netlink(
        "list",
        format!("the queueing disciplines of {name}"),
    ))?;
    // struct tcmsg (linux/rtnetlink.h): the link at 4, the parent at 12.
    let word = |bytes: &[u8], at: usize| {
        let word = bytes.get(at..at + 4)?;
        Some(u32::from_ne_bytes(word.try_into().ok()?))
    };
    let place = u32::from(TcHandle::CLSACT);
    Ok(all
        .iter()
        .any(|bytes| word(bytes, 4) == Some(index) && word(bytes, 12) == Some(place)))
}

/// Removes the clsact qdisc of a link, unless it holds a filter of somebody else by now. One that is
/// gone, maybe with its link, needs no removing.
///
/// # Errors
/// [`Error::Netlink`].
pub async fn remove_clsact(netlink: &Netlink, index: u32, name: &str) -> Result<(), Error> {
    for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
        let mut request = TcMessage::default();
        request.header.index = index.cast_signed();
        request.header.parent = TcHandle {
            major: TcHandle::CLSACT.major,
            minor,
        };
        let filters = netlink
            .dump(&RouteNetlinkMessage::GetTrafficFilter(request))
            .await;
        match filters {
            Ok(filters) if filters.is_empty() => {}
            Ok(_) => return Ok(()),
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => {
                return Err(Error::netlink("list", format!("the filters of {name}"))(
                    error,
                ));
            }
        }
    }
    let mut message = TcMessage::default();
    message.header.index = index.cast_signed();
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: 0xffff,
        minor: 0,
    };
    let removed = netlink
        .change(&RouteNetlinkMessage::DelQueueDiscipline(message), 0)
        .await;
    match removed {
        Err(error) if !is_gone(&error) => Err(Error::netlink(
            "remove",
            format!("the clsact qdisc of {name}"),
        )(error)),
        _ => Ok(()),
    }
}

/// No such link, or no such qdisc: EINVAL means that its place has another handle, which is none.
const fn is_gone(error: &NetlinkError) -> bool {
    matches!(error.errno, libc::ENODEV | libc::ENOENT | libc::EINVAL)
}
