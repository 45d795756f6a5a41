//! Programs of somebody else on the gateway's links: each counts the packets it sees and gives one
//! verdict.
//!
//! Written as instructions, since the lab has no compiler for them.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::PathBuf,
};

use anyhow::{Context, Result};

use crate::{Lab, Namespace};

/// What such a program says of every packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// Let the next one decide.
    Next,
    /// Drop it.
    Drop,
}

/// Where it stands among the tcx programs of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Before all that are there.
    First,
    /// Behind all that are there.
    Last,
}

/// A loaded program. It can be attached more than once.
#[derive(Debug)]
pub struct Foreign {
    map: OwnedFd,
    program: OwnedFd,
    pin: PathBuf,
}

// linux/bpf.h
const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP: libc::c_long = 1;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const LINK_CREATE: libc::c_long = 28;
const ARRAY: u32 = 2;
const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;
const XDP_PASS: i32 = 2;
const TCX_INGRESS: u32 = 46;
const BEFORE: u32 = 1 << 3;
const AFTER: u32 = 1 << 4;

/// The words of `union bpf_attr` that are used here; the kernel wants the rest to be zero.
type Attr = [u64; 16];

fn bpf(command: libc::c_long, attr: &Attr) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads no more than the attribute, whose size goes with it; the addresses in
    // it are of memory that the callers hold through the call and that is as large as they say.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), size_of::<Attr>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn bpf_fd(command: libc::c_long, attr: &Attr) -> io::Result<OwnedFd> {
    let fd = bpf(command, attr)?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just opened this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Two 32-bit fields in the order of memory.
fn pair(first: u32, second: u32) -> u64 {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&first.to_ne_bytes());
    bytes[4..].copy_from_slice(&second.to_ne_bytes());
    u64::from_ne_bytes(bytes)
}

fn raw(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// One instruction: operation, registers (source in the upper half), offset, immediate.
fn insn(operation: u8, registers: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let mut bytes = [operation, registers, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..].copy_from_slice(&immediate.to_ne_bytes());
    bytes
}

impl Foreign {
    /// Loads it and pins it under a name of its own.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn load(lab: &Lab, name: &str, says: Says) -> Result<Self> {
        let verdict = match says {
            Says::Next => -1,
            Says::Drop => 2,
        };
        Self::load_as(lab, name, SCHED_CLS, verdict)
    }

    /// The same for XDP, which lets all pass.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn load_xdp(lab: &Lab, name: &str) -> Result<Self> {
        Self::load_as(lab, name, XDP, XDP_PASS)
    }

    fn load_as(lab: &Lab, name: &str, kind: u32, verdict: i32) -> Result<Self> {
        let mut attr = Attr::default();
        attr[0] = pair(ARRAY, 4);
        attr[1] = pair(8, 1);
        let map = bpf_fd(MAP_CREATE, &attr).context("making the counter's map")?;
        let code = [
            insn(0xb7, 0x01, 0, 0),               // r1 = 0
            insn(0x63, 0x1a, -4, 0),              // *(u32 *)(r10 - 4) = r1
            insn(0xbf, 0xa2, 0, 0),               // r2 = r10
            insn(0x07, 0x02, 0, -4),              // r2 += -4
            insn(0x18, 0x11, 0, map.as_raw_fd()), // r1 = map
            insn(0x00, 0x00, 0, 0),
            insn(0x85, 0x00, 0, 1),       // r0 = bpf_map_lookup_elem(r1, r2)
            insn(0x15, 0x00, 2, 0),       // if r0 == 0 goto +2
            insn(0xb7, 0x01, 0, 1),       // r1 = 1
            insn(0xdb, 0x10, 0, 0),       // lock *(u64 *)r0 += r1
            insn(0xb7, 0x00, 0, verdict), // r0 = verdict
            insn(0x95, 0x00, 0, 0),       // exit
        ];
        let license = c"GPL";
        let mut attr = Attr::default();
        attr[0] = pair(kind, code.len() as u32);
        attr[1] = code.as_ptr() as u64;
        attr[2] = license.as_ptr() as u64;
        let program = bpf_fd(PROG_LOAD, &attr).context("loading the program")?;
        let pin = PathBuf::from(format!(
            "/sys/fs/bpf/{}-{name}",
            lab.gateway.name().replace('.', "-")
        ));
        let path = CString::new(pin.to_string_lossy().as_bytes())?;
        let mut attr = Attr::default();
        attr[0] = path.as_ptr() as u64;
        attr[1] = pair(raw(&program), 0);
        bpf(OBJ_PIN, &attr).with_context(|| format!("pinning {}", pin.display()))?;
        Ok(Self { map, program, pin })
    }

    /// The packets it has seen.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn packets(&self) -> Result<u64> {
        let key = 0_u32;
        let mut value = 0_u64;
        let mut attr = Attr::default();
        attr[0] = pair(raw(&self.map), 0);
        attr[1] = &raw const key as u64;
        attr[2] = &raw mut value as u64;
        bpf(MAP_LOOKUP, &attr).context("reading the counter")?;
        // SAFETY: the value lives and is initialised; the kernel has written it behind the
        // compiler's back, so it must be read anew.
        Ok(unsafe { (&raw const value).read_volatile() })
    }

    /// Attaches it to a link's ingress as a tcx program, until the guard is dropped.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn tcx(&self, ns: &Namespace, link: &str, place: Place) -> Result<OwnedFd> {
        let flags = match place {
            Place::First => BEFORE,
            Place::Last => AFTER,
        };
        ns.enter(|| -> Result<OwnedFd> {
            let index = nix::net::if_::if_nametoindex(link)?;
            let mut attr = Attr::default();
            attr[0] = pair(raw(&self.program), index);
            attr[1] = pair(TCX_INGRESS, flags);
            bpf_fd(LINK_CREATE, &attr).with_context(|| format!("attaching to {link}"))
        })?
    }

    /// Attaches one for XDP to a link, whatever its driver.
    ///
    /// # Errors
    /// When bpftool fails.
    pub fn xdp(&self, ns: &Namespace, link: &str) -> Result<()> {
        let pin = self.pin.to_string_lossy();
        ns.run(&[
            "bpftool",
            "net",
            "attach",
            "xdpgeneric",
            "pinned",
            &pin,
            "dev",
            link,
        ])?;
        Ok(())
    }

    /// Attaches it to a link's ingress as a clsact filter, whose qdisc must be there.
    ///
    /// # Errors
    /// When tc fails.
    pub fn filter(&self, ns: &Namespace, link: &str, priority: &str) -> Result<()> {
        let pin = self.pin.to_string_lossy();
        let words = "ingress protocol all bpf direct-action object-pinned";
        let mut argv = vec!["tc", "filter", "add", "dev", link, "prio", priority];
        argv.extend(words.split(' '));
        argv.push(&pin);
        ns.run(&argv)?;
        Ok(())
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        fs::remove_file(&self.pin).ok();
    }
}
