//! Removes all elements of pinned hash maps and tries, and zeroes the elements of arrays.

use super::CHUNK;
use super::calls::{BPF_MAP_DELETE_ELEM, BPF_MAP_UPDATE_ELEM, BatchAttr, ElementAttr};
use super::mapped::Mapped;
use crate::datapath::ebpf::pins::Pins;
use crate::datapath::ebpf::sys::bpf;
use crate::model::error::{Context, Result};
use aya::maps::{MapData, MapInfo, MapType};
use netpath_common::layout::name;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// Programs write these before they read them; the control plane zeroes elements of `np_traffic` when it assigns them.
const LEFT: [&str; 3] = [name::TRAFFIC, name::SCRATCH4, name::SCRATCH6];

const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;
const BPF_MAP_LOOKUP_AND_DELETE_BATCH: libc::c_long = 25;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// # Errors
/// A map cannot be opened or written.
pub(crate) fn all(pins: &Pins) -> Result<()> {
    for name in pins.names("map").iter().filter(|n| !LEFT.contains(&n.as_str())) {
        let what = || format!("cannot empty {name}");
        let map = MapData::from_pin(pins.map(name)).context(what)?;
        let info = map.info().context(what)?;
        one(map.fd().as_fd(), &info).context(what)?;
    }
    Ok(())
}

fn one(map: BorrowedFd<'_>, info: &MapInfo) -> io::Result<()> {
    let (key, value) = (info.key_size() as usize, info.value_size() as usize);
    let (entries, words) = (info.max_entries(), value.div_ceil(8));
    match info.map_type().map_err(io::Error::other)? {
        MapType::Hash | MapType::LruHash => hash(map, key, value),
        MapType::LpmTrie => trie(map, key),
        MapType::Array if info.map_flags() & BPF_F_MMAPABLE != 0 => {
            let mapped = Mapped::<u64>::new(map, 0, entries * words as u32)?;
            let all = entries as usize * words;
            (0..all).filter(|word| mapped.read(*word) != 0).for_each(|word| mapped.write(word, &0));
            Ok(())
        }
        MapType::Array => zero(map, entries, words),
        MapType::PerCpuArray => zero(map, entries, words * aya::util::nr_cpus().map_err(|(_, e)| e)?),
        other => Err(io::Error::other(format!("of unexpected type {other:?}"))),
    }
}

/// `key` and `value`: sizes in bytes.
fn hash(map: BorrowedFd<'_>, key: usize, value: usize) -> io::Result<()> {
    let mut chunk = CHUNK;
    let mut cursor = None;
    loop {
        let (mut keys, mut values) = (vec![0_u8; chunk * key], vec![0_u8; chunk * value]);
        let (from, mut next) = (cursor.unwrap_or(0_u32), 0_u32);
        let mut attr = BatchAttr {
            in_batch: if cursor.is_some() { std::ptr::from_ref(&from) as u64 } else { 0 },
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: chunk as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: both buffers hold `count` elements of the map's sizes; the cursor of a hash map is a u32
        // (`kernel/bpf/hashtab.c, __htab_map_lookup_and_delete_batch()`).
        match unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_BATCH, &mut attr) } {
            Ok(_) => cursor = Some(next),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            // One bucket holds more than the buffers.
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && attr.count == 0 => chunk *= 2,
            Err(e) if e.raw_os_error() == Some(libc::ENOSPC) => cursor = Some(next),
            Err(e) => return Err(e),
        }
    }
}

fn trie(map: BorrowedFd<'_>, key: usize) -> io::Result<()> {
    let mut first = vec![0_u8; key];
    loop {
        let fd = map.as_raw_fd() as u32;
        let mut attr = ElementAttr { map_fd: fd, align: 0, key: 0, value: first.as_mut_ptr() as u64, flags: 0 };
        // SAFETY: the buffer has the size of a key; without a key the kernel gives the first one.
        match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) } {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => drop(other?),
        }
        let mut attr = ElementAttr { map_fd: fd, align: 0, key: first.as_ptr() as u64, value: 0, flags: 0 };
        // SAFETY: the buffer holds a key.
        unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) }?;
    }
}

/// `words`: of eight bytes, of one element on all processors.
fn zero(map: BorrowedFd<'_>, entries: u32, words: usize) -> io::Result<()> {
    let zeroes = vec![0_u64; words];
    for index in 0..entries {
        let mut attr = ElementAttr {
            map_fd: map.as_raw_fd() as u32,
            align: 0,
            key: std::ptr::from_ref(&index) as u64,
            value: zeroes.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: `index` is a key, and the buffer holds a value of every possible processor, each rounded up to eight
        // bytes (`kernel/bpf/syscall.c, bpf_map_value_size()`).
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }?;
    }
    Ok(())
}
