//! The servers of the lab: real programs where Debian has them, small ones of our own where an answer
//! must come from the very address that was asked.
//!
//! | what | program | good for |
//! |---|---|---|
//! | [`Nginx`] | nginx | downloads, uploads by PUT, who asked; both families |
//! | [`Dnsmasq`] | dnsmasq | DNS over UDP and TCP, who asked; both families |
//! | [`Iperf`] | iperf3 | throughput both ways, UDP loss |
//! | [`UdpEcho`] | here | datagrams of any size at many ports, answered from the address asked |
//! | [`TcpEcho`] | here | half-close, connection rates, something like SSH on the gateway |
//! | [`Danted`] | danted | SOCKS5 with user and password, CONNECT and UDP ASSOCIATE, both families |
//! | [`Microsocks`] | microsocks | SOCKS5 with user and password, CONNECT only |
//! | [`V2ray`] | v2ray | SOCKS5 with UDP; the iptables way of the guides |

mod dnsmasq;
mod files;
mod iperf;
mod nginx;
mod socks;
mod tcp_echo;
mod udp_echo;

pub use dnsmasq::Dnsmasq;
pub use files::{Content, Hasher, hash_file, hash_reader};
pub use iperf::Iperf;
pub use nginx::{Nginx, Request};
pub use socks::{Danted, Microsocks, PASSWORD, USER, V2ray};
pub use tcp_echo::TcpEcho;
pub use udp_echo::UdpEcho;
