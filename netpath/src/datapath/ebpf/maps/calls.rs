//! The bpf(2) calls of a [`PinnedMap`] that aya lacks: batches, and look-up with deletion.

use super::{PerCpu, PinnedMap};
use crate::datapath::ebpf::sys::bpf;
use netpath_common::layout::Plain;
use std::io;
use std::os::fd::AsRawFd;

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
pub(super) const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
pub(super) const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;
/// The kernel's errno for an operation that a map does not support: not in libc, since ordinary system calls do not
/// return it.
pub(super) const ENOTSUPP: i32 = 524;

/// Operation on one element.
pub(super) enum Element {
    LookUp,
    Take,
    Add,
    Change,
    Delete,
}

#[repr(C)]
pub(super) struct ElementAttr {
    pub map_fd: u32,
    pub align: u32,
    pub key: u64,
    /// For BPF_MAP_GET_NEXT_KEY the next key.
    pub value: u64,
    pub flags: u64,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct BatchAttr {
    pub in_batch: u64,
    pub out_batch: u64,
    pub keys: u64,
    pub values: u64,
    pub count: u32,
    pub map_fd: u32,
    pub elem_flags: u64,
    pub flags: u64,
}

/// Result of a batch read.
pub(super) struct Batch {
    pub count: usize,
    /// Position of the next batch; `None`: this was the last.
    pub next: Option<u32>,
    /// The buffers were too small for the next bucket.
    pub is_cut: bool,
}

impl<K: Plain, V: Plain> PinnedMap<K, V> {
    /// Reads into `value` or writes from it. False: the element does not exist, or already exists.
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
        // SAFETY: key and value have the map's sizes (`PinnedMap::open`), and any bytes are a valid value.
        match unsafe { bpf(command, &mut attr) } {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == no => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Fills the start of both buffers. `from`: position of an earlier call.
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
        // SAFETY: both buffers hold `count` elements of the map's sizes, and any bytes are valid elements; the cursor
        // of a hash map or an array is a u32 (`kernel/bpf/hashtab.c, __htab_map_lookup_and_delete_batch()`,
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

    /// Gives the number of elements written, at least one.
    pub(super) fn update_batch(&self, keys: &[K], values: &[V]) -> io::Result<usize> {
        assert_eq!(keys.len(), values.len());
        let mut attr = BatchAttr {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: keys.len() as u32,
            map_fd: self.fd().as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: `count` keys and values of the map's sizes are behind the pointers and are only read.
        unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
        if attr.count == 0 {
            return Err(io::Error::other("the kernel wrote no element"));
        }
        Ok(attr.count as usize)
    }
}

impl<V> PinnedMap<u32, PerCpu<V>> {
    pub(super) fn zero_batches(&self, indexes: &[u32]) -> io::Result<()> {
        // Bounds the buffer: one element has a value per processor.
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
            // SAFETY: `count` indexes are behind `keys`, and behind `values` as many elements of all possible
            // processors, each rounded up to 8 bytes (`kernel/bpf/arraymap.c, bpf_percpu_array_update()`); both are
            // only read.
            unsafe { bpf(BPF_MAP_UPDATE_BATCH, &mut attr) }?;
        }
        Ok(())
    }
}
