//! A gateway to decide for, which remembers what it was asked.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::cell::RefCell;
use std::net::IpAddr;

use tproxy_common::abi::{FragmentFate, Settings};
use tproxy_common::packet::{Addresses, Packet, Ports};
use tproxy_common::verdict::{Connection, Facts, Locality, OwnFacts};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    Locality,
    Bypassed,
    Admitted,
    Connection,
    Fragment,
    Caller,
}

/// A gateway 192.0.2.1/24 and 2001:db8:1::1/64 that bypasses 198.51.100.0/24 and 2001:db8:b::/48.
/// It remembers what it was asked.
pub struct Gateway {
    pub settings: Settings,
    pub connection: Connection,
    pub fragment: Option<FragmentFate>,
    /// Did whoever a datagram is for write first?
    pub caller: bool,
    pub asked: RefCell<Vec<Question>>,
}

impl Gateway {
    pub fn new() -> Self {
        Self {
            settings: Settings {
                flags: Settings::BYPASS_PRIVATE,
                ..Settings::default()
            },
            connection: Connection::Unknown,
            fragment: None,
            caller: false,
            asked: RefCell::default(),
        }
    }

    fn ask(&self, question: Question) {
        self.asked.borrow_mut().push(question);
    }
}

fn bytes_of(mapped: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (part, word) in bytes.chunks_mut(4).zip(mapped) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

fn address(mapped: [u32; 4]) -> IpAddr {
    std::net::Ipv6Addr::from(bytes_of(mapped)).to_canonical()
}

fn within(address: IpAddr, v4: &[u8], v6: &[u8]) -> bool {
    match address {
        IpAddr::V4(address) => address.octets().starts_with(v4),
        IpAddr::V6(address) => address.octets().starts_with(v6),
    }
}

const SUBNET_V4: &[u8] = &[192, 0, 2];
const SUBNET_V6: &[u8] = &[0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0];
const BYPASS_V4: &[u8] = &[198, 51, 100];
const BYPASS_V6: &[u8] = &[0x20, 0x01, 0x0d, 0xb8, 0, 0xb];

impl Facts for Gateway {
    fn settings(&self) -> Settings {
        self.settings
    }

    fn locality(&self, addresses: &Addresses) -> Locality {
        self.ask(Question::Locality);
        let destination = address(addresses.mapped().1);
        if destination == ip("192.0.2.1") || destination == ip("2001:db8:1::1") {
            Locality::Address
        } else if within(destination, SUBNET_V4, SUBNET_V6) {
            Locality::Subnet
        } else {
            Locality::Foreign
        }
    }

    fn bypassed(&self, addresses: &Addresses) -> bool {
        self.ask(Question::Bypassed);
        within(address(addresses.mapped().1), BYPASS_V4, BYPASS_V6)
    }

    fn admitted(&self, addresses: &Addresses) -> bool {
        self.ask(Question::Admitted);
        within(address(addresses.mapped().0), SUBNET_V4, SUBNET_V6)
    }

    fn connection(&self, _: &Packet) -> Connection {
        self.ask(Question::Connection);
        self.connection
    }

    fn fragment(&self, _: &Packet) -> Option<FragmentFate> {
        self.ask(Question::Fragment);
        self.fragment
    }
}

impl OwnFacts for Gateway {
    fn answers_caller(&self, _: &Packet, _: &Ports) -> bool {
        self.ask(Question::Caller);
        self.caller
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
