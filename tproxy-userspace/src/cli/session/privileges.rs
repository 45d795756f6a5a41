//! What a run does as root, before it lets go of what it needs no more and makes its first thread.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tproxy_userspace::config::Config;
use tproxy_userspace::control::exempt;
use tproxy_userspace::control::place::{Owner, Place};
use tproxy_userspace::control::preflight::{self, KernelVersion};
use tproxy_userspace::privileges::seccomp::{self, Others};
use tproxy_userspace::privileges::{Identity, PROXY, confine, user_name};

use super::super::keep::Keeper;
use super::super::lists::Lists;

/// A process that holds what a proxy needs, and no more.
pub struct Ready {
    /// Until the run takes them.
    pub(super) lists: Option<Lists>,
    pub(super) place: Place,
    pub(super) kernel: KernelVersion,
    /// It takes over from the proxy that runs, if there is one.
    pub(super) takeover: bool,
    /// Clears up where this process may not.
    keeper: Option<Keeper>,
}

impl Ready {
    /// Looks at words and machine, makes the folders that belong to another user, and becomes it.
    pub fn new(config: &Config, file: Option<&Path>, takeover: bool) -> Result<Self> {
        // What can be wrong with the words is found before anything is touched.
        let lists = Lists::load_and_tell(config)?;
        exempt::check(&config.exempt)?;
        let identity = Identity::of(config)?;
        let findings = preflight::check_machine()?;
        for warning in findings.warnings {
            tracing::warn!("{warning}");
        }
        let place = Place::current()?;
        let mut ready = Self {
            lists: Some(lists),
            place,
            kernel: findings.kernel,
            takeover,
            keeper: None,
        };
        if let Err(error) = ready.confine(&identity) {
            ready.end();
            return Err(error);
        }
        if let (Some(file), Some(_)) = (file, identity.user)
            && let Err(error) = File::open(file)
        {
            tracing::warn!(
                "the user {} cannot read {} ({error}), so a reload will be refused; make it the file's group",
                user_name(),
                file.display()
            );
        }
        Ok(ready)
    }

    fn confine(&mut self, identity: &Identity) -> Result<()> {
        let before = self.place.owner();
        let wanted = Owner {
            uid: identity.user.map_or(0, |user| user.uid),
            gid: identity
                .group
                .unwrap_or(identity.user.map_or(0, |user| user.gid)),
            shared: identity.group.is_some(),
        };
        // As root this one can use what is another's, and that one needs it until it is taken over from.
        let taken = self.takeover && wanted.uid == 0 && before.is_some_and(|owner| owner.uid != 0);
        let differs = match before {
            Some(owner) => owner != wanted,
            None => identity.user.is_some() || identity.group.is_some(),
        };
        if differs && !taken {
            if let Some(pid) = self.place.proxy_pid().filter(|_| !self.takeover) {
                bail!(
                    "a proxy already runs in this network namespace (process {pid}): stop it first, or start this with \
                     --takeover"
                );
            }
            self.place.give(wanted)?;
        }
        if identity.user.is_some() {
            self.keeper = Some(Keeper::start(before.filter(|_| differs))?);
            self.place.hold()?;
        }
        Ok(confine(&PROXY, identity)?)
    }

    /// It serves: from here on system calls are filtered.
    pub(super) fn serves(&mut self, config: &Config) {
        if let Some(keeper) = &mut self.keeper {
            keeper.serves();
        }
        if config.gateway.seccomp
            && let Err(error) = seccomp::install(Others::from_environment())
        {
            tracing::warn!("{error}");
        }
    }

    /// Removes what is left empty.
    pub fn end(&mut self) {
        self.keeper = None;
        if let Err(error) = self.place.tidy() {
            tracing::warn!("{error}");
        }
    }
}

/// Who reads, in an error of what another user than root may not read.
pub(super) trait Reading<T> {
    /// Names the user.
    fn naming_user(self) -> Result<T>;
}

impl<T> Reading<T> for Result<T> {
    fn naming_user(self) -> Result<T> {
        match nix::unistd::geteuid().is_root() {
            true => self,
            false => self.with_context(|| format!("reading as the user {}", user_name())),
        }
    }
}
