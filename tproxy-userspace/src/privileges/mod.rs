//! What the process of a proxy may do: capabilities, user, groups, and which system calls.
//!
//! Capabilities and users are a thread's own, so [`confine`] comes before the first further thread. What is refused
//! by [`seccomp`] holds for all threads, whenever it comes.

pub mod arguments;
mod calls;
pub mod seccomp;

use std::io;
use std::sync::OnceLock;

use caps::{CapSet, Capability, CapsHashSet, errors::CapsError};
use nix::errno::Errno;
use nix::sys::prctl::set_no_new_privs;
use nix::unistd::{Gid, Uid, geteuid, getgroups, setgroups, setresgid, setresuid};
use serde::Serialize;

use crate::config::{Config, IdOrName};
use crate::control::accounts::{Accounts, User};

/// What a running proxy keeps: links, routes, transparent sockets and nft; programs and maps, and PERFMON, without which
/// the verifier refuses them; full-sized pipes for more than some hundred connections; low ports of the API.
pub const PROXY: [Capability; 5] = [
    Capability::CAP_NET_ADMIN,
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    Capability::CAP_SYS_RESOURCE,
    Capability::CAP_NET_BIND_SERVICE,
];

/// What it keeps beside these as root: folders of cgroups are writable for nobody, and what belongs to a proxy that runs as
/// another user is taken over. Any other user would be root with it.
pub const ROOT: Capability = Capability::CAP_DAC_OVERRIDE;

/// What the process needs that clears up behind a proxy of another user.
pub const KEEPER: [Capability; 3] = [
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_CHOWN,
    Capability::CAP_FOWNER,
];

/// What a program that the proxy starts as another user than root needs: nft.
const CHILDREN: Capability = Capability::CAP_NET_ADMIN;

/// What can go wrong with privileges.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody has the name that the configuration gives.
    #[error(
        "`{key}` names the {kind} {name}, which this machine does not have; make it ({command}), or leave the key out"
    )]
    Unknown {
        /// The key of the configuration.
        key: &'static str,
        /// "user" or "group".
        kind: &'static str,
        /// The name.
        name: String,
        /// What makes one.
        command: String,
    },
    /// Users or groups cannot be looked up.
    #[error("looking up the {kind} {name} failed: {source}")]
    LookUp {
        /// "user" or "group".
        kind: &'static str,
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to let privileges go.
    #[error(
        "{doing} failed: {source}; start this as root, or leave `user` and `group` out of the configuration"
    )]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Capabilities could not be read or changed.
    #[error("changing what this process may do failed: {0}")]
    Capabilities(#[from] CapsError),
    /// The filter of system calls could not be made or put into force.
    #[error("filtering system calls failed: {0}; `[gateway] seccomp = false` does without")]
    Filter(String),
}

fn refused(doing: &'static str) -> impl FnOnce(Errno) -> Error {
    move |errno| Error::Refused {
        doing,
        source: errno.into(),
    }
}

/// Who a proxy runs as, and who may use its control socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The user, if it is another than the one that starts it.
    pub user: Option<User>,
    /// The group that may use the control socket.
    pub group: Option<u32>,
}

impl Identity {
    /// As the configuration has it.
    ///
    /// # Errors
    /// [`Error::Unknown`], [`Error::LookUp`].
    pub fn of(config: &Config) -> Result<Self, Error> {
        let user = config.gateway.user.as_ref().map(user).transpose()?;
        let group = config.api.group.as_ref().map(group).transpose()?;
        let current = geteuid().as_raw();
        Ok(Self {
            user: user.filter(|user| user.uid != current),
            group,
        })
    }
}

fn user(who: &IdOrName) -> Result<User, Error> {
    let name = who.to_string();
    let found = Accounts::user(&name).map_err(|source| Error::LookUp {
        kind: "user",
        name: name.clone(),
        source,
    })?;
    match (found, who) {
        (Some(user), _) => Ok(user),
        // A number needs no name.
        (None, IdOrName::Id(id)) => Ok(User { uid: *id, gid: *id }),
        (None, IdOrName::Name(_)) => Err(Error::Unknown {
            key: "[gateway] user",
            kind: "user",
            command: format!("useradd --system --shell /usr/sbin/nologin {name}"),
            name,
        }),
    }
}

