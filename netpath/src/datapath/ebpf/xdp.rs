//! The XDP program ahead of the uplinks' classifiers. It is optional: where it cannot be attached, containers start
//! without it, and a mark among the pins records why.
//!
//! Attached by a link and in native mode only: the kernel then refuses to replace a foreign program, and generic XDP
//! would cost more than the classifiers.

use super::pins::Pins;
use super::{loader, monitor_lock, sys};
use crate::model::Xdp;
use crate::model::error::{Context, Result};
use netpath_common::layout::program::XDP_IN;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// Mark: `refused-<ifindex>-<errno>`.
const REFUSED: &str = "refused-";

/// Whether a link's pin is of this program.
pub(super) fn is_pin(name: &str) -> bool {
    index_of(name).is_some()
}

fn index_of(pin: &str) -> Option<u32> {
    pin.strip_prefix(XDP_IN)?.strip_prefix('-')?.parse().ok()
}

fn attached_at(pins: &Pins) -> BTreeSet<u32> {
    pins.names("link").iter().filter_map(|n| index_of(n)).collect()
}

/// Attaches the program to exactly these interfaces, where possible. Returns the number of changes.
///
/// # Errors
/// A pin cannot be read, made or removed.
pub(super) fn reconcile(pins: &Pins, wanted: &BTreeMap<u32, Xdp>) -> Result<usize> {
    let mut changed = 0;
    for ifindex in attached_at(pins).into_iter().filter(|i| !wanted.contains_key(i)) {
        remove(pins, ifindex)?;
        changed += 1;
    }
    let mut refused = BTreeSet::new();
    for (&ifindex, &asked) in wanted {
        match attach(pins, ifindex)? {
            Ok(more) => changed += more,
            Err(e) => {
                let why = Refused { ifindex, errno: e.raw_os_error().unwrap_or(0) };
                if asked == Xdp::On {
                    tracing::warn!("cannot attach {XDP_IN} to interface {ifindex}: {}", why.why())
                } else {
                    tracing::info!("cannot attach {XDP_IN} to interface {ifindex}: {}", why.why())
                }
                refused.insert(format!("{}-{}", why.ifindex, why.errno));
            }
        }
    }
    let marked: BTreeSet<String> = pins.marks(REFUSED).into_iter().collect();
    marked.difference(&refused).try_for_each(|old| pins.unmark(&format!("{REFUSED}{old}")))?;
    refused.difference(&marked).try_for_each(|new| pins.mark(&format!("{REFUSED}{new}")))?;
    Ok(changed)
}

/// The inner error is the kernel's answer to attaching.
fn attach(pins: &Pins, ifindex: u32) -> Result<io::Result<usize>> {
    let path = pins.link(&format!("{XDP_IN}-{ifindex}"));
    let (prog, id) = loader::program(pins, XDP_IN)?;
    if let Some(link) = sys::open_pin(&path).context(|| format!("cannot open {}", path.display()))? {
        let info = sys::link_info(&link).context(|| format!("cannot read {}", path.display()))?;
        if info.xdp_ifindex() == Some(ifindex) {
            return monitor_lock::update(pins, XDP_IN, &link, info.prog_id, &prog, id).map(Ok);
        }
        // The interface is gone, and another one has its index.
        pins.unpin(&path)?;
    }
    match sys::link_create_in(&prog, ifindex, sys::XDP, sys::XDP_NATIVE) {
        Ok(link) => {
            sys::pin(&link, &path).context(|| format!("cannot pin {}", path.display()))?;
            Ok(Ok(1))
        }
        // The interface was removed since the host was read.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(Ok(0)),
        Err(e) => Ok(Err(e)),
    }
}

/// Detaches the program everywhere, immediately: a link that only loses its pin blocks the next one until the kernel
/// has freed it (`attach.rs`).
///
/// # Errors
/// A pin cannot be read or removed.
pub(super) fn detach(pins: &Pins) -> Result<()> {
    attached_at(pins).into_iter().try_for_each(|ifindex| remove(pins, ifindex))
}

fn remove(pins: &Pins, ifindex: u32) -> Result<()> {
    let path = pins.link(&format!("{XDP_IN}-{ifindex}"));
    if let Some(link) = sys::open_pin(&path).context(|| format!("cannot open {}", path.display()))?
        && let Err(e) = sys::link_detach(&link)
    {
        tracing::debug!(error = %e, ifindex, "the link was not detached; it ends with its pin");
    }
    pins.unpin(&path)
}

/// The program is wanted at an interface, and the kernel has refused it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Refused {
    pub ifindex: u32,
    errno: i32,
}

impl Refused {
    /// The cause, for output.
    pub(super) fn why(&self) -> String {
        match self.errno {
            libc::EBUSY | libc::EEXIST => "another XDP program is there".into(),
            libc::EOPNOTSUPP => "its driver has no native XDP, or not with its settings of now".into(),
            errno => io::Error::from_raw_os_error(errno).to_string(),
        }
    }

    /// The remedy, for output.
    pub(super) fn next(&self) -> String {
        match self.errno {
            libc::EBUSY | libc::EEXIST => {
                "remove that program, or set netpath.xdp=off: the classifiers handle the packets".into()
            }
            _ => "dmesg may say more (queues, MTU, LRO); or set netpath.xdp=off: the classifiers handle the packets"
                .into(),
        }
    }
}

/// Interfaces with a refusal at the last reconcile.
pub(super) fn refused(pins: &Pins) -> Vec<Refused> {
    let read = |mark: &String| {
        let (ifindex, errno) = mark.split_once('-')?;
        Some(Refused { ifindex: ifindex.parse().ok()?, errno: errno.parse().ok()? })
    };
    let mut all: Vec<Refused> = pins.marks(REFUSED).iter().filter_map(read).collect();
    all.sort();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_known_by_name() {
        assert_eq!(Some(7), index_of("np_xdp_in-7"));
        for other in ["np_xdp_in", "np_xdp_in-", "np_xdp_in-x", "np_uplink_in-7"] {
            assert!(!is_pin(other), "{other}");
        }
    }
}
