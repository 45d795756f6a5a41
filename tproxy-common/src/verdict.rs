//! The whole steering policy: a packet and what the hook knows about it, to a [`Verdict`].
//!
//! The hook answers questions through [`Facts`]; what is not asked costs nothing. The order of the
//! questions is from cheap to dear, and a packet that passes for its destination asks the fewest.

use crate::abi::{DNS_PORT, FragmentFate, Reason, Settings};
use crate::packet::{Addresses, Packet, Ports, Transport};

/// What is to become of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave it to the kernel.
    Pass(Reason),
    /// Mark it, so that it is delivered locally.
    Steer(Target),
    /// End it.
    Drop(Reason),
}

/// Which socket a steered packet is for. Where it is a listener, [`Packet::listener`] says which.
///
/// Like each [`Reason`] it is no more than a number: so every verdict has a value in every part. What a
/// variant leaves unset, a compiler may move about, and the verifier of the kernel refuses that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// One of the proxy's listeners, which the hook assigns.
    Listener,
    /// The same for a DNS question to somebody else.
    Resolver,
    /// The same for a DNS question to the gateway itself: with no proxy it reaches whoever else answers there.
    OwnResolver,
    /// The connection's own socket, which [`Facts::connection`] has assigned.
    Connection,
    /// None: the connection is gone. The gateway's TCP answers with RST where Linux lets it.
    Gone,
    /// None yet: the gateway reassembles the datagram first, and socket lookup finds the listener
    /// or the connection then. The proxy must be up for it, which the hook checks by the listener.
    Reassembly,
}

/// What the hook knows about one of the gateway's own prefixes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locality {
    /// Not of the gateway.
    Foreign,
    /// One of its addresses.
    Address,
    /// In a subnet it is part of.
    Subnet,
}

/// What became of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// The proxy holds it.
    Held,
    /// The proxy held it once, and it is gone.
    Gone,
    /// The proxy has nothing to do with it.
    Unknown,
}

/// What the decision may ask of the hook.
pub trait Facts {
    /// The settings in force.
    fn settings(&self) -> Settings;
    /// Is the destination an address or a subnet of the gateway?
    fn locality(&self, addresses: &Addresses) -> Locality;
    /// Is the packet exempt by a mark of others? Only what the gateway itself sends can be.
    #[inline(always)]
    fn exempt(&self) -> bool {
        false
    }
    /// Is the destination in the bypass set? Counts the hit.
    fn bypassed(&self, addresses: &Addresses) -> bool;
    /// May this source use the proxy?
    fn admitted(&self, addresses: &Addresses) -> bool;
    /// Who holds the connection that this TCP segment is part of? In the kernel, finding it assigns
    /// the packet to it: a socket reference cannot be carried out of the question.
    fn connection(&self, packet: &Packet) -> Connection;
    /// What became of the first fragment of this TCP segment?
    fn fragment(&self, packet: &Packet) -> Option<FragmentFate>;
}

/// What more may be asked about a packet that the gateway itself sends.
pub trait OwnFacts: Facts {
    /// Did the peer write to the UDP service that this datagram comes from, and not long ago?
    fn answers_caller(&self, packet: &Packet, ports: &Ports) -> bool;
}

/// Decides about a packet that the gateway itself sends, from a socket that is not exempt.
#[inline(always)]
pub fn decide_own<F: OwnFacts>(packet: &Packet, facts: &F) -> Verdict {
    match &packet.transport {
        Transport::Udp { ports } => {
            if is_dhcp_client(ports) {
                return Verdict::Pass(Reason::DhcpClient);
            }
            if facts.settings().is_asked_for(ports.source) && facts.answers_caller(packet, ports) {
                return Verdict::Pass(Reason::ServiceReply);
            }
        }
        // Their first fragment may have passed for its ports.
        Transport::LaterFragment { tcp: false }
            if facts.fragment(packet) == Some(FragmentFate::Passed) =>
        {
            return Verdict::Pass(Reason::DirectFragment);
        }
        _ => {}
    }
    decide(packet, facts)
}

