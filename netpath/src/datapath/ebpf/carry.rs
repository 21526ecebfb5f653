//! Flows of another layout's maps, brought into this one's, so that connections outlive an upgrade.

use super::pins::Pins;
use super::sweep::{Seen, now};
use super::{control, sys};
use crate::model::error::{Context, Result};
use aya::Pod;
use aya::maps::MapInfo;
use netpath_common::family::{Family, Ipv4, Ipv6};
use netpath_common::flow;
use netpath_common::layout::{NatPort, SIDE_UPLINK, SockKey, SockOrigin, name};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

/// Layouts whose flows and sockets mean what they mean here. 1: what is the traffic counter now was zero. 2: no flow
/// could be redirected by XDP. 3: none knew its next hop. 4: flows were stamped with seconds.
const KNOWN: [u32; 4] = [1, 2, 3, 4];
/// The last layout of which `last_seen` is in seconds.
const IN_SECONDS: u32 = 4;

const CHUNK: usize = 4_096;

/// Copies what `to` does not have yet. Returns the number of elements.
///
/// # Errors
/// A map cannot be read or written.
pub fn flows(version: u32, from: &Pins, to: &Pins) -> Result<usize> {
    if !KNOWN.contains(&version) {
        tracing::warn!(layout = version, "the flows of this layout cannot be carried over, they are lost");
        return Ok(0);
    }
    let mut ports = BTreeSet::new();
    let in_seconds = version <= IN_SECONDS;
    let mut copied = halves::<Ipv4>(from, to, name::FLOW4, in_seconds, &mut ports)?;
    copied += halves::<Ipv6>(from, to, name::FLOW6, in_seconds, &mut ports)?;
    mark(to, &ports)?;
    if let Some(old) = same::<SockKey, SockOrigin>(from, name::SOCK)? {
        copied += copy(&old, to, name::SOCK, |_: &SockKey, origin: SockOrigin| Some(origin))?;
    }
    if copied > 0 {
        tracing::info!(layout = version, copied, "flows are carried over");
    }
    Ok(copied)
}

fn halves<F: Family>(from: &Pins, to: &Pins, name: &str, in_seconds: bool, ports: &mut BTreeSet<u32>) -> Result<usize>
where
    F::Key: Seen,
    F::Flow: Pod,
{
    let Some(old) = same::<F::Key, F::Flow>(from, name)? else { return Ok(0) };
    let now = now()?;
    copy(&old, to, name, |key: &F::Key, mut half: F::Flow| {
        let next = F::next_mut(&mut half);
        if in_seconds {
            next.last_seen = flow::ticks(next.last_seen);
        }
        let lives = !flow::has_expired(key.proto(), next, now);
        if lives && key.side() == SIDE_UPLINK {
            ports.insert(u32::from(key.port()));
        }
        lives.then_some(half)
    })
}

/// Both kinds of marks that a program may have made in the meantime stand too: a mark too many costs a look-up.
fn mark(to: &Pins, ports: &BTreeSet<u32>) -> Result<()> {
    let ports: Vec<u32> = ports.iter().copied().collect();
    let marks = vec![NatPort { tcp: 1, udp: 1, icmp: 1, icmp6: 1 }; ports.len()];
    sys::update(control::open(to, name::NAT_PORT)?, &ports, &marks)
        .context(|| format!("cannot write {}", name::NAT_PORT))
}

fn copy<K: Pod, V: Pod>(
    old: &OwnedFd,
    to: &Pins,
    name: &str,
    mut kept: impl FnMut(&K, V) -> Option<V>,
) -> Result<usize> {
    let new = control::open(to, name)?;
    let mut copied = 0;
    for (key, value) in sys::dump::<K, V>(old, CHUNK).context(|| format!("cannot read {name}"))? {
        if let Some(value) = kept(&key, value)
            && sys::add(&new, &key, &value).context(|| format!("cannot write {name}"))?
        {
            copied += 1;
        }
    }
    Ok(copied)
}

/// A map of the old tree, if it is there and of these types.
fn same<K: Pod, V: Pod>(from: &Pins, name: &str) -> Result<Option<OwnedFd>> {
    let path = from.map(name);
    let fits =
        |info: MapInfo| info.key_size() as usize == size_of::<K>() && info.value_size() as usize == size_of::<V>();
    if !path.exists() || !MapInfo::from_pin(&path).is_ok_and(fits) {
        return Ok(None);
    }
    sys::open_pin(&path).context(|| format!("cannot open {}", path.display()))
}
