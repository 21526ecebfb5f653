//! The calls of bpf(2) that aya does not offer: batches, elements that are taken, arrays mapped into memory, and links that are made by ifindex,
//! asked what they are attached to, given another program, and live in their pins alone (aya's detach when they are
//! dropped and take interface names). Nothing else in this crate calls bpf(2) by hand.
//!
//! Source: `include/uapi/linux/bpf.h`, v6.12, `union bpf_attr`.

mod elements;

pub use elements::{Part, add, change, delete, dump, get, part, take};

use aya::Pod;
use std::ffi::CString;
use std::io;
use std::mem::{MaybeUninit, offset_of, size_of, size_of_val};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering, fence};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

/// `attr` must be a prefix of `union bpf_attr` with every pointer in it valid for the call.
unsafe fn bpf<A>(cmd: libc::c_long, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads and writes at most size_of::<A>() bytes behind `attr`, which is exclusively borrowed; the
    // pointers inside are the caller's promise.
    let ret = unsafe { libc::syscall(libc::SYS_bpf, cmd, std::ptr::from_mut(attr), size_of::<A>()) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// The bytes of a plain value.
pub fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: Pod values have no padding and no invalid bit pattern; the slice borrows `value`.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast(), size_of::<T>()) }
}

/// The object pinned at `path`; `None` if nothing is there.
pub fn open_pin(path: &Path) -> io::Result<Option<OwnedFd>> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr { pathname: name.as_ptr() as u64, bpf_fd: 0, file_flags: 0 };
    // SAFETY: `name` outlives the call and ends with NUL.
    match unsafe { bpf(BPF_OBJ_GET, &mut attr) } {
        // SAFETY: on success the call returns a new descriptor that nobody else owns.
        Ok(fd) => Ok(Some(unsafe { OwnedFd::from_raw_fd(fd as i32) })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Keeps the object alive under `path`, which must not exist yet.
pub fn pin(object: impl AsFd, path: &Path) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr { pathname: name.as_ptr() as u64, bpf_fd: object.as_fd().as_raw_fd() as u32, file_flags: 0 };
    // SAFETY: `name` outlives the call and ends with NUL.
    unsafe { bpf(BPF_OBJ_PIN, &mut attr) }.map(drop)
}

/// `enum bpf_attach_type`
pub const CGROUP_INET4_CONNECT: u32 = 10;
pub const CGROUP_INET6_CONNECT: u32 = 11;
pub const CGROUP_UDP4_SENDMSG: u32 = 14;
pub const CGROUP_UDP6_SENDMSG: u32 = 15;
pub const CGROUP_UDP4_RECVMSG: u32 = 19;
pub const CGROUP_UDP6_RECVMSG: u32 = 20;
pub const CGROUP_INET4_GETPEERNAME: u32 = 29;
pub const CGROUP_INET6_GETPEERNAME: u32 = 30;
pub const XDP: u32 = 37;
pub const TCX_INGRESS: u32 = 46;
pub const TCX_EGRESS: u32 = 47;

/// `XDP_FLAGS_DRV_MODE` (`include/uapi/linux/if_link.h`): by the driver, or not at all.
pub const XDP_NATIVE: u32 = 1 << 2;

/// Attaches a program to an interface (TCX, 6.6: behind those that are there) or to a cgroup (5.7: beside those that are
/// there). The attachment lasts as long as the link: pin it.
pub fn link_create(prog: impl AsFd, target: u32, attach_type: u32) -> io::Result<OwnedFd> {
    link_create_in(prog, target, attach_type, 0)
}

/// The same with flags. XDP (5.9): a program that is there already stays, and the call fails.
pub fn link_create_in(prog: impl AsFd, target: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    /// `target`: ifindex or descriptor of the cgroup. Relative descriptor and revision stay 0: at the end, whatever is there.
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
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `struct bpf_link_info` as far as it is needed here.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct LinkInfo {
    kind: u32,
    id: u32,
    pub prog_id: u32,
    align: u32,
    /// TCX: ifindex (0 once the interface is gone) and attach type. XDP: ifindex, likewise. Cgroup: its id (0 once it is gone), attach type.
    target: [u32; 3],
    rest: [u32; 9],
}

/// `enum bpf_link_type`
const LINK_CGROUP: u32 = 3;
const LINK_XDP: u32 = 6;
const LINK_TCX: u32 = 11;

impl LinkInfo {
    pub fn tcx_ifindex(&self) -> Option<u32> {
        (self.kind == LINK_TCX).then_some(self.target[0])
    }

    pub fn xdp_ifindex(&self) -> Option<u32> {
        (self.kind == LINK_XDP).then_some(self.target[0])
    }

    pub fn cgroup_id(&self) -> Option<u64> {
        (self.kind == LINK_CGROUP).then_some(u64::from(self.target[0]) | u64::from(self.target[1]) << 32)
    }
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

fn info<T>(fd: impl AsFd, into: &mut MaybeUninit<T>) -> io::Result<()> {
    // The kernel zeroes what it knows beyond its own version of the struct, not what it does not know.
    *into = MaybeUninit::zeroed();
    let mut attr =
        InfoAttr { fd: fd.as_fd().as_raw_fd() as u32, len: size_of::<T>() as u32, info: into.as_mut_ptr() as u64 };
    // SAFETY: `info` points at `len` writable bytes for the length of the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }.map(drop)
}

pub fn link_info(link: impl AsFd) -> io::Result<LinkInfo> {
    let mut out = MaybeUninit::<LinkInfo>::uninit();
    info(link, &mut out)?;
    // SAFETY: zeroed before the call, and every bit pattern is a LinkInfo.
    Ok(unsafe { out.assume_init() })
}

/// The id of a loaded program.
pub fn prog_id(prog: impl AsFd) -> io::Result<u32> {
    /// The first fields of `struct bpf_prog_info`.
    #[repr(C)]
    struct ProgInfo {
        kind: u32,
        id: u32,
    }
    let mut out = MaybeUninit::<ProgInfo>::uninit();
    info(prog, &mut out)?;
    // SAFETY: zeroed before the call, and every bit pattern is a ProgInfo.
    Ok(unsafe { out.assume_init() }.id)
}

/// Gives the link another program, at once and without a gap.
pub fn link_update(link: impl AsFd, prog: impl AsFd) -> io::Result<()> {
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

/// Takes the link's program away at once (5.9). The link stays, and does nothing any more.
pub fn link_detach(link: impl AsFd) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        link_fd: u32,
    }
    let mut attr = Attr { link_fd: link.as_fd().as_raw_fd() as u32 };
    // SAFETY: no pointers in it.
    unsafe { bpf(BPF_LINK_DETACH, &mut attr) }.map(drop)
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Writes all elements with one call (HASH and ARRAY 5.6, LPM_TRIE 5.13).
pub fn update<K: Pod, V: Pod>(map: impl AsFd, keys: &[K], values: &[V]) -> io::Result<()> {
    assert_eq!(keys.len(), values.len());
    let mut done = 0;
    while done < keys.len() {
        let mut attr = BatchAttr {
            keys: keys[done..].as_ptr() as u64,
            values: values[done..].as_ptr() as u64,
            count: (keys.len() - done) as u32,
            map_fd: map.as_fd().as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: `count` keys and values lie behind the pointers and are only read.
        unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
        if attr.count == 0 {
            return Err(io::Error::other("the kernel wrote no element"));
        }
        done += attr.count as usize;
    }
    Ok(())
}

/// Writes zeroes to these elements of a PERCPU_ARRAY (5.13), on every processor.
pub fn zero_percpu<V: Pod>(map: impl AsFd, indexes: &[u32]) -> io::Result<()> {
    // At most as much at a time as a large machine has in one element of each.
    const CHUNK: usize = 256;
    let cpus = aya::util::nr_cpus().map_err(|(_, e)| e)?;
    let zeroes = vec![0_u64; size_of::<V>().div_ceil(8) * cpus * CHUNK.min(indexes.len())];
    for chunk in indexes.chunks(CHUNK) {
        let mut attr = BatchAttr {
            keys: chunk.as_ptr() as u64,
            values: zeroes.as_ptr() as u64,
            count: chunk.len() as u32,
            map_fd: map.as_fd().as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: `count` indexes lie behind `keys`, and behind `values` as many elements of all possible processors, each
        // rounded up to 8 bytes (`kernel/bpf/arraymap.c, bpf_percpu_array_update()`); both are only read.
        unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
    }
    Ok(())
}

/// A `BPF_F_MMAPABLE` array (5.5) of values of a multiple of 8 bytes, or of 4 (each then takes 8).
pub struct Mapped {
    base: NonNull<u8>,
    len: usize,
}

impl Mapped {
    pub fn new(map: impl AsFd, elements: u32, value_size: usize) -> io::Result<Self> {
        Self::part(map, 0, elements, value_size)
    }

    /// Only the `elements` from `first` on, which are whole pages.
    pub fn part(map: impl AsFd, first: u32, elements: u32, value_size: usize) -> io::Result<Self> {
        let bytes = |n: u32| n as usize * value_size.next_multiple_of(8);
        let len = bytes(elements).next_multiple_of(4096);
        let offset = libc::off_t::try_from(bytes(first)).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address of the kernel's choice; it fails for a map that is smaller or not mmapable.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_fd().as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(base.cast::<u8>()).map(|base| Self { base, len }).ok_or_else(io::Error::last_os_error)
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `len` bytes, a multiple of 8, from a page on; they outlive the borrow.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.len / 8) }
    }

    /// Whether nothing is in the `count` elements, of 4 or 8 bytes, from `first` on.
    pub fn is_zero(&self, first: usize, count: usize) -> bool {
        self.words()[first..first + count].iter().fold(0, |all, word| all | word.load(Ordering::Relaxed)) == 0
    }

    /// The 4-byte element `index`.
    pub fn element(&self, index: usize) -> u32 {
        // The other half of its place is never written.
        let [a, b, c, d, ..] = self.words()[index].load(Ordering::Relaxed).to_ne_bytes();
        u32::from_ne_bytes([a, b, c, d])
    }

    /// Stores the 4-byte element `index` so that a program sees either the old or the new one, and everything that was
    /// written before it.
    pub fn publish(&self, index: usize, value: u32) {
        assert!(index * 8 < self.len);
        // SAFETY: within the mapping, and aligned to 8 since the base is aligned to a page.
        let slot = unsafe { AtomicU32::from_ptr(self.base.as_ptr().add(index * 8).cast()) };
        slot.store(value, Ordering::Release);
    }

    pub fn read<T: Pod>(&self, index: usize) -> T {
        assert!((index + 1) * size_of::<T>() <= self.len && size_of::<T>().is_multiple_of(8));
        // SAFETY: within the mapping, aligned to 8 at least; any bytes are a T; nobody writes meanwhile.
        unsafe { self.base.as_ptr().cast::<T>().add(index).read_volatile() }
    }

    /// A byte that programs write too.
    pub fn byte(&self, element: usize, size: usize, at: usize) -> &AtomicU8 {
        let offset = element * size.next_multiple_of(8) + at;
        assert!(at < size && offset < self.len);
        // SAFETY: within the mapping, which outlives the borrow; everybody writes it as a byte.
        unsafe { AtomicU8::from_ptr(self.base.as_ptr().add(offset)) }
    }

    /// For an element that no program can reach yet.
    pub fn write<T: Pod>(&self, index: usize, value: &T) {
        assert!((index + 1) * size_of::<T>() <= self.len && size_of::<T>().is_multiple_of(8));
        // SAFETY: as in `read`; programs do not look at it before `publish`.
        unsafe { self.base.as_ptr().cast::<T>().add(index).write_volatile(*value) };
        fence(Ordering::Release);
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// How often a program is given to the kernel that says EAGAIN, as libbpf does: its verifier stops where a signal is pending, be
/// it one that this process ignores (`kernel/bpf/verifier.c, do_check()`).
const TRIES: u32 = 5;

/// Asks [`TRIES`] times at most.
///
/// # Errors
/// The last one.
pub fn again_while<T, E>(is_interrupted: impl Fn(&E) -> bool, mut once: impl FnMut() -> Result<T, E>) -> Result<T, E> {
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

/// Loads a tiny classifier for a probe; `code` is bytecode of eight bytes each.
pub fn load_classifier(code: &[u64]) -> io::Result<OwnedFd> {
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
    // SAFETY: `insn_cnt` instructions and a licence string lie behind the pointers and are only read.
    let fd = again_while(
        |e: &io::Error| e.raw_os_error() == Some(libc::EAGAIN),
        || unsafe { bpf(BPF_PROG_LOAD, &mut attr) },
    )?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Runs a classifier once over an empty Ethernet frame and returns its verdict.
pub fn run_once(prog: impl AsFd) -> io::Result<u32> {
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
