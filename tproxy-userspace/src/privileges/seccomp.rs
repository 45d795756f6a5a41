//! Which system calls all threads may make from some moment on.
//!
//! What is not on the list in `calls.rs` answers ENOSYS, as on a kernel that does not know the call: the C
//! library and others then go on with an older call that does the same, where EPERM would make them fail, and to kill the
//! process would end a gateway for a call that was forgotten.

use std::collections::BTreeMap;
use std::fs;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

use super::Error;
use super::calls::{ALLOWED, FAMILIES, NAMESPACES, SOME_CLONES, SOME_SOCKETS};

#[cfg(target_arch = "x86_64")]
const MACHINE: Option<TargetArch> = Some(TargetArch::x86_64);
#[cfg(target_arch = "aarch64")]
const MACHINE: Option<TargetArch> = Some(TargetArch::aarch64);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const MACHINE: Option<TargetArch> = None;

/// What becomes of a call that is not on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// It answers ENOSYS.
    Refused,
    /// It is done, and the kernel's log tells of it: to find what the list lacks.
    Told,
}

impl Others {
    /// `TPROXY_BPF_SECCOMP=log` lets them be done and told.
    #[must_use]
    pub fn from_environment() -> Self {
        match std::env::var("TPROXY_BPF_SECCOMP").is_ok_and(|word| word == "log") {
            true => Self::Told,
            false => Self::Refused,
        }
    }
}

/// Filters the calls of all threads, those to come, and all programs that they start. There is no way back.
///
/// # Errors
/// [`Error::Filter`] when the kernel has no such filters, or this machine is one without a list.
pub fn install(others: Others) -> Result<(), Error> {
    let program = program(others)?;
    apply_filter_all_threads(&program).map_err(|error| Error::Filter(error.to_string()))
}

/// Whether the calling thread's calls are filtered.
#[must_use]
pub fn is_on() -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let mode = status
        .lines()
        .find_map(|line| line.strip_prefix("Seccomp:"));
    mode.is_some_and(|mode| mode.trim() == "2")
}

fn program(others: Others) -> Result<BpfProgram, Error> {
    let machine = MACHINE.ok_or_else(|| {
        Error::Filter("there is no list of calls for this kind of machine".to_owned())
    })?;
    let refusal = match others {
        Others::Refused => SeccompAction::Errno(libc::ENOSYS as u32),
        Others::Told => SeccompAction::Log,
    };
    let build = || -> Result<BpfProgram, seccompiler::BackendError> {
        SeccompFilter::new(rules()?, refusal, SeccompAction::Allow, machine)?.try_into()
    };
    build().map_err(|error| Error::Filter(error.to_string()))
}

