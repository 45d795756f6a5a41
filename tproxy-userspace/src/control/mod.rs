//! The kernel half: programs, maps, routes, sysctls, links.
pub mod bpf;
pub mod bypass;
