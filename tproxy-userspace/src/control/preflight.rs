//! What must be true before anything is changed. Each failure says what, why and what to do.

use std::fmt;
use std::fs;
use std::path::Path;

use super::links::Snapshot;
use super::sync::Selection;
use super::{Error, modules, place};
use crate::config::{LinkPattern, WanPattern};

/// The oldest kernel that has everything that is needed.
pub const OLDEST_KERNEL: KernelVersion = KernelVersion(5, 15);

/// From here on tc programs are attached by links that hold no qdisc (tcx).
const TCX: KernelVersion = KernelVersion(6, 6);

const CAP_NET_ADMIN: (u32, &str) = (12, "CAP_NET_ADMIN");
const CAP_SYS_ADMIN: (u32, &str) = (21, "CAP_SYS_ADMIN");
const CAP_PERFMON: (u32, &str) = (38, "CAP_PERFMON");
const CAP_BPF: (u32, &str) = (39, "CAP_BPF");

/// A kernel's major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct KernelVersion(pub u32, pub u32);

impl fmt::Display for KernelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl KernelVersion {
    /// The running kernel's.
    ///
    /// # Errors
    /// [`Error::File`] when it cannot be read, [`Error::Kernel`] when it cannot be understood.
    pub fn running() -> Result<Self, Error> {
        let release = read("/proc/sys/kernel/osrelease")?;
        Self::parse(&release).ok_or(Error::Kernel {
            found: release.trim().to_owned(),
        })
    }

    /// From what `uname -r` prints: two numbers, and then anything.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let (major, rest) = release.trim().split_once('.')?;
        let end = rest
            .find(|character: char| !character.is_ascii_digit())
            .unwrap_or(rest.len());
        Some(Self(major.parse().ok()?, rest[..end].parse().ok()?))
    }

    /// Can programs be attached by tcx links? Otherwise clsact filters hold them.
    #[must_use]
    pub fn has_tcx(self) -> bool {
        self >= TCX
    }
}

/// What was found out on the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Findings {
    /// The running kernel.
    pub kernel: KernelVersion,
    /// What works less well than it could, each as one sentence for a person.
    pub warnings: Vec<String>,
}

/// Checks the machine: privileges, kernel and its modules, BPF file system.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn check_machine() -> Result<Findings, Error> {
    check_capabilities(&read("/proc/thread-self/status")?)?;
    let kernel = KernelVersion::running()?;
    if kernel < OLDEST_KERNEL {
        return Err(Error::Kernel {
            found: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        });
    }
    if !knows_bpffs()? && !place::has_bpffs() {
        return Err(Error::KernelFeature {
            what: "BPF file system",
            advice: "boot a kernel with CONFIG_BPF_SYSCALL",
        });
    }
    if !kernel.has_tcx() {
        let missing = modules::missing_for_clsact();
        if !missing.is_empty() {
            let missing = missing.join(" and ");
            return Err(Error::NoFilters { kernel, missing });
        }
    }
    let mut warnings = Vec::new();
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        warnings.push(
            "The kernel has no type information (CONFIG_DEBUG_INFO_BTF): tools such as bpftool \
             show less of the programs and maps."
                .to_owned(),
        );
    }
    Ok(Findings { kernel, warnings })
}

/// Has the kernel a BPF file system?
pub(super) fn knows_bpffs() -> Result<bool, Error> {
    Ok(read("/proc/filesystems")?
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some("bpf")))
}

/// Checks that each link that is named without a glob exists and can be attached.
///
/// # Errors
/// [`Error::NoSuchLink`] lists the links that there are, [`Error::UnfitLink`].
pub fn check_links(selection: &Selection, snapshot: &Snapshot) -> Result<(), Error> {
    let lan = selection.lan.iter().filter_map(LinkPattern::exact);
    let wan = selection.wan.iter().filter_map(WanPattern::exact);
    for name in lan.chain(wan) {
        let Some(link) = snapshot.link_named(name) else {
            return Err(no_such_link(name, snapshot));
        };
        link.check_attachable()?;
    }
    Ok(())
}

fn no_such_link(name: &str, snapshot: &Snapshot) -> Error {
    let names = || {
        snapshot
            .links
            .iter()
            .filter(|link| !link.loopback)
            .map(|link| link.name.as_str())
    };
    let nearest = names()
        .map(|other| (strsim::jaro_winkler(name, other), other))
        .filter(|(similarity, _)| *similarity > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, other)| format!(", did you mean {other:?}?"));
    let present: Vec<_> = names().collect();
    Error::NoSuchLink {
        name: name.to_owned(),
        nearest: nearest.unwrap_or_default(),
        present: if present.is_empty() {
            "none but the loopback".to_owned()
        } else {
            present.join(", ")
        },
    }
}