fn group(who: &IdOrName) -> Result<u32, Error> {
    let name = match who {
        IdOrName::Id(id) => return Ok(*id),
        IdOrName::Name(name) => name.clone(),
    };
    let found = Accounts::Groups.id(&name);
    let found = found.map_err(|source| Error::LookUp {
        kind: "group",
        name: name.clone(),
        source,
    })?;
    found.ok_or_else(|| Error::Unknown {
        key: "[api] group",
        kind: "group",
        command: format!("groupadd --system {name}"),
        name,
    })
}

/// Lets go of all but these capabilities, for this thread and those that it will make, and becomes another user. What a
/// program that is started may gain (setuid, file capabilities) is nothing from here on. Has to come before the first
/// further thread.
///
/// # Errors
/// [`Error::Refused`], [`Error::Capabilities`].
pub fn confine(keep: &[Capability], identity: &Identity) -> Result<(), Error> {
    let mut keep: CapsHashSet = keep.iter().copied().collect();
    let becomes_user = identity.user.is_some_and(|user| user.uid != 0);
    if geteuid().is_root() && !becomes_user {
        keep.insert(ROOT);
    }
    let permitted = caps::read(None, CapSet::Permitted)?;
    let keep: CapsHashSet = keep.intersection(&permitted).copied().collect();
    limit_children(&keep)?;
    set_groups(identity)?;
    if let Some(user) = identity.user {
        become_user(user)?;
    }
    let inherited: CapsHashSet = match becomes_user && keep.contains(&CHILDREN) {
        true => [CHILDREN].into(),
        false => CapsHashSet::new(),
    };
    caps::set(None, CapSet::Effective, &keep)?;
    caps::set(None, CapSet::Inheritable, &inherited)?;
    caps::set(None, CapSet::Permitted, &keep)?;
    caps::set(None, CapSet::Ambient, &inherited)?;
    set_no_new_privs().map_err(refused("giving up that programs gain privileges"))
}

/// The bounding set: what a program that root starts has at most. A service manager may have limited it before, and kept the
/// means to do so.
fn limit_children(keep: &CapsHashSet) -> Result<(), Error> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        return Ok(());
    }
    for capability in caps::read(None, CapSet::Bounding)?.difference(keep) {
        caps::drop(None, CapSet::Bounding, *capability)?;
    }
    Ok(())
}

/// A member of the group may give it what it owns, without a capability for that.
fn set_groups(identity: &Identity) -> Result<(), Error> {
    let mut groups = match identity.user {
        Some(user) => vec![Gid::from_raw(user.gid)],
        None if identity.group.is_none() => return Ok(()),
        None => getgroups().map_err(refused("reading the groups of this process"))?,
    };
    groups.extend(identity.group.map(Gid::from_raw));
    setgroups(&groups).map_err(refused("changing the groups of this process"))
}

fn become_user(user: User) -> Result<(), Error> {
    const DOING: &str = "becoming the user of `[gateway] user`";
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    caps::securebits::set_keepcaps(true)?;
    setresgid(gid, gid, gid).map_err(refused(DOING))?;
    setresuid(uid, uid, uid).map_err(refused(DOING))?;
    Ok(caps::securebits::set_keepcaps(false)?)
}

/// What the calling thread may do, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Held {
    /// The user's name, or number without one.
    pub user: &'static str,
    /// The effective capabilities, in order.
    pub capabilities: Vec<String>,
    /// Whether system calls are filtered.
    pub seccomp: bool,
}

impl Held {
    /// As it is now. What cannot be found out is left out.
    #[must_use]
    pub fn now() -> Self {
        let held = caps::read(None, CapSet::Effective).unwrap_or_default();
        let mut capabilities: Vec<_> = held.iter().map(ToString::to_string).collect();
        capabilities.sort_unstable();
        Self {
            user: user_name(),
            capabilities,
            seccomp: seccomp::is_on(),
        }
    }
}

/// The name of the user that this process is, or its number. Once it was asked for, it stays.
#[must_use]
pub fn user_name() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        let uid = geteuid().as_raw();
        let name = Accounts::Users.name(uid).ok().flatten();
        name.unwrap_or_else(|| uid.to_string())
    })
}
