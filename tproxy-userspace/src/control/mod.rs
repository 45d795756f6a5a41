//! The kernel half: programs, maps, routes, sysctls, links.
//!
//! [`place`] says where a gateway keeps its state, [`preflight`] whether the machine is fit,
//! [`links`] what the network looks like, [`sync`] what should follow from it; [`route`],
//! [`sysctl`] and [`masquerade`] change the machine and can take every change back, after `kill -9`
//! too. [`doctor`] examines a machine for a person, [`explain`] says what would happen to a packet.

pub mod account;
pub mod accounts;
pub mod bpf;
pub mod bypass;
pub mod cgroup;
pub mod doctor;
pub mod exempt;
pub mod explain;
pub mod express;
pub mod frame;
pub mod gateway;
pub mod life;
pub mod links;
pub mod masquerade;
pub mod modules;
mod netlink;
pub mod place;
pub mod preflight;
mod qdisc;
pub mod route;
pub mod sync;
pub mod sysctl;
pub mod trace;
pub mod way_out;

pub use netlink::{Netlink, NetlinkError};

use std::io;
use std::path::{Path, PathBuf};

/// What can fail here. Each message says what was being done, to which object, why it failed
/// and, where that is known, what to do next.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {reason}")]
    NetlinkSocket {
        /// Why.
        reason: io::Error,
    },
    /// The kernel refused a netlink request.
    #[error("cannot {operation} {object}: {reason}{advice}")]
    Netlink {
        /// What was being done.
        operation: &'static str,
        /// To which rule, route or table.
        object: String,
        /// Why.
        reason: NetlinkError,
        /// What to do next; empty or a sentence after "; ".
        advice: &'static str,
    },
    /// Another program uses what tproxy-bpf needs for itself.
    #[error("cannot add {object}: {owner} is in its way; {advice}")]
    Taken {
        /// What was to be added.
        object: String,
        /// What is there instead.
        owner: String,
        /// What to do next.
        advice: &'static str,
    },
    /// A file or folder.
    #[error("cannot {operation} {}: {reason}{advice}", path.display())]
    File {
        /// What was being done.
        operation: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why.
        reason: io::Error,
        /// What to do next; empty or a sentence after "; ".
        advice: &'static str,
    },
    /// A file of ours says something that cannot be understood.
    #[error("cannot understand {}: {reason}; remove the file if it is broken", path.display())]
    Content {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: serde_json::Error,
    },
    /// Another process holds a lock.
    #[error("cannot lock {}: {holder} holds it; {advice}", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// "process 1234", or that it is not known.
        holder: String,
        /// What to do next.
        advice: &'static str,
    },
    /// A sysctl.
    #[error("cannot {operation} the sysctl {key}: {reason}")]
    Sysctl {
        /// What was being done.
        operation: &'static str,
        /// Which one, in its form with slashes.
        key: String,
        /// Why.
        reason: io::Error,
    },
    /// There is no BPF file system, and none can be mounted.
    #[error(
        "cannot mount a BPF file system at /sys/fs/bpf: {reason}; \
         mount one by hand: mount -t bpf bpf /sys/fs/bpf"
    )]
    BpfMount {
        /// Why.
        reason: nix::Error,
    },
    /// The kernel is too old, or does not say how old it is.
    #[error(
        "cannot run on kernel {found:?}: tproxy-bpf needs Linux {} or later; boot a newer kernel",
        preflight::OLDEST_KERNEL
    )]
    Kernel {
        /// What the kernel calls itself.
        found: String,
    },
    /// The process may not do what must be done.
    #[error(
        "cannot change the network: this process lacks {missing}; run it as root or give it \
         CAP_NET_ADMIN and CAP_BPF"
    )]
    Privileges {
        /// The missing capabilities.
        missing: String,
    },
    /// The kernel was built without something.
    #[error("cannot load programs: the kernel has no {what}; {advice}")]
    KernelFeature {
        /// What is missing.
        what: &'static str,
        /// What to do next.
        advice: &'static str,
    },
    /// The kernel is one without tcx, and what stands in for it is not there either.
    #[error(
        "cannot attach programs on Linux {kernel}: before 6.6 they are held by filters, and the kernel's modules lack \
         {missing}; install the rest of its modules or boot a newer kernel"
    )]
    NoFilters {
        /// The running kernel.
        kernel: preflight::KernelVersion,
        /// The modules that are missing.
        missing: String,
    },
    /// A link that is named does not exist.
    #[error("cannot find the link {name:?}{nearest}; the links here are: {present}")]
    NoSuchLink {
        /// The name.
        name: String,
        /// ", did you mean …?" or nothing.
        nearest: String,
        /// The names that are there.
        present: String,
    },
    /// A program that is needed is not there, or failed.
    #[error("cannot {operation} {object}: {reason}{advice}")]
    Program {
        /// What was being done.
        operation: &'static str,
        /// To which object.
        object: &'static str,
        /// Why it failed.
        reason: String,
        /// What to do next; empty or a sentence after "; ".
        advice: &'static str,
    },
    /// A link whose name is in the way.
    #[error(
        "cannot {operation} for the link {name:?}: {reason}; rename it: ip link set dev {name:?} \
         name NEW"
    )]
    UnfitName {
        /// Its name.
        name: String,
        /// What was being done.
        operation: &'static str,
        /// Why it does not go.
        reason: &'static str,
    },
    /// A link that the programs cannot be attached to.
    #[error("cannot attach to the link {name:?}: {reason}")]
    UnfitLink {
        /// Its name.
        name: String,
        /// Why, and what to do.
        reason: String,
    },
}

impl Error {
    /// An [`Error::File`] without advice, for `map_err`.
    fn file(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |reason| Self::File {
            operation,
            path,
            reason,
            advice: "",
        }
    }

    /// An [`Error::Netlink`] without advice, for `map_err`.
    fn netlink(
        operation: &'static str,
        object: impl Into<String>,
    ) -> impl FnOnce(NetlinkError) -> Self {
        let object = object.into();
        move |reason| Self::Netlink {
            operation,
            object,
            reason,
            advice: "",
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Network namespaces for the tests of this layer.

    use std::future::Future;
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    /// Runs `test` in a thread with a network namespace of its own, `lo` up, and a runtime of its
    /// own. The namespace ends with the thread. Without root nothing runs, and that is said.
    pub(crate) fn in_namespace<F, T>(test: F)
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = ()>,
    {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: a network namespace needs root");
            return;
        }
        let outcome = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
            ip("link set lo up");
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(test());
        })
        .join();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    }

    /// Runs `ip` with these arguments in the thread's namespace and returns what it prints.
    #[track_caller]
    pub(crate) fn ip(arguments: &str) -> String {
        let output = Command::new("ip")
            .args(arguments.split_whitespace())
            .output()
            .expect("the program ip");
        assert!(
            output.status.success(),
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("UTF-8")
    }
}