/// Does a DHCP client send this (RFC 2131, 4.1; RFC 8415, 7.2)? A renewal goes to the server by
/// unicast, which may be beyond the link, and its answer must find the client's address.
#[inline(always)]
const fn is_dhcp_client(ports: &Ports) -> bool {
    matches!(
        (u16::from_be(ports.source), u16::from_be(ports.destination)),
        (68, 67) | (546, 547)
    )
}

/// Decides about a packet.
#[inline(always)]
pub fn decide<F: Facts>(packet: &Packet, facts: &F) -> Verdict {
    if let Transport::Other = packet.transport {
        return Verdict::Pass(Reason::OtherProtocol);
    }
    if let Some(reason) = built_in(&packet.addresses) {
        return Verdict::Pass(reason);
    }
    let locality = facts.locality(&packet.addresses);
    if asks_dns(packet, &facts.settings()) && !facts.exempt() && facts.admitted(&packet.addresses) {
        return Verdict::Steer(match locality {
            _ if packet.fragment.is_one() => Target::Reassembly,
            Locality::Address => Target::OwnResolver,
            Locality::Subnet | Locality::Foreign => Target::Resolver,
        });
    }
    if locality == Locality::Address {
        return Verdict::Pass(Reason::OwnAddress);
    }
    match packet.transport {
        Transport::Tcp { opens: false, .. } => match facts.connection(packet) {
            Connection::Held if packet.fragment.is_one() => Verdict::Steer(Target::Reassembly),
            Connection::Held => Verdict::Steer(Target::Connection),
            Connection::Gone => Verdict::Steer(Target::Gone),
            Connection::Unknown => Verdict::Pass(Reason::DirectConnection),
        },
        Transport::Tcp { opens: true, .. } => match direct(packet, facts, locality) {
            Some(reason) => Verdict::Pass(reason),
            None if packet.fragment.is_one() => Verdict::Steer(Target::Reassembly),
            // A SYN for a connection that is still there (it was sent twice, or the socket is in
            // TIME_WAIT) belongs to that socket, as without a proxy.
            None => match facts.connection(packet) {
                Connection::Held => Verdict::Steer(Target::Connection),
                Connection::Gone | Connection::Unknown => Verdict::Steer(Target::Listener),
            },
        },
        Transport::Udp { .. } => match direct(packet, facts, locality) {
            Some(reason) => Verdict::Pass(reason),
            None if packet.fragment.is_one() => Verdict::Steer(Target::Reassembly),
            None => Verdict::Steer(Target::Listener),
        },
        Transport::LaterFragment { tcp: false } => match direct(packet, facts, locality) {
            Some(reason) => Verdict::Pass(reason),
            None => Verdict::Steer(Target::Reassembly),
        },
        Transport::LaterFragment { tcp: true } => match facts.fragment(packet) {
            Some(FragmentFate::Steered) => Verdict::Steer(Target::Reassembly),
            Some(FragmentFate::Passed) => Verdict::Pass(Reason::DirectFragment),
            None => match direct(packet, facts, locality) {
                Some(reason) => Verdict::Pass(reason),
                None => Verdict::Drop(Reason::LoneFragment),
            },
        },
        Transport::CutOff => match direct(packet, facts, locality) {
            Some(reason) => Verdict::Pass(reason),
            None => Verdict::Drop(Reason::MalformedTransport),
        },
        Transport::Buried => match direct(packet, facts, locality) {
            Some(reason) => Verdict::Pass(reason),
            None => Verdict::Drop(Reason::LongExtensionChain),
        },
        Transport::Other => Verdict::Pass(Reason::OtherProtocol),
    }
}

