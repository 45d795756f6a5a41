//! Who on the gateway is exempt: sockets by their maker, and packets by marks of others.

use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_uid_gid, bpf_get_netns_cookie,
};
use aya_ebpf::programs::SockContext;
use tproxy_common::abi::{
    CGROUP_DEPTH, EXEMPT_MARKS as MARKS, ExemptKey, ExemptKind, MARK_EXEMPT, MARK_MASK,
};

use crate::facts::settings;
use crate::maps::{EXEMPT, EXEMPT_MARKS};

/// cgroup/sock_create: a program returns 1 to allow the socket.
const ALLOW: i32 = 1;

/// Gives a socket that an exempt process makes the exempt mark.
#[inline(always)]
pub fn mark_socket(ctx: &SockContext) -> i32 {
    // The root of cgroup2 hears of the sockets of all network namespaces.
    // SAFETY: the kernel gives a valid context for the run of the program.
    if unsafe { bpf_get_netns_cookie(ctx.sock.cast()) } == settings().netns_cookie
        && maker_is_exempt()
    {
        // SAFETY: as above; the field may be written by programs of this kind.
        unsafe { (*ctx.sock).mark = (*ctx.sock).mark & !MARK_MASK | MARK_EXEMPT };
    }
    ALLOW
}

#[inline(always)]
fn maker_is_exempt() -> bool {
    // SAFETY: the helper takes no arguments.
    let ids = unsafe { bpf_get_current_uid_gid() };
    if is_listed(ExemptKind::Gid, ids >> 32) || is_listed(ExemptKind::Uid, ids & 0xffff_ffff) {
        return true;
    }
    // Level 0 is the root, which is above everybody.
    for level in 1..=CGROUP_DEPTH {
        // SAFETY: the helper takes a plain number.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
        if id == 0 {
            return false;
        }
        if is_listed(ExemptKind::Cgroup, id) {
            return true;
        }
    }
    false
}

#[inline(never)]
fn is_listed(kind: ExemptKind, id: u64) -> bool {
    let key = ExemptKey {
        kind: kind as u32,
        unused: 0,
        id,
    };
    EXEMPT.get_ptr(key).is_some()
}

/// Is this one of the marks of others that are exempt? What has no mark is not.
#[inline(always)]
pub fn has_exempt_mark(mark: u32) -> bool {
    mark != 0 && is_among_marks(mark)
}

#[inline(never)]
fn is_among_marks(mark: u32) -> bool {
    let Some(exempt) = EXEMPT_MARKS.get(0) else {
        return false;
    };
    for index in 0..MARKS {
        if index >= exempt.count as usize {
            return false;
        }
        let entry = &exempt.marks[index];
        if mark & entry.mask == entry.value {
            return true;
        }
    }
    false
}
