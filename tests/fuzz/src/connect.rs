//! What an HTTP proxy sends.

use tproxy_userspace::data::outbound::connect::{LONGEST_HEAD, parse};

use crate::bytes::assert_printable;

/// The bytes as the reply to a request.
pub fn replies(bytes: &[u8]) {
    let whole = parse(bytes);
    match &whole {
        Ok(None) => assert!(bytes.len() < LONGEST_HEAD, "there is no end of waiting"),
        Ok(Some((reply, length))) => {
            assert!(*length <= bytes.len().min(LONGEST_HEAD));
            assert!((101..600).contains(&reply.status), "{}", reply.status);
            assert_printable(&reply.line());
            for method in &reply.methods {
                assert_printable(method);
            }
            // What is behind belongs to the connection and changes nothing, and a byte less is not enough.
            assert_eq!(parse(&bytes[..*length]), whole);
            assert_eq!(parse(&bytes[..*length - 1]), Ok(None));
        }
        Err(error) => {
            assert_printable(&error.to_string());
            // More bytes make no reply of it.
            let more = [bytes, b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"].concat();
            assert!(parse(&more).is_err());
        }
    }
}