/// Does a packet that was decided about so go on to elsewhere, past the proxy?
#[inline(always)]
pub fn is_forwarded<F: Facts>(packet: &Packet, reason: Reason, facts: &F) -> bool {
    match reason {
        Reason::PrivateRange | Reason::Bypassed | Reason::DownPassed => true,
        // These are also found to be so on their way to a subnet of the gateway.
        Reason::DirectConnection | Reason::DirectFragment | Reason::OtherProtocol => {
            built_in(&packet.addresses).is_none()
                && facts.locality(&packet.addresses) == Locality::Foreign
        }
        _ => false,
    }
}

/// Is this a DNS question that the proxy's resolver wants, or the first segment of a connection for such?
/// The segments that follow find their socket as those of any connection do.
#[inline(always)]
fn asks_dns(packet: &Packet, settings: &Settings) -> bool {
    settings.has(Settings::HIJACK_DNS)
        && match &packet.transport {
            Transport::Udp { ports } | Transport::Tcp { ports, opens: true } => {
                ports.destination == DNS_PORT.to_be()
            }
            _ => false,
        }
}

/// Why traffic between these two goes direct, if it does. Nothing here differs between the fragments
/// of one datagram, so they share one verdict.
#[inline(always)]
fn direct<F: Facts>(packet: &Packet, facts: &F, locality: Locality) -> Option<Reason> {
    if locality == Locality::Subnet {
        return Some(Reason::OwnSubnet);
    }
    if facts.settings().has(Settings::BYPASS_PRIVATE) && is_private(&packet.addresses) {
        return Some(Reason::PrivateRange);
    }
    if facts.exempt() {
        return Some(Reason::Exempt);
    }
    if facts.bypassed(&packet.addresses) {
        return Some(Reason::Bypassed);
    }
    if !facts.admitted(&packet.addresses) {
        return Some(Reason::ForeignSource);
    }
    None
}

/// Destinations that never leave by a proxy, whatever the configuration says.
#[inline(always)]
#[must_use]
pub const fn built_in(addresses: &Addresses) -> Option<Reason> {
    match addresses {
        Addresses::V4 { destination, .. } => match destination.to_ne_bytes() {
            [0 | 127, ..] => Some(Reason::Loopback),
            [169, 254, ..] => Some(Reason::LinkLocal),
            [224..=239, ..] | [255, 255, 255, 255] => Some(Reason::Multicast),
            [240..=255, ..] => Some(Reason::Reserved),
            _ => None,
        },
        Addresses::V6 { destination, .. } => {
            match destination[0].to_ne_bytes() {
                [0xff, ..] => return Some(Reason::Multicast),
                [0xfe, second, ..] if second & 0xc0 == 0x80 => return Some(Reason::LinkLocal),
                [0, 0, 0, 0] if destination[1] == 0 => {}
                _ => return None,
            }
            match destination[2].to_ne_bytes() {
                // ::1, ::, and the whole of ::/96 (IPv4-compatible, out of use: RFC 4291, 2.5.5.1).
                [0, 0, 0, 0] => Some(Reason::Loopback),
                // IPv4-mapped addresses do not exist on a wire (RFC 4291, 2.5.5.2).
                [0, 0, 0xff, 0xff] => Some(Reason::Reserved),
                _ => None,
            }
        }
    }
}

/// Is the destination in a private range: RFC 1918, RFC 6598 (carrier-grade NAT), RFC 4193?
#[inline(always)]
#[must_use]
pub const fn is_private(addresses: &Addresses) -> bool {
    match addresses {
        Addresses::V4 { destination, .. } => match destination.to_ne_bytes() {
            [10, ..] | [192, 168, ..] => true,
            [172, second, ..] => second & 0xf0 == 16,
            [100, second, ..] => second & 0xc0 == 64,
            _ => false,
        },
        Addresses::V6 { destination, .. } => destination[0].to_ne_bytes()[0] & 0xfe == 0xfc,
    }
}
