//! What a SOCKS5 server sends.

use tproxy_userspace::data::outbound::wire::{
    LONGEST_REPLY, Reply, datagram_header, parse_auth, parse_datagram, parse_method, parse_reply,
};

/// The bytes as each kind of answer.
pub fn replies(bytes: &[u8]) {
    if let Some(answer) = bytes.first_chunk() {
        for password in [false, true] {
            let _ = parse_method(*answer, password);
        }
        let _ = parse_auth(*answer);
    }
    // Read as the dialler does: never more than is needed.
    let mut read = 0;
    let end = loop {
        match parse_reply(&bytes[..read]) {
            Ok(Reply::Needs(more)) => {
                assert!(
                    more > 0 && read + more <= LONGEST_REPLY,
                    "{more} more after {read}"
                );
                read += more;
                if read > bytes.len() {
                    break None;
                }
            }
            other => break Some(other),
        }
    };
    // Bytes behind the reply belong to the connection and change nothing. What refuses may end early.
    if let Some(end) = end {
        assert_eq!(parse_reply(bytes), end);
    }
    if let Ok((peer, start)) = parse_datagram(bytes) {
        assert!(start <= bytes.len());
        if let Some(peer) = peer {
            let header = datagram_header(peer);
            let again = parse_datagram(header.as_slice());
            assert_eq!(again, Ok((Some(peer), header.as_slice().len())));
        }
    }
}