fn check_capabilities(status: &str) -> Result<(), Error> {
    let missing = missing_capabilities(status);
    if missing.is_empty() {
        return Ok(());
    }
    Err(Error::Privileges {
        missing: missing.join(" and "),
    })
}

/// Reads the effective set in the text of `/proc/self/status` (`proc(5)`, `capabilities(7)`).
pub(super) fn missing_capabilities(status: &str) -> Vec<&'static str> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .unwrap_or(0);
    let has = |capability: (u32, &str)| effective & (1 << capability.0) != 0;
    let mut missing = Vec::new();
    if !has(CAP_NET_ADMIN) {
        missing.push(CAP_NET_ADMIN.1);
    }
    // CAP_SYS_ADMIN includes what the others were split off from. Without CAP_PERFMON the verifier takes no arithmetic
    // with pointers.
    for capability in [CAP_BPF, CAP_PERFMON] {
        if !has(capability) && !has(CAP_SYS_ADMIN) {
            missing.push(capability.1);
        }
    }
    missing
}

fn read(path: &str) -> Result<String, Error> {
    let path = Path::new(path);
    fs::read_to_string(path).map_err(Error::file("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::links::{Framing, LinkInfo};

    #[test]
    fn kernel_versions_are_read_from_real_releases() {
        for (release, expected) in [
            ("6.18.44-fc-v595\n", Some(KernelVersion(6, 18))),
            ("5.15.0-1051-aws", Some(KernelVersion(5, 15))),
            ("6.1-rc3", Some(KernelVersion(6, 1))),
            ("10.0+", Some(KernelVersion(10, 0))),
            ("linux", None),
            ("6.x", None),
        ] {
            assert_eq!(KernelVersion::parse(release), expected, "{release}");
        }
        assert!(KernelVersion(5, 9) < OLDEST_KERNEL);
        assert!(!KernelVersion(6, 5).has_tcx() && KernelVersion(6, 6).has_tcx());
        assert!(KernelVersion(7, 0).has_tcx() && !KernelVersion(5, 15).has_tcx());
    }

    #[test]
    fn missing_capabilities_are_named() {
        let check = |bits: u64| check_capabilities(&format!("Name:\tx\nCapEff:\t{bits:016x}\n"));
        check(1 << 12 | 1 << 38 | 1 << 39).unwrap();
        check(1 << 12 | 1 << 21).unwrap();
        let error = check(3 << 38).unwrap_err().to_string();
        assert!(error.contains("lacks CAP_NET_ADMIN;"), "{error}");
        let error = check(0).unwrap_err().to_string();
        assert!(
            error.contains("lacks CAP_NET_ADMIN and CAP_BPF and CAP_PERFMON;"),
            "{error}"
        );
    }

    fn links(names: &[(&str, Framing)]) -> Snapshot {
        let links = names
            .iter()
            .zip(1..)
            .map(|((name, framing), index)| LinkInfo {
                index,
                name: (*name).to_owned(),
                up: true,
                loopback: *name == "lo",
                framing: *framing,
                mtu: 1500,
                master: None,
                parent: None,
            })
            .collect();
        Snapshot {
            links,
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_nearest() {
        let snapshot = links(&[
            ("lo", Framing::Ethernet),
            ("enp1s0", Framing::Ethernet),
            ("enp2s0", Framing::Ethernet),
            ("can0", Framing::Unknown(280)),
        ]);
        let check = |name: &str| {
            let as_lan = Selection {
                lan: vec![name.parse().unwrap()],
                ..Selection::default()
            };
            let as_wan = Selection {
                wan: vec![name.parse().unwrap()],
                ..Selection::default()
            };
            let told = check_links(&as_lan, &snapshot).map_err(|error| error.to_string());
            let as_wan = check_links(&as_wan, &snapshot).map_err(|error| error.to_string());
            assert_eq!(told, as_wan);
            told
        };
        check("enp1s0").unwrap();
        check("wg*").unwrap();
        assert_eq!(
            check("enp2s").unwrap_err(),
            "cannot find the link \"enp2s\", did you mean \"enp2s0\"?; \
             the links here are: enp1s0, enp2s0, can0"
        );
        assert!(!check("wlan7").unwrap_err().contains("did you mean"));
        assert!(check("lo").unwrap_err().contains("loopback"));
        assert!(check("can0").unwrap_err().contains("hardware type 280"));
    }

    #[test]
    fn this_machine_passes_if_this_is_root() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: the check needs root to pass");
            return;
        }
        assert!(check_machine().unwrap().kernel >= OLDEST_KERNEL);
    }
}
