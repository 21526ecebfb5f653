//! Garbage collection: expired flows, port marks without a flow, pins of dead namespaces.
//!
//! Programs keep running, and treat an expired flow as absent on their own: this only frees memory.

use super::flow_pair::reverse_of;
use super::maps::{self, CHUNK, Flows, PinnedMap};
use super::pins::Pins;
use super::sys;
use crate::datapath::{Effort, Expired, Progress};
use crate::model::error::{Context, Error, Result};
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::flow;
use netpath_common::layout::{PROTO_ICMP, PROTO_ICMPV6, PROTO_TCP, PROTO_UDP, SIDE_UPLINK, program};
use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};
use std::collections::HashSet;
use std::fs::File;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// [`CHUNK`] for short runs: two such calls take less than a millisecond.
const SMALL_CHUNK: usize = 512;

/// Removes expired entries from the maps of one host.
///
/// # Errors
/// They cannot be opened, read or written.
pub(super) fn maps(pins: &Pins, effort: Effort<'_>) -> Result<Expired> {
    let mut all = Progress::default();
    let (chunk, until, progress) = match effort {
        Effort::All => (CHUNK, None, &mut all),
        Effort::Until { until, progress } => (SMALL_CHUNK, Some(until), progress),
    };
    let mut expired = Expired::default();
    // IPv4 and IPv6 in turn, each from its last position.
    if !progress.v6 {
        let (removed, next) = flows::<Ipv4>(pins, progress.next, chunk, until)?;
        expired.flows += removed;
        progress.next = next;
        progress.v6 = next.is_none();
    }
    if progress.v6 {
        let (removed, next) = flows::<Ipv6>(pins, progress.next, chunk, until)?;
        expired.flows += removed;
        progress.next = next;
        progress.v6 = next.is_some();
    }
    if until.is_none() {
        expired.flows += super::invalidate::strays(pins)?;
        expired.marks = marks(pins)?;
    }
    Ok(expired)
}

/// Ticks of CLOCK_MONOTONIC, as in the programs.
pub(crate) fn now() -> Result<u32> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context(|| "cannot read the clock".to_owned())?;
    Ok(((now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64) >> flow::TICK_BITS) as u32)
}

/// Removes expired flows from position `from` on, to the end or until the deadline; then gives the next position.
fn flows<F: Flows>(
    pins: &Pins,
    from: Option<u32>,
    chunk: usize,
    until: Option<Instant>,
) -> Result<(usize, Option<u32>)> {
    let map = PinnedMap::open(pins, &F::FLOWS)?;
    let (mut removed, mut next) = (0, from);
    loop {
        let (halves, after) = map.part(next, chunk)?;
        let now = now()?;
        for (key, half) in halves.iter().filter(|(k, f)| flow::has_expired(F::protocol_of(k), F::next(f), now)) {
            removed += expire_flow::<F>(&map, key, half, now)?;
        }
        next = after;
        if next.is_none() || until.is_some_and(|until| Instant::now() >= until) {
            return Ok((removed, next));
        }
    }
}

/// Removes both entries of a flow unless one was used, however recently: then both stay.
fn expire_flow<F: Flows>(map: &PinnedMap<F::Key, F::Flow>, key: &F::Key, half: &F::Flow, now: u32) -> Result<usize> {
    let has_expired = |flow: &F::Flow| flow::has_expired(F::protocol_of(key), F::next(flow), now);
    let (reverse_key, reverse) = reverse_of::<F>(map, key, half)?;
    if reverse.as_ref().is_some_and(|t| !has_expired(t)) {
        return Ok(0);
    }
    // The entry that holds the port goes last, as it was inserted first.
    let halves = match (reverse, F::next(half).state & flow::REPLY_HALF) {
        (None, _) => vec![*key],
        (Some(_), 0) => vec![*key, reverse_key],
        (Some(_), _) => vec![reverse_key, *key],
    };
    let mut taken: Vec<(F::Key, F::Flow)> = Vec::new();
    for key in halves {
        // Checked again immediately before, and once more in the removed value.
        if map.get(&key)?.is_some_and(|f| !has_expired(&f)) {
            break;
        }
        let Some(last) = map.take(&key)? else { continue };
        taken.push((key, last));
        if !has_expired(&last) {
            break;
        }
    }
    if taken.iter().any(|(_, f)| !has_expired(f)) {
        for (key, flow) in &taken {
            map.add(key, flow)?;
        }
        return Ok(0);
    }
    Ok(taken.len())
}

