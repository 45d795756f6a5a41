//! The lab: network namespaces and real programs, where tproxy-bpf is tried and measured.
//!
//! A [`Lab`] is a device, a gateway and an "internet", joined by links. Servers run in the
//! internet ([`servers`]), clients on the device ([`traffic`]), and `tproxy-bpf` on the gateway
//! ([`Tproxy`]). Nothing of the host is touched, and dropping the lab removes all of it.
//! Needs root.

pub mod addr;
pub mod api;
pub mod browser;
pub mod capture;
pub mod faults;
pub mod foreign;
pub mod forger;
pub mod gateway;
pub mod guest;
pub mod interrupt;
pub mod links;
pub mod ns;
pub mod probe;
pub mod process;
pub mod reload;
mod remains;
pub mod servers;
pub mod sing_box;
pub mod snapshot;
pub mod tools;
pub mod topology;
pub mod traffic;
pub mod usage;
pub mod wait;
pub mod ways;

pub use addr::Family;
pub use api::Panel;
pub use gateway::Tproxy;
pub use guest::Guest;
pub use links::Lan;
pub use ns::Namespace;
pub use process::{Output, Process};
pub use reload::Reloadable;
pub use sing_box::SingBox;
pub use snapshot::Snapshot;
pub use topology::{Builder, Lab, Shape, Site, Split, SplitServers, Unsupported, names, or_skip};
pub use ways::{Far, Wire};
