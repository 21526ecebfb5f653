//! Memory-mapped arrays.

use netpath_common::layout::Plain;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// Elements of a `BPF_F_MMAPABLE` array (5.5), each aligned to 8 bytes. Programs and other commands write them too:
/// all accesses are atomic.
pub(crate) struct Mapped<V> {
    base: NonNull<u8>,
    len: usize,
    values: PhantomData<V>,
}

impl<V: Plain> Mapped<V> {
    const PLACE: usize = size_of::<V>().next_multiple_of(8);

    pub(super) fn new(map: BorrowedFd<'_>, first: u32, elements: u32) -> io::Result<Self> {
        let len = (elements as usize * Self::PLACE).next_multiple_of(4096);
        let offset = libc::off_t::try_from(first as usize * Self::PLACE).map_err(io::Error::other)?;
        // SAFETY: a new mapping at an address chosen by the kernel; it fails for a map that is smaller or not
        // mmapable.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { base, len, values: PhantomData })
    }

    fn words(&self) -> &[AtomicU64] {
        // SAFETY: `len` bytes, a multiple of 8, from a page boundary on, mapped for as long as `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.len / 8) }
    }

    fn bytes(&self) -> &[AtomicU8] {
        // SAFETY: `len` bytes, mapped for as long as `self` is borrowed; bytes need no alignment.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().cast(), self.len) }
    }

    fn place(&self, index: usize) -> &[AtomicU64] {
        &self.words()[index * Self::PLACE / 8..(index + 1) * Self::PLACE / 8]
    }

    /// Whether the `count` elements from `first` on are all zero.
    pub(crate) fn is_zero(&self, first: usize, count: usize) -> bool {
        let words = &self.words()[first * Self::PLACE / 8..(first + count) * Self::PLACE / 8];
        words.iter().fold(0, |all, word| all | word.load(Ordering::Relaxed)) == 0
    }

    pub(crate) fn read(&self, index: usize) -> V {
        let mut value = V::new_zeroed();
        for (bytes, word) in value.as_mut_bytes().chunks_mut(8).zip(self.place(index)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_ne_bytes()[..bytes.len()]);
        }
        value
    }

    /// Only for elements that no program reaches yet, or of 8 bytes at most, which programs see either old or new.
    /// Released: a program that sees a later write sees this one too.
    pub(crate) fn write(&self, index: usize, value: &V) {
        for (bytes, word) in value.as_bytes().chunks(8).zip(self.place(index)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            word.store(u64::from_ne_bytes(whole), Ordering::Release);
        }
    }

    /// A byte that programs write too.
    pub(crate) fn byte(&self, index: usize, at: usize) -> &AtomicU8 {
        assert!(at < size_of::<V>());
        &self.bytes()[index * Self::PLACE + at]
    }
}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, and no reference into it outlives `self`.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
