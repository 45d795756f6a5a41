//! The proxy: relays what the kernel half steers.
