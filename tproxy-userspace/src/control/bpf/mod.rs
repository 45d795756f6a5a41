//! The kernel half as user space sees it: its maps and its programs. The only module that names aya.

mod account;
mod express;
mod maps;
pub mod neighbours;
mod programs;
mod rehearsal;
mod trace;
mod trial;

use std::io;
use std::path::PathBuf;

use aya::maps::MapError;
use aya::pin::PinError;
use aya::programs::ProgramError;

pub use express::{Ends, ExpressMaps, address};
pub use maps::{BypassEntry, Maps};
pub use programs::{
    AttachWay, Programs, detach_link, detach_sock_create, has_sock_create, remove_pins,
};
pub use rehearsal::{Rehearsal, Rehearsed};
pub use trace::TraceMaps;
pub use trial::{Outcome, Trial};

/// What can go wrong with the kernel half.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The object could not be loaded.
    #[error("loading the kernel half failed: {}{}", chain(.0), hint(.0))]
    Load(#[source] aya::EbpfError),
    /// The verifier or the kernel refused a program.
    #[error("the kernel refused the program {name}: {}", chain(.source))]
    Program {
        /// The program.
        name: &'static str,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// A program could not be attached.
    #[error("attaching {program} to {link} failed: {}", chain(.source))]
    Attach {
        /// The program.
        program: &'static str,
        /// The name of the link.
        link: String,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// A program could not be detached.
    #[error("detaching {program} from {link} failed: {}", chain(.source))]
    Detach {
        /// The program.
        program: &'static str,
        /// The name of the link.
        link: String,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// A link could not be pinned.
    #[error("pinning {} failed: {}", .path.display(), chain(.source))]
    Pin {
        /// The pin.
        path: PathBuf,
        /// Why.
        #[source]
        source: PinError,
    },
    /// Only root may look at what is attached.
    #[error("looking at {} is not permitted; run this as root", .0.display())]
    Denied(PathBuf),
    /// A map did not do what was asked of it.
    #[error("{doing} in the map {map} failed: {}", chain(.source))]
    Map {
        /// What was being done.
        doing: &'static str,
        /// The map.
        map: &'static str,
        /// Why.
        #[source]
        source: MapError,
    },
    /// A map holds no more.
    #[error("the map {map} is full: it holds {capacity} entries, and more were wanted")]
    Full {
        /// The map.
        map: &'static str,
        /// How many entries it holds.
        capacity: u32,
    },
    /// Maps of another version are pinned.
    #[error(
        "the maps in {} were made by another version of tproxy-bpf (theirs {found}, ours {ours}); \
         run `tproxy-bpf detach` to clear them, then start again", .path.display()
    )]
    Version {
        /// The folder.
        path: PathBuf,
        /// Their version.
        found: u32,
        /// Ours.
        ours: u32,
    },
    /// A file operation failed.
    #[error("{doing} {} failed: {source}", .path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// An error with all its causes in one line: aya's own texts leave them out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

fn hint(error: &aya::EbpfError) -> &'static str {
    if chain(error).contains("Operation not permitted") {
        " (this needs root, or CAP_BPF and CAP_NET_ADMIN)"
    } else {
        ""
    }
}
