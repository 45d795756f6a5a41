//! The programs: loading them, and attaching them so that they outlive this process.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact,
};
use aya::programs::{
    CgroupAttachMode, CgroupSock, LinkOrder, ProgramError, SchedClassifier, SkLookup, TcAttachType,
};
use aya::{Ebpf, EbpfLoader};
use tproxy_common::abi::{ABI_VERSION, program};

use super::super::sync::Roles;
use super::{Error, Maps};

/// The kernel half, built for the target of BPF.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tproxy-ebpf.o"));

/// How programs are held at a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachWay {
    /// tcx links, pinned (kernel 6.6 and later).
    Tcx,
    /// Filters of a clsact qdisc, found again by priority and handle.
    Clsact,
}

/// The priority of our clsact filters: 0x7470, after what others put first by hand.
const PRIORITY: u16 = 0x7470;
const HANDLE: TcHandle = TcHandle::new(0, 1);
/// For more programs of ours in the same direction.
const HANDLE_LOCAL: TcHandle = TcHandle::new(0, 2);
const HANDLE_EXPRESS: TcHandle = TcHandle::new(0, 3);
const LOOKUP_PIN: &str = "lookup";
const SOCK_CREATE_PIN: &str = "sock_create";

/// All that are attached to links.
pub(super) const CLASSIFIERS: [&str; 11] = [
    program::LAN_INGRESS,
    program::LAN_INGRESS_L3,
    program::UDP_REPLY,
    program::UDP_REPLY_L3,
    program::LOCAL_EGRESS,
    program::LOCAL_EGRESS_L3,
    program::LO_INGRESS,
    program::WAN_INGRESS,
    program::WAN_INGRESS_L3,
    program::WAN_EGRESS,
    program::WAN_EGRESS_L3,
];

/// The programs of one object, on one set of maps.
pub struct Programs {
    ebpf: Ebpf,
    pins: PathBuf,
}

/// One program at a link.
#[derive(Clone, Copy)]
struct Hook {
    program: &'static str,
    direction: TcAttachType,
    /// The end of its pin's name.
    pin: &'static str,
    handle: TcHandle,
}

/// The programs of a link, in the order in which they are attached.
fn hooks(roles: Roles, ethernet: bool) -> Vec<Hook> {
    let pick = |with_header, without| if ethernet { with_header } else { without };
    let mut hooks = Vec::new();
    // The way back first: nothing is steered before its answers can leave.
    if roles.lan || roles.loopback {
        hooks.push(Hook {
            program: pick(program::UDP_REPLY, program::UDP_REPLY_L3),
            direction: TcAttachType::Egress,
            pin: "egress",
            handle: HANDLE,
        });
    }
    if roles.wan {
        hooks.push(Hook {
            program: pick(program::LOCAL_EGRESS, program::LOCAL_EGRESS_L3),
            direction: TcAttachType::Egress,
            pin: "local",
            handle: HANDLE_LOCAL,
        });
    }
    if roles.lan || roles.loopback {
        hooks.push(Hook {
            program: if roles.loopback {
                program::LO_INGRESS
            } else {
                pick(program::LAN_INGRESS, program::LAN_INGRESS_L3)
            },
            direction: TcAttachType::Ingress,
            pin: "ingress",
            handle: HANDLE,
        });
    }
    if roles.express {
        hooks.push(Hook {
            program: pick(program::WAN_EGRESS, program::WAN_EGRESS_L3),
            direction: TcAttachType::Egress,
            pin: "express_out",
            handle: HANDLE_EXPRESS,
        });
        hooks.push(Hook {
            program: pick(program::WAN_INGRESS, program::WAN_INGRESS_L3),
            direction: TcAttachType::Ingress,
            pin: "express_in",
            handle: HANDLE_EXPRESS,
        });
    }
    hooks
}

impl Hook {
    fn pin(&self, pins: &Path, index: u32) -> PathBuf {
        pins.join(format!("link_{index}_{}", self.pin))
    }
}