/// The marks of a port, one byte each.
pub(super) const MARKS: [u8; 4] = [PROTO_TCP, PROTO_UDP, PROTO_ICMP, PROTO_ICMPV6];
/// The value that programs write, and the one of an unconfirmed mark while flows are read; both count as set.
pub(super) const MARKED: u8 = 1;
const UNCONFIRMED: u8 = 2;

/// Clears the marks of ports without a flow. A program writes the mark after the flow's entries and before its first
/// packet: a flow that begins meanwhile is either found in the table, or has set the mark again.
fn marks(pins: &Pins) -> Result<usize> {
    // A second concurrent run would take the marks that this one has reset for its own.
    let Some(_lock) = MarksLock::take(pins)? else { return Ok(0) };
    let Ok(map) = PinnedMap::open(pins, &maps::NAT_PORT)?.map(0, 65_536) else {
        // A map of a build that did not allow concurrent writes.
        return Ok(0);
    };
    let places = || (0..=u16::MAX).flat_map(|port| (0..MARKS.len()).map(move |at| (port, at)));
    let byte = |port: u16, at: usize| map.byte(usize::from(port), at);
    let turn = |mark: (u16, usize), from: u8, to: u8| {
        byte(mark.0, mark.1).compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    };
    let marked: Vec<(u16, usize)> = places().filter(|m| byte(m.0, m.1).load(Ordering::SeqCst) != 0).collect();
    marked.iter().for_each(|m| {
        turn(*m, MARKED, UNCONFIRMED);
    });
    if marked.is_empty() {
        return Ok(0);
    }
    let mut used = HashSet::new();
    used_ports::<Ipv4>(pins, &mut used)?;
    used_ports::<Ipv6>(pins, &mut used)?;
    let stale = marked.into_iter().filter(|(port, at)| !used.contains(&(MARKS[*at], *port)));
    Ok(stale.filter(|m| turn(*m, UNCONFIRMED, 0)).count())
}

/// The lock of the run that may clear marks.
struct MarksLock(#[expect(dead_code, reason = "held")] Flock<File>);

impl MarksLock {
    fn take(pins: &Pins) -> Result<Option<Self>> {
        let path = pins.root().join("map");
        let what = || format!("cannot lock {}", path.display());
        match Flock::lock(File::open(&path).context(what)?, FlockArg::LockExclusiveNonblock) {
            Ok(dir) => Ok(Some(Self(dir))),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, e)) => Err(Error::new(what()).because(e)),
        }
    }
}

/// Protocol and port of every flow with replies at an uplink.
fn used_ports<F: Flows>(pins: &Pins, used: &mut HashSet<(u8, u16)>) -> Result<()> {
    for (key, half) in PinnedMap::open(pins, &F::FLOWS)?.dump(CHUNK)? {
        // One entry may be evicted.
        let proto = F::protocol_of(&key);
        if F::side_of(&key) == SIDE_UPLINK {
            used.insert((proto, F::tuple(&key).dport.value()));
        }
        if F::next(&half).reverse_side == SIDE_UPLINK {
            used.insert((proto, F::translated(&half).sport.value()));
        }
    }
    Ok(())
}

/// The cookies of hosts with pins and without a namespace. `lo` exists as long as its namespace, so a link to it
/// without an interface proves the end; clsact leaves no such link.
pub(super) fn gone_hosts() -> Vec<u64> {
    Pins::of_this_version().into_iter().filter(|(_, pins)| has_lost_lo(pins)).map(|(cookie, _)| cookie).collect()
}

fn has_lost_lo(pins: &Pins) -> bool {
    let of_lo = |name: &String| name.strip_prefix(program::LO_IN).is_some_and(|rest| rest.starts_with('-'));
    let Some(name) = pins.names("link").into_iter().find(of_lo) else { return false };
    let info = sys::open_pin(&pins.link(&name)).ok().flatten().and_then(|link| sys::link_info(link).ok());
    info.and_then(|i| i.tcx_ifindex()) == Some(0)
}
