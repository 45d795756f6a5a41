//! tproxy-bpf.
fn main() {}
