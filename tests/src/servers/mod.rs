//! The servers of the lab: real programs where Debian has them, small ones of our own where an answer
//! must come from the very address that was asked.
//!
//! | what | program | good for |
//! |---|---|---|
//! | [`Nginx`] | nginx | downloads, uploads by PUT, who asked and for which site, TLS; both families |
//! | [`Dnsmasq`] | dnsmasq | DNS over UDP and TCP, who asked; both families |
//! | [`Unbound`] | unbound | DNS over UDP, TCP and TLS, who asked; zones with all kinds of records |
//! | [`Iperf`] | iperf3 | throughput both ways, UDP loss |
//! | [`UdpEcho`] | here | datagrams of any size at many ports, answered from the address asked |
//! | [`TcpEcho`] | here | half-close, connection rates, something like SSH on the gateway, a banner |
//! | [`OneByte`] | here | thousands of connections |
//! | [`Danted`] | danted | SOCKS5 with user and password, CONNECT and UDP ASSOCIATE, both families |
//! | [`Microsocks`] | microsocks | SOCKS5 with user and password, CONNECT only |
//! | [`Tinyproxy`], [`Stunnel`] | tinyproxy, stunnel | HTTP's CONNECT with and without password and TLS |
//! | [`V2ray`] | v2ray | SOCKS5 with UDP; the iptables way of the guides |
//! | [`Shadowsocks`] | ss-server, or sing-box for the 2022 edition | Shadowsocks, TCP and UDP, one user or several |
//! | [`Trojan`] | trojan | Trojan, TCP and UDP |

mod certificate;
mod dnsmasq;
mod files;
mod http_proxy;
mod iperf;
mod nginx;
mod one_byte;
mod shadowsocks;
mod socks;
mod tcp_echo;
mod trojan;
mod udp_echo;
mod unbound;

pub use certificate::Certificate;
pub use dnsmasq::Dnsmasq;
pub use files::{Content, Hasher, hash_file, hash_reader};
pub use http_proxy::{Stunnel, Tinyproxy};
pub use iperf::Iperf;
pub use nginx::{Nginx, Request};
pub use one_byte::OneByte;
pub use shadowsocks::Shadowsocks;
pub use socks::{Danted, Microsocks, PASSWORD, USER, V2ray};
pub use tcp_echo::TcpEcho;
pub use trojan::Trojan;
pub use udp_echo::UdpEcho;
pub use unbound::{Serve, Unbound, Zone};

use std::net::IpAddr;

use anyhow::Result;

use crate::wait::{SOON, until};

/// What a DNS server says of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Log {
    /// Each question and who asked it.
    Questions,
    /// Nothing, so that it answers at full speed.
    Nothing,
}

/// Waits until `count` questions for `name` are logged; gives the last one's client.
fn await_client(name: &str, count: usize, clients: impl Fn() -> Vec<IpAddr>) -> Result<IpAddr> {
    until(&format!("{count} questions for {name}"), SOON, || {
        let clients = clients();
        Ok((clients.len() >= count)
            .then(|| clients.last().copied())
            .flatten())
    })
}
