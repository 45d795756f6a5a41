//! The bytes of HTTP's CONNECT (RFC 9110 section 9.3.6, RFC 9112), without any I/O.
//!
//! The reader takes whatever a server may send and never panics.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Credentials;
use crate::policy::prefix::excerpt;

/// The most bytes of all heads of a reply together.
pub const LONGEST_HEAD: usize = 8 << 10;

/// How a server can break the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The first line is none of HTTP/1.
    #[error("it does not begin like HTTP/1")]
    Version,
    /// The first line has no status.
    #[error("it has no status")]
    Status,
    /// There is no end.
    #[error("it has more than {} KiB before its end", LONGEST_HEAD >> 10)]
    TooLong,
}

/// What a server says to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// 200 to 599.
    pub status: u16,
    /// What the server says to it, fit for a terminal.
    pub reason: String,
    /// Of 407: the methods of authentication that are on offer, fit for a terminal.
    pub methods: Vec<String>,
}

impl Reply {
    /// The connection is there.
    #[must_use]
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// `403 Forbidden`.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{} {}", self.status, self.reason)
            .trim_end()
            .to_owned()
    }
}

/// The request for a connection to `authority`, which is `host:port` with brackets around an IPv6 address.
#[must_use]
pub fn request(authority: &str, credentials: Option<&Credentials>) -> String {
    let mut text = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some(Credentials { user, password }) = credentials {
        let both = STANDARD.encode([user, &b":"[..], password].concat());
        text.push_str("Proxy-Authorization: Basic ");
        text.push_str(&both);
        text.push_str("\r\n");
    }
    text.push_str("\r\n");
    text
}

/// Reads the reply from all bytes so far: the reply, and how many of the bytes it has. What is behind belongs to the
/// destination. None: its end is not there yet. Interim replies (1xx) before it are passed over.
///
/// # Errors
/// When it is no reply of HTTP/1, or too long.
pub fn parse(bytes: &[u8]) -> Result<Option<(Reply, usize)>, Malformed> {
    let mut start = 0;
    loop {
        let head = &bytes[start..];
        let Some(length) = end(head) else {
            // What is none already is told at once.
            let known = head.len().min(PREFIX.len());
            return match bytes.len() {
                _ if !head[..known].eq_ignore_ascii_case(&PREFIX[..known]) => {
                    Err(Malformed::Version)
                }
                LONGEST_HEAD.. => Err(Malformed::TooLong),
                _ => Ok(None),
            };
        };
        if start + length > LONGEST_HEAD {
            return Err(Malformed::TooLong);
        }
        let reply = head_of(&head[..length])?;
        start += length;
        // 101 is the answer to a question that was not asked.
        if !(100..200).contains(&reply.status) || reply.status == 101 {
            return Ok(Some((reply, start)));
        }
    }
}

const PREFIX: &[u8] = b"HTTP/1.";

/// How many bytes there are up to the end of the empty line. A line may end without CR (RFC 9112 section 2.2).
fn end(bytes: &[u8]) -> Option<usize> {
    let mut line = 0;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b'\n' {
            if matches!(&bytes[line..at], b"" | b"\r") {
                return Some(at + 1);
            }
            line = at + 1;
        }
    }
    None
}