impl Programs {
    /// Opens the programs; maps that are pinned in the folder are used, those that are missing are made and pinned
    /// there. The kernel gets each program when it is first needed: verifying all of them takes a second, and
    /// most gateways attach three.
    ///
    /// # Errors
    /// [`Error::Load`], [`Error::Version`].
    pub fn load(pins: &Path) -> Result<(Self, Maps), Error> {
        // Maps of another version must be found before they are used.
        Maps::open(pins)?;
        let (programs, mut maps) = Self::load_apart(pins, &[])?;
        let mut settings = maps.settings()?;
        settings.abi = ABI_VERSION;
        maps.set_settings(settings)?;
        Ok((programs, maps))
    }

    /// The same, but for some maps that the programs get for themselves, pinned at the paths beside their names.
    pub(super) fn load_apart(
        pins: &Path,
        own: &[(&'static str, PathBuf)],
    ) -> Result<(Self, Maps), Error> {
        let mut loader = EbpfLoader::new();
        loader.default_map_pin_directory(pins);
        for (name, path) in own {
            loader.map_pin_path(name, path);
        }
        let mut ebpf = loader.load(OBJECT).map_err(Error::Load)?;
        let maps = Maps::of(&mut ebpf)?;
        let programs = Self {
            ebpf,
            pins: pins.to_owned(),
        };
        Ok((programs, maps))
    }

    /// Gives the kernel all programs that may be attached to links, for whoever must not wait for it later, and says
    /// how many instructions it followed for each, where the kernel tells (5.16).
    ///
    /// # Errors
    /// [`Error::Program`].
    pub fn load_all(&mut self) -> Result<Vec<(&'static str, Option<u32>)>, Error> {
        let mut verified = Vec::new();
        for name in CLASSIFIERS {
            let info = self.classifier(name).and_then(|program| program.info());
            let info = info.map_err(|source| Error::Program { name, source })?;
            verified.push((name, info.verified_instruction_count()));
        }
        Ok(verified)
    }

    /// A tc program, loaded.
    pub(super) fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier, ProgramError> {
        let program: &mut SchedClassifier = self
            .ebpf
            .program_mut(name)
            .ok_or(ProgramError::NotLoaded)?
            .try_into()?;
        if program.fd().is_err() {
            program.load()?;
        }
        Ok(program)
    }

    fn socket_lookup(&mut self) -> Result<&mut SkLookup, ProgramError> {
        let program: &mut SkLookup = self
            .ebpf
            .program_mut(program::SK_LOOKUP)
            .ok_or(ProgramError::NotLoaded)?
            .try_into()?;
        if program.fd().is_err() {
            program.load()?;
        }
        Ok(program)
    }

    /// Attaches socket lookup to this network namespace, or puts the new program in the place of
    /// the one a process before this one left.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Attach`], [`Error::Pin`].
    pub fn attach_lookup(&mut self) -> Result<(), Error> {
        let pin = self.pins.join(LOOKUP_PIN);
        let failed = |source| Error::Attach {
            program: program::SK_LOOKUP,
            link: "the network namespace".into(),
            source,
        };
        // Unlike tcx links, aya cannot update a socket lookup link in place. The new one is attached
        // before the old one goes; while both are there they choose the same socket.
        let netns = Path::new("/proc/thread-self/ns/net");
        let file = File::open(netns).map_err(file("opening", netns))?;
        let program = self.socket_lookup().map_err(|source| Error::Program {
            name: program::SK_LOOKUP,
            source,
        })?;
        let id = program.attach(file).map_err(failed)?;
        let link: FdLink = program.take_link(id).map_err(failed)?.into();
        remove_pin(&pin)?;
        link.pin(&pin)
            .map_err(|source| Error::Pin { path: pin, source })?;
        Ok(())
    }

    /// Attaches the program that marks exempt sockets to this cgroup, the root of cgroup2, or puts the new
    /// program in the place of the one a process before this one left.
    ///
    /// # Errors
    /// [`Error::Program`], [`Error::Attach`], [`Error::Pin`], [`Error::File`].
    pub fn attach_sock_create(&mut self, cgroup: &Path) -> Result<(), Error> {
        let name = program::SOCK_CREATE;
        let pin = self.pins.join(SOCK_CREATE_PIN);
        let failed = |source| Error::Attach {
            program: name,
            link: cgroup.display().to_string(),
            source,
        };
        let folder = File::open(cgroup).map_err(file("opening", cgroup))?;
        let program: &mut CgroupSock = self
            .ebpf
            .program_mut(name)
            .ok_or(ProgramError::NotLoaded)
            .and_then(TryInto::try_into)
            .map_err(failed)?;
        // Not before: a kernel without this kind of program does all the rest.
        if program.fd().is_err() {
            program
                .load()
                .map_err(|source| Error::Program { name, source })?;
        }
        // As with socket lookup: attached before the old one goes. Marking twice is marking. A BPF link
        // always leaves room for others and takes no flags (cgroup_bpf_link_attach in the kernel's
        // kernel/bpf/cgroup.c).
        let id = program
            .attach(folder, CgroupAttachMode::Single)
            .map_err(failed)?;
        let link = program.take_link(id).map_err(failed)?;
        let link: FdLink = link
            .try_into()
            .map_err(|_| failed(ProgramError::NotAttached))?;
        remove_pin(&pin)?;
        link.pin(&pin)
            .map_err(|source| Error::Pin { path: pin, source })?;
        Ok(())
    }

    /// Attaches the programs of a link, or puts the new programs in the place of those that are
    /// there.
    ///
    /// # Errors
    /// [`Error::Program`] before anything is attached; [`Error::Attach`], [`Error::Pin`]: what was attached until then
    /// is detached again.
    pub fn attach_link(
        &mut self,
        index: u32,
        name: &str,
        ethernet: bool,
        roles: Roles,
        way: AttachWay,
    ) -> Result<(), Error> {
        let hooks = hooks(roles, ethernet);
        for hook in &hooks {
            let name = hook.program;
            self.classifier(name)
                .map_err(|source| Error::Program { name, source })?;
        }
        let attached = match way {
            AttachWay::Tcx => self.attach_tcx(index, name, &hooks),
            AttachWay::Clsact => self.attach_clsact(name, &hooks),
        };
        if attached.is_err() {
            // The first failure is the one to tell.
            let _ = detach_link(&self.pins, index, name, roles, way);
        }
        attached
    }

    fn attach_tcx(&mut self, index: u32, name: &str, hooks: &[Hook]) -> Result<(), Error> {
        for hook in hooks {
            let pin = hook.pin(&self.pins, index);
            let failed = |source| Error::Attach {
                program: hook.program,
                link: name.into(),
                source,
            };
            let program = self.classifier(hook.program).map_err(failed)?;
            // A pin whose link is gone (the interface was removed) cannot be updated.
            let present = PinnedLink::from_pin(&pin)
                .ok()
                .and_then(|pinned| SchedClassifierLink::try_from(FdLink::from(pinned)).ok())
                .and_then(|link| program.attach_to_link(link).ok());
            if let Some(id) = present {
                // The pin holds the link; ours is only a reference to it.
                drop(program.take_link(id).map_err(failed)?);
                continue;
            }
            remove_pin(&pin)?;
            // First: what ends the chain before us would make the devices' packets invisible.
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            let id = program
                .attach_with_options(name, hook.direction, options)
                .map_err(failed)?;
            let link: FdLink = program
                .take_link(id)
                .and_then(|link| link.try_into().map_err(|_| ProgramError::NotAttached))
                .map_err(failed)?;
            link.pin(&pin)
                .map_err(|source| Error::Pin { path: pin, source })?;
        }
        Ok(())
    }

    fn attach_clsact(&mut self, name: &str, hooks: &[Hook]) -> Result<(), Error> {
        match qdisc_add_clsact(name) {
            Ok(()) | Err(TcError::AlreadyAttached) => {}
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(libc::EEXIST) => {}
            Err(error) => {
                return Err(Error::Attach {
                    program: "the clsact qdisc",
                    link: name.into(),
                    source: error.into(),
                });
            }
        }
        for hook in hooks {
            let failed = |source| Error::Attach {
                program: hook.program,
                link: name.into(),
                source,
            };
            let program = self.classifier(hook.program).map_err(failed)?;
            if let Ok(left) =
                SchedClassifierLink::attached(name, hook.direction, PRIORITY, hook.handle, None)
                && let Ok(id) = program.attach_to_link(left)
            {
                std::mem::forget(program.take_link(id).map_err(failed)?);
                continue;
            }
            let options = TcAttachOptions::Netlink(NlOptions {
                priority: PRIORITY,
                handle: hook.handle,
                classid: None,
            });
            let id = program
                .attach_with_options(name, hook.direction, options)
                .map_err(failed)?;
            // Dropping it would detach it, and it must outlive this process.
            std::mem::forget(program.take_link(id).map_err(failed)?);
        }
        Ok(())
    }
}

/// Detaches the programs of these roles from a link. A link that is gone took its programs with it.
///
/// # Errors
/// [`Error::Detach`], [`Error::File`].
pub fn detach_link(
    pins: &Path,
    index: u32,
    name: &str,
    roles: Roles,
    way: AttachWay,
) -> Result<(), Error> {
    let mut result = Ok(());
    // Steering ends before the way back does.
    for hook in hooks(roles, true).into_iter().rev() {
        let detached = match way {
            AttachWay::Tcx => remove_pin(&hook.pin(pins, index)),
            AttachWay::Clsact => {
                match SchedClassifierLink::attached(
                    name,
                    hook.direction,
                    PRIORITY,
                    hook.handle,
                    None,
                ) {
                    Ok(link) => match aya::programs::links::Link::detach(link) {
                        // Whoever was to attach it did not come so far.
                        Err(ProgramError::NetlinkError(error)) if is_missing(&error) => Ok(()),
                        detached => detached.map_err(|source| Error::Detach {
                            program: hook.program,
                            link: name.into(),
                            source,
                        }),
                    },
                    Err(_) => Ok(()),
                }
            }
        };
        result = result.and(detached);
    }
    result
}

/// No such filter, or no clsact qdisc that could have one.
fn is_missing(error: &aya::sys::NetlinkError) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)
    )
}

