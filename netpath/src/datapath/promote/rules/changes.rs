//! A poll for changes that the kernel sends no notification of.

use super::{ipset, legacy};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;

/// Changes with legacy tables of iptables and with sets of `ipset` in the calling thread's network namespace: not with
/// counters, and not with elements of sets that have more than 1,000, which forbid promotion where a rule reads them.
///
/// # Errors
/// The kernel's.
pub fn digest() -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    legacy::bytes()?.hash(&mut hasher);
    ipset::hash(&mut hasher)?;
    Ok(hasher.finish())
}