/// For each call what its arguments have to be; nothing, if they may be anything.
fn rules() -> Result<BTreeMap<i64, Vec<SeccompRule>>, seccompiler::BackendError> {
    let first = |op, value| {
        let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, op, value)?;
        SeccompRule::new(vec![condition])
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    let families = FAMILIES
        .iter()
        .map(|family| first(SeccompCmpOp::Eq, *family as u64));
    rules.insert(SOME_SOCKETS, families.collect::<Result<_, _>>()?);
    let plain = first(SeccompCmpOp::MaskedEq(NAMESPACES as u64), 0)?;
    rules.insert(SOME_CLONES, vec![plain]);
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::errno::Errno;

    use super::*;

    /// Set for the copy of this test that filters itself.
    const INSIDE: &str = "TPROXY_BPF_TEST_SECCOMP";

    /// What a call with these arguments comes to. None of them does anything where it is not refused.
    fn call(number: i64, first: i64) -> Result<i64, Errno> {
        // SAFETY: no argument is taken for an address of ours: they are zero or a number of no file.
        let result = unsafe { libc::syscall(number, first, 0, 0, 0, 0, 0) };
        Errno::result(result)
    }

    #[test]
    fn what_no_proxy_does_is_refused_in_all_threads_and_the_rest_works() {
        if std::env::var_os(INSIDE).is_none() {
            // A filter stays for the life of a process, so another one gets it.
            let name = "privileges::seccomp::tests::what_no_proxy_does_is_refused_in_all_threads_and_the_rest_works";
            let mut copy = Command::new(std::env::current_exe().unwrap());
            let copy = copy.args([name, "--exact", "--nocapture"]).env(INSIDE, "1");
            let output = copy.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success(),
                "{said}\n{}",
                String::from_utf8_lossy(&output.stderr)
            );
            assert!(said.contains("1 passed"), "{said}");
            return;
        }
        let (wake, wait) = std::sync::mpsc::channel();
        let before = std::thread::spawn(move || wait.recv().map(|()| refusals()));
        assert!(!is_on());
        install(Others::Refused).unwrap();
        assert!(is_on());
        wake.send(()).unwrap();
        for refusals in [
            refusals(),
            before.join().unwrap().unwrap(),
            std::thread::spawn(refusals).join().unwrap(),
        ] {
            for (name, result) in refusals {
                assert_eq!(result, Err(Errno::ENOSYS), "{name}");
            }
        }
        // Children work, and inherit it.
        let output = Command::new("/bin/sh")
            .args(["-c", "cat /proc/self/status; exit 3"])
            .output();
        let output = output.unwrap();
        assert_eq!(output.status.code(), Some(3));
        assert!(String::from_utf8_lossy(&output.stdout).contains("Seccomp:\t2"));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    }

    fn refusals() -> Vec<(&'static str, Result<i64, Errno>)> {
        let none = -1;
        vec![
            ("ptrace", call(libc::SYS_ptrace, 9999)),
            ("process_vm_readv", call(libc::SYS_process_vm_readv, none)),
            ("process_vm_writev", call(libc::SYS_process_vm_writev, none)),
            ("mount", call(libc::SYS_mount, 0)),
            ("umount2", call(libc::SYS_umount2, 0)),
            ("move_mount", call(libc::SYS_move_mount, none)),
            ("pivot_root", call(libc::SYS_pivot_root, 0)),
            ("chroot", call(libc::SYS_chroot, 0)),
            ("kexec_load", call(libc::SYS_kexec_load, none)),
            ("init_module", call(libc::SYS_init_module, 0)),
            ("finit_module", call(libc::SYS_finit_module, none)),
            ("delete_module", call(libc::SYS_delete_module, 0)),
            ("clock_settime", call(libc::SYS_clock_settime, none)),
            ("settimeofday", call(libc::SYS_settimeofday, 0)),
            ("adjtimex", call(libc::SYS_adjtimex, 0)),
            ("unshare", call(libc::SYS_unshare, 0)),
            ("setns", call(libc::SYS_setns, none)),
            (
                "clone into a namespace",
                call(libc::SYS_clone, i64::from(libc::CLONE_NEWUSER)),
            ),
            ("clone3", call(libc::SYS_clone3, 0)),
            ("execveat", call(libc::SYS_execveat, none)),
            ("setresuid", call(libc::SYS_setresuid, none)),
            ("capset", call(libc::SYS_capset, 0)),
            ("reboot", call(libc::SYS_reboot, 0)),
            ("swapon", call(libc::SYS_swapon, 0)),
            ("add_key", call(libc::SYS_add_key, 0)),
            ("keyctl", call(libc::SYS_keyctl, none)),
            ("userfaultfd", call(libc::SYS_userfaultfd, none)),
            ("perf_event_open", call(libc::SYS_perf_event_open, 0)),
            ("io_uring_setup", call(libc::SYS_io_uring_setup, 0)),
            ("pidfd_getfd", call(libc::SYS_pidfd_getfd, none)),
            ("mknodat", call(libc::SYS_mknodat, none)),
            (
                "a packet socket",
                call(libc::SYS_socket, i64::from(libc::AF_PACKET)),
            ),
            (
                "a vsock socket",
                call(libc::SYS_socket, i64::from(libc::AF_VSOCK)),
            ),
        ]
    }
}
