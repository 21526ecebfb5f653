//! The calls of bpf(2) behind a [`PinnedMap`]: aya has neither batches nor elements that are taken.

use super::{PerCpu, PinnedMap};
use crate::datapath::ebpf::sys::bpf;
use netpath_common::layout::Plain;
use std::io;
use std::os::fd::AsRawFd;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;
/// The kernel's own errno for a call that a map has not: not in libc, since no ordinary system call gives it.
pub const ENOTSUPP: i32 = 524;

/// What is done to one element.
pub enum Element {
    LookUp,
    Take,
    Add,
    Change,
    Delete,
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    align: u32,
    key: u64,
    value: u64,
    flags: u64,
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

/// Elements that were read.
pub struct Batch {
    pub count: usize,
    /// Where to go on; `None`: these were the last.
    pub next: Option<u32>,
    /// The buffers were too small for what comes next.
    pub is_cut: bool,
}

impl<K: Plain, V: Plain> PinnedMap<K, V> {
    /// Reads into `value` or writes what is in it. False: there is no such element, or there is one already.
    pub(super) fn element(&self, how: Element, key: &K, value: Option<&mut V>) -> io::Result<bool> {
        let (command, flags, no) = match how {
            Element::LookUp => (BPF_MAP_LOOKUP_ELEM, 0, io::ErrorKind::NotFound),
            Element::Take => (BPF_MAP_LOOKUP_AND_DELETE_ELEM, 0, io::ErrorKind::NotFound),
            Element::Add => (BPF_MAP_UPDATE_ELEM, BPF_NOEXIST, io::ErrorKind::AlreadyExists),
            Element::Change => (BPF_MAP_UPDATE_ELEM, BPF_EXIST, io::ErrorKind::NotFound),
            Element::Delete => (BPF_MAP_DELETE_ELEM, 0, io::ErrorKind::NotFound),
        };
        let mut attr = ElementAttr {
            map_fd: self.fd().as_raw_fd() as u32,
            align: 0,
            key: std::ptr::from_ref(key) as u64,
            value: value.map_or(0, |value| std::ptr::from_mut(value) as u64),
            flags,
        };
        // SAFETY: key and value are as large as the map's (`PinnedMap::open`), and any bytes that come are a value.
        match unsafe { bpf(command, &mut attr) } {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == no => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Fills the begin of both buffers. `from`: where an earlier call has ended.
    pub(super) fn look_up_batch(&self, from: Option<u32>, keys: &mut [K], values: &mut [V]) -> io::Result<Batch> {
        assert_eq!(keys.len(), values.len());
        let cursor = from.unwrap_or(0);
        let mut next = 0_u32;
        let mut attr = BatchAttr {
            in_batch: if from.is_some() { std::ptr::from_ref(&cursor) as u64 } else { 0 },
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: keys.len() as u32,
            map_fd: self.fd().as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: both buffers hold `count` elements of the map's sizes, and any bytes that come are elements; the cursor of a
        // hash map or an array is a u32 (`kernel/bpf/hashtab.c, __htab_map_lookup_and_delete_batch()`,
        // `kernel/bpf/syscall.c, generic_map_lookup_batch()`).
        let read = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
        let (is_last, is_cut) = match read {
            Ok(_) => (false, false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => (true, false),
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => (false, true),
            Err(e) => return Err(e),
        };
        Ok(Batch { count: attr.count as usize, next: (!is_last).then_some(next), is_cut })
    }

    /// Gives how many were written, at least one.
    pub(super) fn update_batch(&self, keys: &[K], values: &[V]) -> io::Result<usize> {
        assert_eq!(keys.len(), values.len());
        let mut attr = BatchAttr {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: keys.len() as u32,
            map_fd: self.fd().as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: `count` keys and values of the map's sizes lie behind the pointers and are only read.
        unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
        if attr.count == 0 {
            return Err(io::Error::other("the kernel wrote no element"));
        }
        Ok(attr.count as usize)
    }
}

impl<V> PinnedMap<u32, PerCpu<V>> {
    pub(super) fn zero_batches(&self, indexes: &[u32]) -> io::Result<()> {
        // At most as much at a time as a large machine has in one element of each.
        const AT_ONCE: usize = 256;
        let cpus = aya::util::nr_cpus().map_err(|(_, e)| e)?;
        let zeroes = vec![0_u64; size_of::<V>().div_ceil(8) * cpus * AT_ONCE.min(indexes.len())];
        for some in indexes.chunks(AT_ONCE) {
            let mut attr = BatchAttr {
                keys: some.as_ptr() as u64,
                values: zeroes.as_ptr() as u64,
                count: some.len() as u32,
                map_fd: self.fd().as_raw_fd() as u32,
                ..BatchAttr::default()
            };
            // SAFETY: `count` indexes lie behind `keys`, and behind `values` as many elements of all possible processors, each
            // rounded up to 8 bytes (`kernel/bpf/arraymap.c, bpf_percpu_array_update()`); both are only read.
            unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
        }
        Ok(())
    }
}
