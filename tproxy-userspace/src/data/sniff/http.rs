//! The host of an HTTP/1 request (RFC 9112 sections 3.2 and 7.2 of RFC 9110).

use super::{Progress, Protocol, found};

/// The longest method: the registry's longest has 17 letters (`UPDATEREDIRECTREF`).
const LONGEST_METHOD: usize = 20;
/// The most empty lines before a request; one is to be expected (RFC 9112 section 2.2).
const EMPTY_LINES: usize = 2;

/// The name that a request is for, from all bytes so far. It ends with the line that names it; what follows does
/// not matter.
///
/// The host in the target of a request counts for more than that of the field `Host` (RFC 9112 section 3.2.2). The
/// preface of HTTP/2 (RFC 9113 section 3.4) is no request.
#[must_use]
pub fn request(bytes: &[u8]) -> Progress {
    let mut lines = Lines(bytes);
    let mut line = lines.next();
    for _ in 0..EMPTY_LINES {
        if line == Some(b"") {
            line = lines.next();
        }
    }
    let Some(line) = line else {
        return if may_begin(lines.0) {
            Progress::NeedMore
        } else {
            Progress::NotThis
        };
    };
    let Some((method, target)) = request_line(line) else {
        return Progress::NotThis;
    };
    if let Some(authority) = authority(method, target) {
        return found(host(authority), Protocol::Http, false);
    }
    loop {
        match lines.next() {
            None => return Progress::NeedMore,
            // The end of the fields.
            Some(b"") => return Progress::NotThis,
            Some(line) => {
                if let Some(value) = host_field(line) {
                    return found(host(value), Protocol::Http, false);
                }
            }
        }
    }
}

/// Could a line that is not whole yet become a request line?
fn may_begin(line: &[u8]) -> bool {
    let line = match line {
        [b'\r'] => return true,
        line => line,
    };
    let length = line.iter().take_while(|byte| is_method(**byte)).count();
    match line.get(length) {
        None => length <= LONGEST_METHOD,
        Some(b' ') => {
            (1..=LONGEST_METHOD).contains(&length)
                && !line[length..].iter().any(|byte| is_control(*byte))
        }
        Some(_) => false,
    }
}

/// All methods that exist are in upper case, some with a hyphen.
fn is_method(byte: u8) -> bool {
    byte.is_ascii_uppercase() || byte == b'-'
}

/// What stands in no request line. Its `\r` is the last byte at most, and waits for the `\n` there.
fn is_control(byte: u8) -> bool {
    byte.is_ascii_control() && byte != b'\r'
}

/// Method and target of a line like `GET / HTTP/1.1`.
fn request_line(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let fits = (1..=LONGEST_METHOD).contains(&method.len())
        && method.iter().all(|byte| is_method(*byte))
        && !target.is_empty()
        && !target.iter().any(u8::is_ascii_control)
        && matches!(version, b"HTTP/1.0" | b"HTTP/1.1")
        && words.next().is_none();
    fits.then_some((method, target))
}

/// Host and port in the target: `CONNECT host:port`, or `GET http://host:port/path`.
fn authority<'t>(method: &[u8], target: &'t [u8]) -> Option<&'t [u8]> {
    if method == b"CONNECT" {
        return Some(target);
    }
    let behind = [&b"http://"[..], b"https://", b"ws://", b"wss://"]
        .into_iter()
        .find_map(|scheme| {
            let (start, rest) = target.split_at_checked(scheme.len())?;
            start.eq_ignore_ascii_case(scheme).then_some(rest)
        })?;
    let end = behind
        .iter()
        .position(|byte| b"/?#".contains(byte))
        .unwrap_or(behind.len());
    let authority = &behind[..end];
    // User and password, which nobody should send any more (RFC 9110 section 4.2.4).
    let user = authority.iter().rposition(|byte| *byte == b'@');
    Some(user.map_or(authority, |user| &authority[user + 1..]))
}

/// The value of a `Host` field.
fn host_field(line: &[u8]) -> Option<&[u8]> {
    let (name, value) = line.split_at_checked(b"host:".len())?;
    name.eq_ignore_ascii_case(b"host:")
        .then_some(value.trim_ascii())
}

/// The host without its port. An IPv6 address stays in brackets.
fn host(authority: &[u8]) -> &[u8] {
    let port = authority
        .iter()
        .rposition(|byte| *byte == b':')
        .filter(|colon| authority[colon + 1..].iter().all(u8::is_ascii_digit));
    port.map_or(authority, |colon| &authority[..colon])
}

/// Whole lines. In front of the rest that is none yet it stops.
struct Lines<'b>(&'b [u8]);

impl<'b> Lines<'b> {
    fn next(&mut self) -> Option<&'b [u8]> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let (line, rest) = (&self.0[..end], &self.0[end + 1..]);
        self.0 = rest;
        // A line may end with `\n` alone (RFC 9112 section 2.2).
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}
