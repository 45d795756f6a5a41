//! The kinds of links that a LAN can be made of.

use std::{
    ffi::CStr,
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::Arc,
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    sched::{CloneFlags, setns},
    sys::{signal::SigSet, stat::Mode},
    unistd::{dup2_stdin, dup2_stdout},
};

use crate::{
    Namespace, Process,
    topology::Unsupported,
    wait::{SOON, until},
};

/// What the link between device and gateway is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Lan {
    /// A veth pair.
    #[default]
    Ethernet,
    /// A veth pair whose gateway end is a port of a bridge.
    Bridge,
    /// VLAN links with this number on a veth pair. Needs `CONFIG_VLAN_8021Q`.
    Vlan(u16),
    /// VLAN links in VLAN links: outer (802.1ad) and inner number. Needs `CONFIG_VLAN_8021Q`.
    QinQ(u16, u16),
    /// Two tun links, each with the other at its user end: packets without an Ethernet header, as on ppp and WireGuard links.
    Tun,
}

impl Lan {
    /// The name of the link on the gateway: where tproxy-bpf attaches.
    #[must_use]
    pub fn gateway_link(self) -> String {
        match self {
            Self::Bridge => "br0".to_owned(),
            other => other.stacked("lan0"),
        }
    }

    /// The name of the link on the device.
    #[must_use]
    pub fn device_link(self) -> String {
        self.stacked("eth0")
    }

    fn stacked(self, base: &str) -> String {
        match self {
            Self::Ethernet | Self::Bridge | Self::Tun => base.to_owned(),
            Self::Vlan(id) => format!("{base}.{id}"),
            Self::QinQ(outer, inner) => format!("{base}.{outer}.{inner}"),
        }
    }

    /// Makes the links, up but without addresses. The guard keeps a tun pair going.
    pub(crate) fn make(
        self,
        device: &Namespace,
        gateway: &Namespace,
        mtu: u32,
    ) -> Result<Option<Process>> {
        if self == Self::Tun {
            for (ns, name) in [(device, "eth0"), (gateway, "lan0")] {
                ns.ip(&[
                    &format!("tuntap add dev {name} mode tun"),
                    &format!("link set {name} mtu {mtu} up"),
                ])?;
            }
            return Ok(Some(tun_pair((device, c"eth0"), (gateway, c"lan0"))?));
        }
        veth((gateway, "lan0"), (device, "eth0"), mtu)?;
        if self == Self::Bridge {
            gateway.ip(&[
                "link add br0 type bridge",
                &format!("link set br0 mtu {mtu} up"),
                "link set lan0 master br0",
            ])?;
        }
        for (ns, base) in [(device, "eth0"), (gateway, "lan0")] {
            match self {
                Self::Vlan(id) => vlan(ns, base, "802.1Q", id)?,
                Self::QinQ(outer, inner) => {
                    vlan(ns, base, "802.1ad", outer)?;
                    vlan(ns, &format!("{base}.{outer}"), "802.1Q", inner)?;
                }
                Self::Ethernet | Self::Bridge | Self::Tun => {}
            }
        }
        Ok(None)
    }
}

/// A veth pair between two namespaces, both ends up.
pub(crate) fn veth(one: (&Namespace, &str), other: (&Namespace, &str), mtu: u32) -> Result<()> {
    one.0.ip(&[
        &format!(
            "link add {} mtu {mtu} type veth peer name {} mtu {mtu} netns {}",
            one.1,
            other.1,
            other.0.name()
        ),
        &format!("link set {} up", one.1),
    ])?;
    other.0.ip(&[&format!("link set {} up", other.1)])
}

fn vlan(ns: &Namespace, base: &str, protocol: &str, id: u16) -> Result<()> {
    let name = format!("{base}.{id}");
    let made = ns.try_run(&[
        "ip",
        "link",
        "add",
        "link",
        base,
        "name",
        &name,
        "type",
        "vlan",
        "proto",
        protocol,
        "id",
        &id.to_string(),
    ])?;
    if made.stderr.contains("Unknown device type") {
        bail!(Unsupported("VLAN links (CONFIG_VLAN_8021Q)"));
    }
    made.ok()?;
    ns.ip(&[&format!("link set {name} up")])
}

/// Carries packets between the user ends of two tun links: a `cat` for each direction, since each
/// read and each write of a tun descriptor is one packet.
fn tun_pair(
    one: (&Namespace, &'static CStr),
    other: (&Namespace, &'static CStr),
) -> Result<Process> {
    let mut command = Command::new("sh");
    command
        .args(["-c", "exec 3<&0; cat <&3 >&1 & exec cat <&1 >&3"])
        .process_group(0)
        .stdin(Stdio::null());
    let (first, second) = (Arc::clone(one.0.file()), Arc::clone(other.0.file()));
    let (first_name, second_name) = (one.1, other.1);
    let enter = move || -> io::Result<()> {
        dup2_stdin(open_tun(&first, first_name)?)?;
        dup2_stdout(open_tun(&second, second_name)?)?;
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: between fork and exec only setns(2), open(2), ioctl(2), dup2(2), close(2) and
    // sigprocmask(2) are called; all are async-signal-safe, nothing is allocated (paths and names are
    // constants), and the namespaces' files are kept open by the closure.
    unsafe { command.pre_exec(enter) };
    // Standard output is the second tun: it is put there after this pipe, which then just closes.
    let pump = Process::spawn(command)?;
    for (ns, name) in [one, other] {
        let name = name.to_string_lossy();
        until(&format!("carrier on {name}"), SOON, || {
            let shown = ns.run(&["ip", "link", "show", &name])?;
            Ok(shown.stdout.contains("LOWER_UP").then_some(()))
        })?;
    }
    Ok(pump)
}

/// Opens the user end of the tun link `name` of a namespace. Only for use between fork and exec:
/// it moves the caller into that namespace.
fn open_tun(namespace: &File, name: &CStr) -> nix::Result<OwnedFd> {
    setns(namespace, CloneFlags::CLONE_NEWNET)?;
    let tun = open(
        c"/dev/net/tun",
        OFlag::O_RDWR | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short,
        },
    };
    for (to, from) in request.ifr_name.iter_mut().zip(name.to_bytes()) {
        *to = from.cast_signed();
    }
    // SAFETY: the descriptor is open, and TUNSETIFF reads and writes one ifreq, which lives
    // through the call.
    Errno::result(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(tun)
}
