//! What the kernel half and the userspace half of tproxy-bpf agree on, and the thinking they share.
//!
//! - [`abi`]: map keys and values, marks, names, and the list of [`Reason`](abi::Reason)s.
//! - [`packet`]: bytes to a [`Packet`](packet::Packet), or why not.
//! - [`trace`]: what is told of a decision, and who wants to hear of which.
//! - [`verdict`]: a packet and what the hook knows to a [`Verdict`](verdict::Verdict): the whole steering policy.
//!
//! No unsafe code, no allocation, no I/O: everything here runs in the kernel and in a unit test alike.

#![no_std]
#![forbid(unsafe_code)]

/// A list of what is told: an enum whose variants have a word each, and a sentence for a person.
macro_rules! told {
    ($(#[$meta:meta])* $list:ident: $($name:ident = $word:literal, $sentence:literal;)*) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $list {
            $(#[doc = $sentence] $name,)*
        }

        impl $list {
            /// All of them in the order of their indices.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The word for it: lower case, with underscores.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self { $(Self::$name => $word,)* }
            }

            /// One sentence for a person.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)* }
            }
        }
    };
}

pub mod abi;
pub mod packet;
pub mod trace;
pub mod verdict;
