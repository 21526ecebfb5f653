//! Copies flows from the maps of another layout, so that connections survive an upgrade.

use super::expire::now;
use super::maps::{self, CHUNK, Flows, PinnedMap};
use super::pins::Pins;
use crate::model::error::Result;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::flow;
use netpath_common::layout::{NatPort, Next, PROTO_TCP, SIDE_EGRESS, SIDE_UPLINK};
use netpath_common::reason::Reason;
use std::collections::BTreeSet;
use std::mem::offset_of;
use zerocopy::{FromBytes, IntoBytes};

/// Layouts with compatible flows and sockets. 1: the traffic counter was zero. 2: no flow could be redirected by XDP.
/// 3: no flow had its next hop. 4: `last_seen` was in seconds. 5: an uplink could translate on both sides. 6: a connection
/// counted as established from its first answer on, and acknowledgements were unknown.
const KNOWN: [u32; 6] = [1, 2, 3, 4, 5, 6];
/// The last layout with `last_seen` in seconds.
const IN_SECONDS: u32 = 4;

/// Copies elements that `to` does not have. Returns their number.
///
/// # Errors
/// A map cannot be read or written.
pub(super) fn flows(version: u32, from: &Pins, to: &Pins) -> Result<usize> {
    if !KNOWN.contains(&version) {
        tracing::warn!(layout = version, "flows of this layout cannot be migrated and are lost");
        return Ok(0);
    }
    let mut ports = BTreeSet::new();
    let mut copied = halves::<Ipv4>(version, from, to, &mut ports)?;
    copied += halves::<Ipv6>(version, from, to, &mut ports)?;
    mark(to, &ports)?;
    copied += sockets(from, to)?;
    if copied > 0 {
        tracing::info!(layout = version, copied, "flows migrated");
    }
    Ok(copied)
}

/// Both halves of all flows of a known layout, as those of this one.
///
/// # Errors
/// The map cannot be read.
pub(super) fn dump<F: Flows>(version: u32, from: &Pins) -> Result<Vec<(F::Key, F::Flow)>> {
    let old = KNOWN.contains(&version).then(|| PinnedMap::of_another_layout(from, &F::EARLIER)).flatten();
    let Some(old) = old else { return Ok(Vec::new()) };
    let mut all: Vec<_> =
        old.dump(CHUNK)?.iter().filter_map(|(key, half)| Some((*key, of_earlier::<F>(half)?))).collect();
    for (key, half) in &mut all {
        let proto = F::protocol_of(key);
        let next = F::next_mut(half);
        if version <= IN_SECONDS {
            next.last_seen = flow::ticks(next.last_seen);
        }
        if proto == PROTO_TCP && next.state & flow::REPLIED != 0 {
            next.state |= flow::ESTABLISHED;
        }
    }
    Ok(all)
}

/// The flow with an unknown acknowledgement and no serial number. `None` does not happen: the sizes are constants.
fn of_earlier<F: Flows>(earlier: &F::Earlier) -> Option<F::Flow> {
    let added = offset_of!(Next, match_dmac) - offset_of!(Next, ack);
    let at = size_of::<F::Flow>() - size_of::<Next>() + offset_of!(Next, ack);
    let (before, after) = earlier.as_bytes().split_at_checked(at)?;
    F::Flow::read_from_bytes(&[before, &vec![0; added], after].concat()).ok()
}

fn halves<F: Flows>(version: u32, from: &Pins, to: &Pins, ports: &mut BTreeSet<u32>) -> Result<usize> {
    let (now, new) = (now()?, PinnedMap::open(to, &F::FLOWS)?);
    let mut copied = 0;
    for (key, half) in dump::<F>(version, from)? {
        let next = F::next(&half);
        // At an uplink's egress only flows of the host itself are translated; containers begin theirs again.
        let is_at_egress = F::side_of(&key) == SIDE_EGRESS || next.reverse_side == SIDE_EGRESS;
        let is_gone = is_at_egress && next.origin != Reason::FlowHost as u8;
        if is_gone || flow::has_expired(F::protocol_of(&key), next, now) {
            continue;
        }
        if F::side_of(&key) == SIDE_UPLINK {
            ports.insert(u32::from(F::tuple(&key).dport.value()));
        }
        copied += usize::from(new.add(&key, &half)?);
    }
    Ok(copied)
}

/// Marks that a program has set meanwhile stay too: a superfluous mark costs a look-up.
fn mark(to: &Pins, ports: &BTreeSet<u32>) -> Result<()> {
    let ports: Vec<u32> = ports.iter().copied().collect();
    let marks = vec![NatPort { tcp: 1, udp: 1, icmp: 1, icmp6: 1 }; ports.len()];
    PinnedMap::open(to, &maps::NAT_PORT)?.update(&ports, &marks)
}

fn sockets(from: &Pins, to: &Pins) -> Result<usize> {
    let Some(old) = PinnedMap::of_another_layout(from, &maps::SOCK) else { return Ok(0) };
    let new = PinnedMap::open(to, &maps::SOCK)?;
    let all = old.dump(CHUNK)?;
    all.iter().try_fold(0, |copied, (socket, origin)| Ok(copied + usize::from(new.add(socket, origin)?)))
}