/// Marks no more sockets.
///
/// # Errors
/// [`Error::File`].
pub fn detach_sock_create(pins: &Path) -> Result<(), Error> {
    remove_pin(&pins.join(SOCK_CREATE_PIN))
}

/// Is the program attached that gives sockets of exempt processes the exempt mark?
#[must_use]
pub fn has_sock_create(pins: &Path) -> bool {
    pins.join(SOCK_CREATE_PIN).exists()
}

/// Removes a pin; one that is not there needs no removing.
pub(super) fn remove_pin(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(file("removing the pin", path)),
    }
}

pub(super) fn file(doing: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        doing,
        path,
        source,
    }
}

/// Removes every pin in the folder: links first, so that no program runs on maps that are gone.
///
/// # Errors
/// [`Error::File`].
pub fn remove_pins(pins: &Path) -> Result<(), Error> {
    let entries = match fs::read_dir(pins) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(file("reading the folder", pins))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry.map_err(file("reading the folder", pins))?.path());
    }
    let is_map = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| {
                name.chars()
                    .all(|letter| letter.is_ascii_uppercase() || matches!(letter, '_' | '0'..='9'))
            })
    };
    paths.sort_by_key(is_map);
    for path in paths {
        remove_pin(&path)?;
    }
    Ok(())
}
