//! The bpf(2) calls that aya lacks: links by ifindex, with their target, program updates and pins as the only
//! reference (aya's take interface names, and lend no descriptor), and programs for probes. Those of maps are in
//! `maps/`. No other module of this crate calls bpf(2) directly.
//!
//! Source: `include/uapi/linux/bpf.h`, v6.12, `union bpf_attr`.

use std::ffi::CString;
use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `attr` must be a prefix of `union bpf_attr` with every pointer in it valid for the call.
pub(super) unsafe fn bpf<A>(cmd: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes at most size_of::<A>() bytes behind `attr`, which is exclusively borrowed;
    // the caller guarantees the pointers inside.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, cmd, std::ptr::from_mut(attr), size_of::<A>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// The same for a command that returns a new descriptor.
unsafe fn bpf_fd<A>(cmd: libc::c_long, attr: &mut A) -> io::Result<OwnedFd> {
    // SAFETY: guaranteed by the caller.
    let fd = unsafe { bpf(cmd, attr) }?;
    // SAFETY: a new descriptor without another owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[repr(C)]
struct PinAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The link pinned at `path`; `None` if there is none.
pub(super) fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PinAttr { pathname: name.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `name` outlives the call and ends with NUL.
    match unsafe { bpf_fd(BPF_OBJ_GET, &mut attr) } {
        Ok(fd) => Ok(Some(fd)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Pins the object at `path`, which must not exist yet.
pub(super) fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PinAttr { pathname: name.as_ptr() as u64, bpf_fd: object.as_fd().as_raw_fd() as u32, file_flags: 0 };
    // SAFETY: `name` outlives the call and ends with NUL.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// `enum bpf_attach_type`
pub(super) const CGROUP_INET4_CONNECT: u32 = 10;
pub(super) const CGROUP_INET6_CONNECT: u32 = 11;
pub(super) const CGROUP_UDP4_SENDMSG: u32 = 14;
pub(super) const CGROUP_UDP6_SENDMSG: u32 = 15;
pub(super) const CGROUP_UDP4_RECVMSG: u32 = 19;
pub(super) const CGROUP_UDP6_RECVMSG: u32 = 20;
pub(super) const CGROUP_INET4_GETPEERNAME: u32 = 29;
pub(super) const CGROUP_INET6_GETPEERNAME: u32 = 30;
pub(super) const XDP: u32 = 37;
pub(super) const TCX_INGRESS: u32 = 46;
pub(super) const TCX_EGRESS: u32 = 47;

/// `XDP_FLAGS_DRV_MODE` (`include/uapi/linux/if_link.h`): by the driver, or not at all.
pub(super) const XDP_NATIVE: u32 = 1 << 2;

/// Attaches a program to an interface (TCX, 6.6: after existing ones) or to a cgroup (5.7: beside existing ones). The
/// attachment lasts as long as the link: pin it.
pub(super) fn link_create(prog: impl AsFd, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    link_create_in(prog, target, attach_type, 0)
}

/// The same with flags. XDP (5.9): an existing program stays, and the call fails.
pub(super) fn link_create_in(prog: impl AsFd, target: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    /// `target`: ifindex, or descriptor of the cgroup. Relative descriptor and revision stay 0: at the end,
    /// unconditionally.
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        target: u32,
        attach_type: u32,
        flags: u32,
        relative: u32,
        align: u32,
        expected_revision: u64,
    }
    let mut attr = Attr {
        prog_fd: prog.as_fd().as_raw_fd() as u32,
        target,
        attach_type,
        flags,
        relative: 0,
        align: 0,
        expected_revision: 0,
    };
    // SAFETY: no pointers in it.
    unsafe { bpf_fd(BPF_LINK_CREATE, &mut attr) }
}

/// Asks for the TCX programs at an interface (6.6), without reading them; EINVAL: the kernel has no TCX.
pub(super) fn tcx_query(ifindex: u32) -> io::Result<()> {
    #[repr(C)]
    #[derive(Default)]
    struct Attr {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        align: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let mut attr = Attr { target_ifindex: ifindex, attach_type: TCX_INGRESS, ..Attr::default() };
    // SAFETY: no pointers in it: without room for ids the kernel writes none.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }.map(drop)
}

/// The used fields of `struct bpf_link_info`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct LinkInfo {
    kind: u32,
    id: u32,
    pub prog_id: u32,
    align: u32,
    /// TCX: ifindex (0 after the interface is gone) and attach type. XDP: ifindex, likewise. Cgroup: its id (0 after
    /// it is gone), attach type.
    target: [u32; 3],
    rest: [u32; 9],
}

/// `enum bpf_link_type`
const LINK_CGROUP: u32 = 3;
const LINK_XDP: u32 = 6;
const LINK_TCX: u32 = 11;

impl LinkInfo {
    pub(super) fn tcx_ifindex(&self) -> Option<u32> {
        (self.kind == LINK_TCX).then_some(self.target[0])
    }

    pub(super) fn xdp_ifindex(&self) -> Option<u32> {
        (self.kind == LINK_XDP).then_some(self.target[0])
    }

    pub(super) fn cgroup_id(&self) -> Option<u64> {
        (self.kind == LINK_CGROUP).then_some(u64::from(self.target[0]) | u64::from(self.target[1]) << 32)
    }
}

pub(super) fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    #[repr(C)]
    struct Attr {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut info = LinkInfo::default();
    let mut attr = Attr {
        fd: link.as_fd().as_raw_fd() as u32,
        len: size_of_val(&info) as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: `info` has `len` bytes, and any are a LinkInfo.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// Replaces the program of a link, atomically.
pub(super) fn link_update(link: impl AsFd, prog: impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attr = Attr {
        link_fd: link.as_fd().as_raw_fd() as u32,
        new_prog_fd: prog.as_fd().as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    // SAFETY: no pointers in it.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }.map(drop)
}

/// Detaches the link's program immediately (5.9). The link stays, without effect.
pub(super) fn link_detach(link: impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
    }
    let mut attr = Attr { link_fd: link.as_fd().as_raw_fd() as u32 };
    // SAFETY: no pointers in it.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

/// Number of attempts to load a program if the kernel returns EAGAIN, as in libbpf: the verifier stops on a pending
/// signal, even an ignored one (`kernel/bpf/verifier.c, do_check()`).
const TRIES: u32 = 5;

/// Repeats an interrupted call, [`TRIES`] times at most.
///
/// # Errors
/// The last one.
pub(super) fn again_while<T, E>(
    is_interrupted: impl Fn(&E) -> bool,
    mut once: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut left = TRIES;
    loop {
        left -= 1;
        match once() {
            Err(e) if left > 0 && is_interrupted(&e) => {}
            other => return other,
        }
    }
}

/// `BPF_PROG_TYPE_SCHED_CLS`
const SCHED_CLS: u32 = 3;

/// Loads a minimal classifier for a probe; `code` is bytecode of eight bytes each.
pub(super) fn load_classifier(code: &[u64]) -> io::Result<OwnedFd> {
    /// The first fields of the load command.
    #[repr(C)]
    struct Attr {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
    }
    const _: () = assert!(offset_of!(Attr, log_buf) == 32);
    let mut attr = Attr {
        prog_type: SCHED_CLS,
        insn_cnt: code.len() as u32,
        insns: code.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    // SAFETY: `insn_cnt` instructions and a licence string are behind the pointers and are only read.
    again_while(|e: &io::Error| e.raw_os_error() == Some(libc::EAGAIN), || unsafe { bpf_fd(BPF_PROG_LOAD, &mut attr) })
}

/// Runs a classifier once over an empty Ethernet frame and returns its verdict.
pub(super) fn run_once(prog: impl AsFd) -> io::Result<u32> {
    #[repr(C)]
    struct Attr {
        prog_fd: u32,
        retval: u32,
        data_size_in: u32,
        data_size_out: u32,
        data_in: u64,
        data_out: u64,
        repeat: u32,
        duration: u32,
        ctx_size_in: u32,
        ctx_size_out: u32,
        ctx_in: u64,
        ctx_out: u64,
    }
    let frame = [0_u8; 64];
    let mut attr = Attr {
        prog_fd: prog.as_fd().as_raw_fd() as u32,
        retval: 0,
        data_size_in: size_of_val(&frame) as u32,
        data_size_out: 0,
        data_in: frame.as_ptr() as u64,
        data_out: 0,
        repeat: 1,
        duration: 0,
        ctx_size_in: 0,
        ctx_size_out: 0,
        ctx_in: 0,
        ctx_out: 0,
    };
    // SAFETY: `frame` is only read; nothing is written but `attr`.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr) }?;
    Ok(attr.retval)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_was_interrupted_is_asked_again_and_one_that_refuses_is_not() {
        let ask = |interruptions: u32| {
            let mut asked = 0;
            let answer = again_while(
                |e: &&str| *e == "interrupted",
                || {
                    asked += 1;
                    if asked > interruptions { Err("refused") } else { Err::<(), _>("interrupted") }
                },
            );
            (answer.err(), asked)
        };
        assert_eq!((Some("refused"), 1), ask(0));
        assert_eq!((Some("refused"), 3), ask(2));
        assert_eq!((Some("interrupted"), TRIES), ask(u32::MAX));
    }
}
