//! Single elements of hash maps, and their elements by and by.

use super::{BatchAttr, bpf};
use aya::Pod;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_NOEXIST: u64 = 1;
const BPF_EXIST: u64 = 2;
/// The kernel's own errno for a call that a map has not: not in libc, since no ordinary system call gives it.
const ENOTSUPP: i32 = 524;

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    align: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl ElementAttr {
    fn new<K: Pod>(map: impl AsFd, key: &K) -> Self {
        Self {
            map_fd: map.as_fd().as_raw_fd() as u32,
            align: 0,
            key: std::ptr::from_ref(key) as u64,
            value: 0,
            flags: 0,
        }
    }
}

/// A part of a map, and where the next one begins; `None` = this was the last.
pub type Part<K, V> = (Vec<(K, V)>, Option<u32>);

/// Elements of a HASH or LRU_HASH map (5.6), some `chunk` of them from where an earlier part has ended. Elements that come
/// or go meanwhile may be missed or seen twice; those that are there all the time are seen.
pub fn part<K: Pod, V: Pod>(map: impl AsFd, from: Option<u32>, chunk: usize) -> io::Result<Part<K, V>> {
    let cursor = from.unwrap_or(0);
    let mut chunk = chunk;
    loop {
        let mut keys: Vec<MaybeUninit<K>> = Vec::with_capacity(chunk);
        let mut values: Vec<MaybeUninit<V>> = Vec::with_capacity(chunk);
        let mut next = 0_u32;
        let mut attr = BatchAttr {
            in_batch: if from.is_some() { std::ptr::from_ref(&cursor) as u64 } else { 0 },
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: chunk as u32,
            map_fd: map.as_fd().as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: both buffers hold `count` elements; a hash map's cursor is a u32 (`__htab_map_lookup_batch()`).
        let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
        let last = match result {
            Ok(_) => false,
            Err(e) if e.kind() == io::ErrorKind::NotFound => true,
            // One bucket holds more than the buffer.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && attr.count == 0 => {
                chunk *= 2;
                continue;
            }
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => false,
            Err(e) => return Err(e),
        };
        let count = (attr.count as usize).min(keys.capacity());
        // SAFETY: the kernel has written the first `count` elements of both buffers, and they are Pod.
        let element =
            |i| unsafe { (keys.as_ptr().add(i).read().assume_init(), values.as_ptr().add(i).read().assume_init()) };
        return Ok(((0..count).map(element).collect(), (!last).then_some(next)));
    }
}

/// Every element, as [`part`] gives them.
pub fn dump<K: Pod, V: Pod>(map: impl AsFd, chunk: usize) -> io::Result<Vec<(K, V)>> {
    let (mut all, mut next) = part(&map, None, chunk)?;
    while next.is_some() {
        let (more, after) = part(&map, next, chunk)?;
        all.extend(more);
        next = after;
    }
    Ok(all)
}

/// The value of a key. Not a use of it in the sense of an LRU_HASH (`kernel/bpf/hashtab.c, htab_lru_map_lookup_elem_sys()`).
pub fn get<K: Pod, V: Pod>(map: impl AsFd, key: &K) -> io::Result<Option<V>> {
    read(BPF_MAP_LOOKUP_ELEM, map, key)
}

/// Removes a key and gives its last value (5.14), so that nothing that was written to it in the meantime is lost unseen.
/// Where the kernel cannot, it is the value of a moment before.
pub fn take<K: Pod, V: Pod>(map: impl AsFd, key: &K) -> io::Result<Option<V>> {
    match read(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &map, key) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | ENOTSUPP)) => {
            let last = get(&map, key)?;
            Ok(if delete(&map, key)? { last } else { None })
        }
        other => other,
    }
}

fn read<K: Pod, V: Pod>(command: libc::c_long, map: impl AsFd, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let mut attr = ElementAttr::new(map, key);
    attr.value = value.as_mut_ptr() as u64;
    // SAFETY: key and value are as large as the map's, which the caller's types are checked against when maps are opened.
    match unsafe { bpf(command, &mut attr) } {
        // SAFETY: the kernel has written all of the value, and it is Pod.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Adds a key that is not there; false if it is.
pub fn add<K: Pod, V: Pod>(map: impl AsFd, key: &K, value: &V) -> io::Result<bool> {
    write(map, key, value, BPF_NOEXIST, io::ErrorKind::AlreadyExists)
}

/// Gives a key that is there another value; false if it is not.
pub fn change<K: Pod, V: Pod>(map: impl AsFd, key: &K, value: &V) -> io::Result<bool> {
    write(map, key, value, BPF_EXIST, io::ErrorKind::NotFound)
}

/// False where the kernel refuses it with `refused`.
fn write<K: Pod, V: Pod>(map: impl AsFd, key: &K, value: &V, flags: u64, refused: io::ErrorKind) -> io::Result<bool> {
    let mut attr = ElementAttr::new(map, key);
    (attr.value, attr.flags) = (std::ptr::from_ref(value) as u64, flags);
    // SAFETY: as in `read`; both are only read.
    match unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) } {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == refused => Ok(false),
        Err(e) => Err(e),
    }
}

/// Removes a key; false if it was not there.
pub fn delete<K: Pod>(map: impl AsFd, key: &K) -> io::Result<bool> {
    // SAFETY: as in `read`.
    match unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut ElementAttr::new(map, key)) } {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
