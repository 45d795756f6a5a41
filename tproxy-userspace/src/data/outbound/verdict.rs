//! What a server turns out to be that gives no reply of its own to its password: it does what it is asked, or not.

use super::shadowsocks::ShadowsocksServer;
use super::{DialError, Outbound, Peer, shadowsocks, trojan};
use crate::data::stream::Duplex;
use crate::data::way::Way;

/// What is wrong with the server of a way, by the stream that broke. `silent`: it has ended the connection after it was
/// sent something, and before it sent anything.
pub fn what_is_wrong(
    way: &Way,
    stream: &(impl Duplex + ?Sized),
    silent: bool,
) -> Option<DialError> {
    let (kind, causes) = match &*way.outbound {
        Outbound::Trojan(_) => (trojan::KIND, "the password is wrong"),
        Outbound::Shadowsocks(ShadowsocksServer { keys, .. }) if keys.method().is_2022() => (
            shadowsocks::KIND,
            "the password or the method is wrong, or the clocks differ by more than 30 s",
        ),
        Outbound::Shadowsocks(_) => (shadowsocks::KIND, "the password or the method is wrong"),
        _ => return None,
    };
    let at = match (way.through(), way.outbound.server()) {
        (Some((other, server)), _) => format!("{server} (through \"{}\")", other.name),
        (None, server) => server.map(|server| server.to_string()).unwrap_or_default(),
    };
    let server = Peer { kind, at };
    if let Some(complaint) = stream.complaint(&server) {
        return Some(complaint);
    }
    silent.then(|| DialError::Auth {
        server,
        reason: format!(
            "ended the connection without an answer: {causes}, or the destination hung up"
        ),
    })
}
