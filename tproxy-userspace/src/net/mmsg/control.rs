//! Names and control messages in the kernel's layout (`struct sockaddr_in`, `sockaddr_in6`, `cmsghdr`), written and read as
//! bytes.

use std::mem::size_of;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use tproxy_common::abi::{MARK_EXPRESS_ANSWER, MARK_MASK, MARK_STEER, NUMBER_SHIFT};

use super::reply_mark;

/// Bytes of the largest name, `struct sockaddr_in6`.
pub const NAME: usize = 28;
/// Bytes of `struct cmsghdr` in the kernel: a length of word size, the level, the type.
const CONTROL_HEADER: usize = size_of::<usize>() + 8;
/// Room for the control messages of one datagram or train: `in6_pktinfo`, a mark and the length of a part; or an original
/// destination, how many were lost, a mark and the length of a part.
pub const CONTROL: usize = 128;

/// A `struct sockaddr_in` or `sockaddr_in6`.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Name(pub [u8; NAME]);

impl Name {
    pub const EMPTY: Self = Self([0; NAME]);

    /// Writes the address and returns how many bytes it takes.
    pub fn set(&mut self, address: SocketAddr) -> usize {
        let bytes = &mut self.0;
        bytes[2..4].copy_from_slice(&address.port().to_be_bytes());
        match address {
            SocketAddr::V4(v4) => {
                bytes[..2].copy_from_slice(&family(libc::AF_INET));
                bytes[4..8].copy_from_slice(&v4.ip().octets());
                bytes[8..16].fill(0);
                16
            }
            SocketAddr::V6(v6) => {
                bytes[..2].copy_from_slice(&family(libc::AF_INET6));
                bytes[4..8].copy_from_slice(&v6.flowinfo().to_ne_bytes());
                bytes[8..24].copy_from_slice(&v6.ip().octets());
                bytes[24..28].copy_from_slice(&v6.scope_id().to_ne_bytes());
                NAME
            }
        }
    }
}

fn family(number: i32) -> [u8; 2] {
    u16::try_from(number).unwrap_or(0).to_ne_bytes()
}

/// Reads a socket address from the kernel's bytes.
pub fn parse_name(bytes: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(*bytes.get(2..)?.first_chunk()?);
    match bytes.first_chunk::<2>()? {
        number if *number == family(libc::AF_INET) => {
            let octets: [u8; 4] = *bytes.get(4..)?.first_chunk()?;
            Some(SocketAddr::from((Ipv4Addr::from(octets), port)))
        }
        number if *number == family(libc::AF_INET6) => {
            let octets: [u8; 16] = *bytes.get(8..)?.first_chunk()?;
            let scope = u32::from_ne_bytes(*bytes.get(24..)?.first_chunk()?);
            Some(SocketAddrV6::new(Ipv6Addr::from(octets), port, 0, scope).into())
        }
        _ => None,
    }
}

/// Control messages one after the other, each on a word boundary.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub struct Control(pub [u8; CONTROL]);

impl Control {
    pub const EMPTY: Self = Self([0; CONTROL]);

    /// Adds a message at `at` and returns where the next one goes.
    fn push(&mut self, at: usize, level: i32, kind: i32, data: &[u8]) -> usize {
        let length = CONTROL_HEADER + data.len();
        let message = &mut self.0[at..at + length];
        message[..size_of::<usize>()].copy_from_slice(&length.to_ne_bytes());
        message[size_of::<usize>()..][..4].copy_from_slice(&level.to_ne_bytes());
        message[size_of::<usize>() + 4..][..4].copy_from_slice(&kind.to_ne_bytes());
        message[CONTROL_HEADER..].copy_from_slice(data);
        at + length.next_multiple_of(size_of::<usize>())
    }

    /// Writes the source address and the mark of a reply; returns how many bytes they take.
    pub fn set_reply(&mut self, from: SocketAddr) -> usize {
        let at = match from.ip() {
            IpAddr::V4(ip) => {
                // struct in_pktinfo: link (0: by route), source address, unused.
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                self.push(0, libc::IPPROTO_IP, libc::IP_PKTINFO, &info)
            }
            IpAddr::V6(ip) => {
                // struct in6_pktinfo: source address, link (0: by route).
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                self.push(0, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info)
            }
        };
        let mark = reply_mark(from.port()).to_ne_bytes();
        self.push(at, libc::SOL_SOCKET, libc::SO_MARK, &mark)
    }

    /// Adds the length of the parts of a train (`UDP_SEGMENT`) at `at`; returns how many bytes all take.
    pub fn set_part(&mut self, at: usize, part: u16) -> usize {
        self.push(at, libc::SOL_UDP, libc::UDP_SEGMENT, &part.to_ne_bytes())
    }
}

/// Finds the original destination among control messages.
pub fn parse_original(control: &[u8]) -> Option<SocketAddr> {
    parse_name(find(control, |level, kind| {
        matches!(
            (level, kind),
            (libc::SOL_IP, libc::IP_ORIGDSTADDR) | (libc::SOL_IPV6, libc::IPV6_ORIGDSTADDR)
        )
    })?)
}

/// Finds among control messages how many datagrams the socket had no room for, ever.
pub fn parse_lost(control: &[u8]) -> Option<u32> {
    let data = find(control, |level, kind| {
        (level, kind) == (libc::SOL_SOCKET, libc::SO_RXQ_OVFL)
    })?;
    Some(u32::from_ne_bytes(*data.first_chunk()?))
}

/// Finds among control messages the number of a datagram whose flow changes to the express lane.
pub fn parse_number(control: &[u8]) -> Option<u16> {
    let data = find(control, |level, kind| {
        (level, kind) == (libc::SOL_SOCKET, libc::SO_MARK)
    })?;
    let mark = u32::from_ne_bytes(*data.first_chunk()?);
    let number = (mark >> NUMBER_SHIFT) as u16;
    let ours = matches!(mark & MARK_MASK, MARK_STEER | MARK_EXPRESS_ANSWER);
    (ours && number != 0).then_some(number)
}

/// Finds among control messages how long the parts of a train are (`UDP_GRO`).
pub fn parse_part(control: &[u8]) -> Option<usize> {
    let data = find(control, |level, kind| {
        (level, kind) == (libc::SOL_UDP, libc::UDP_GRO)
    })?;
    let part = i32::from_ne_bytes(*data.first_chunk()?);
    usize::try_from(part).ok().filter(|part| *part > 0)
}

/// The data of the first control message that is meant.
fn find(mut control: &[u8], is_meant: impl Fn(i32, i32) -> bool) -> Option<&[u8]> {
    loop {
        let length = usize::from_ne_bytes(*control.first_chunk()?);
        let message = control.get(..length)?;
        let level = i32::from_ne_bytes(*message.get(size_of::<usize>()..)?.first_chunk()?);
        let kind = i32::from_ne_bytes(*message.get(size_of::<usize>() + 4..)?.first_chunk()?);
        if is_meant(level, kind) {
            return message.get(CONTROL_HEADER..);
        }
        control = control.get(length.next_multiple_of(size_of::<usize>())..)?;
    }
}