fn head_of(bytes: &[u8]) -> Result<Reply, Malformed> {
    // What begins with white space is no reply, whether or not its end is there.
    let mut lines = bytes
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii_end);
    let line = lines.next().unwrap_or_default();
    let rest = line
        .split_at_checked(PREFIX.len())
        .filter(|(prefix, _)| prefix.eq_ignore_ascii_case(PREFIX))
        .map(|(_, rest)| rest)
        .ok_or(Malformed::Version)?;
    let [
        b'0'..=b'9',
        b' ',
        hundreds @ b'1'..=b'5',
        tens,
        ones,
        rest @ ..,
    ] = rest
    else {
        return Err(Malformed::Status);
    };
    let digits = [*hundreds, *tens, *ones];
    if !digits.iter().all(u8::is_ascii_digit) || !matches!(rest, [] | [b' ', ..]) {
        return Err(Malformed::Status);
    }
    let number = |value: u16, digit: &u8| value * 10 + u16::from(digit - b'0');
    let methods = lines.filter_map(|line| {
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':')?);
        name.eq_ignore_ascii_case(b"proxy-authenticate").then(|| {
            let value = value[1..].trim_ascii();
            let word = value.split(|byte| b" ,".contains(byte)).next();
            excerpt(&String::from_utf8_lossy(word.unwrap_or_default()))
        })
    });
    Ok(Reply {
        status: digits.iter().fold(0, number),
        reason: excerpt(&String::from_utf8_lossy(rest.trim_ascii())),
        methods: methods.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reply(status: u16, reason: &str) -> Reply {
        Reply {
            status,
            reason: reason.to_owned(),
            methods: Vec::new(),
        }
    }

    #[test]
    fn white_space_before_a_reply_is_no_reply_whole_or_in_pieces() {
        for text in [
            &b" HTTP/1.1 200 OK\r\n\r\n"[..],
            b"HTTP/1.1 100 A\r\n\r\n\x0c\rHTTP/1.1 200 OK\r\n\r\n",
        ] {
            assert_eq!(parse(text), Err(Malformed::Version));
            assert_eq!(parse(&text[..text.len() - 1]), Err(Malformed::Version));
        }
    }

    #[test]
    fn a_request_names_the_authority_twice_and_the_user_in_base64() {
        assert_eq!(
            request("[2001:db8::1]:443", None),
            "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n"
        );
        // The example of RFC 7617 section 2.
        let credentials = Credentials {
            user: b"Aladdin".to_vec(),
            password: b"open sesame".to_vec(),
        };
        let text = request("h:1", Some(&credentials));
        let line = "\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n";
        assert!(text.ends_with(line), "{text}");
    }

    #[test]
    fn replies_are_read_to_their_end_and_no_further() {
        for (bytes, expected, behind) in [
            ("HTTP/1.1 200 OK\r\n\r\n", reply(200, "OK"), ""),
            ("HTTP/1.0 200\r\n\r\nSSH-2.0", reply(200, ""), "SSH-2.0"),
            ("http/1.1 299 \n\n\n", reply(299, ""), "\n"),
            (
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nA: b\r\n\r\nHTTP/1.1 200 Yes\r\n\r\nx",
                reply(200, "Yes"),
                "x",
            ),
            (
                "HTTP/1.1 101 Switching\r\n\r\n",
                reply(101, "Switching"),
                "",
            ),
            (
                "HTTP/1.1 403 \x1b[31mNo\r\nContent-Length: 9\r\n\r\n",
                reply(403, "\\u{1b}[31mNo"),
                "",
            ),
            (
                "HTTP/1.1 407 No\r\nPROXY-authenticate: Basic realm=\"a\"\r\nProxy-Authenticate:NTLM\r\n\r\n",
                Reply {
                    methods: vec!["Basic".to_owned(), "NTLM".to_owned()],
                    ..reply(407, "No")
                },
                "",
            ),
        ] {
            let whole = bytes.len() - behind.len();
            assert_eq!(
                parse(bytes.as_bytes()),
                Ok(Some((expected, whole))),
                "{bytes}"
            );
            for cut in 0..whole {
                assert_eq!(parse(&bytes.as_bytes()[..cut]), Ok(None), "{bytes} {cut}");
            }
        }
    }

    #[test]
    fn what_is_no_reply_is_told_as_soon_as_it_is_known() {
        for (bytes, error) in [
            ("SSH-2.0-OpenSSH", Malformed::Version),
            ("\x05\x00", Malformed::Version),
            ("HTTP/2 200\r\n\r\n", Malformed::Version),
            ("\r\n\r\n", Malformed::Version),
            ("HTTP/1.\r\n\r\n", Malformed::Status),
            ("HTTP/1.1 2xx OK\r\n\r\n", Malformed::Status),
            ("HTTP/1.1 2000 OK\r\n\r\n", Malformed::Status),
            ("HTTP/1.1 700 OK\r\n\r\n", Malformed::Status),
            ("HTTP/1.1 100 C\r\n\r\nHELO", Malformed::Version),
        ] {
            assert_eq!(parse(bytes.as_bytes()), Err(error), "{bytes}");
        }
        let long = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "b".repeat(LONGEST_HEAD));
        assert_eq!(parse(long.as_bytes()), Err(Malformed::TooLong));
        assert_eq!(
            parse(&long.as_bytes()[..LONGEST_HEAD]),
            Err(Malformed::TooLong)
        );
        assert_eq!(parse(&long.as_bytes()[..LONGEST_HEAD - 1]), Ok(None));
        let many = "HTTP/1.1 100 C\r\n\r\n".repeat(1000);
        assert_eq!(parse(many.as_bytes()), Err(Malformed::TooLong));
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(
            start in "(HTTP/1\\.1 [1-5][0-9]{2} ?)?",
            rest in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..300),
        ) {
            let bytes = [start.as_bytes(), &rest].concat();
            let whole = parse(&bytes);
            if let Ok(Some((reply, length))) = &whole {
                prop_assert!(*length <= bytes.len());
                prop_assert!(!reply.line().chars().any(char::is_control));
                prop_assert_eq!(parse(&bytes[..*length]), whole.clone());
                prop_assert_eq!(parse(&bytes[..*length - 1]), Ok(None));
            }
        }
    }
}
