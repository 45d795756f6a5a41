//! Faults: what devices see, what leaves by the WAN link and what is left, when the program or the machine around it fails.
//!
//! `cargo xtask test faults` tries all of them and prints the table. Otherwise each kind is tried where most can go wrong.

#[path = "faults/clock.rs"]
mod clock;
#[path = "faults/network.rs"]
mod network;
#[path = "faults/resources.rs"]
mod resources;
#[path = "faults/steps.rs"]
mod steps;
#[path = "faults/stop.rs"]
mod stop;
#[path = "faults/takeover.rs"]
mod takeover;
#[path = "faults/upstream.rs"]
mod upstream;
