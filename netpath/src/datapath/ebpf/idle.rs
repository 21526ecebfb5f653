//! Programs and empty maps that stay loaded without a container: verifying programs takes most of the time of a first
//! setup.
//!
//! They are pinned in a tree of their own (`idle-<cookie>`), so that readers never take them for a datapath in use. A
//! complete set moves there, emptied and attached to nothing, when the last container goes; the next first container
//! moves it back. The mark `until-<seconds since 1970>` limits its time, `preloaded` lifts the limit.

use super::loader::{self, Families};
use super::maps::clear;
use super::pins::{OBJECT, Pins};
use super::{attach, compile};
use crate::datapath::{Idle, IdleState, keep_loaded};
use crate::model::error::{Context, Result};
use crate::model::{Desired, HostView};
use crate::state::{Lock, Store};
use netpath_common::layout::program;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) const IDLE: Idle = Idle { load, load_for, state, unload, unload_expired };

const UNTIL: &str = "until-";
const PRELOADED: &str = "preloaded";

/// Takes the pins of a host without containers, attached to nothing, out of use: keeps them loaded, or removes them.
/// Returns the number of pins.
///
/// # Errors
/// They cannot be removed.
pub(super) fn keep(pins: &Pins, store: &Store) -> Result<usize> {
    let stays = pins.has_mark(PRELOADED);
    let seconds = keep_loaded::seconds(store);
    if !loader::is_complete(pins) || (seconds == 0 && !stays) {
        return pins.remove();
    }
    match take_out_of_use(pins, (!stays).then_some(seconds)) {
        Ok(()) => Ok(pins.idle().names("prog").len() + pins.idle().names("map").len()),
        Err(e) => {
            tracing::warn!("the programs do not stay loaded: {e}");
            pins.remove()
        }
    }
}

fn take_out_of_use(pins: &Pins, seconds: Option<u64>) -> Result<()> {
    clear::all(pins)?;
    // The others are about interfaces.
    pins.unmark_except(|mark| mark == PRELOADED || mark.starts_with(OBJECT))?;
    let idle = pins.idle();
    idle.remove()?;
    if let Some(seconds) = seconds {
        limit(pins, seconds)?;
    }
    fs::rename(pins.root(), idle.root()).context(|| format!("cannot rename {}", pins.root().display()))
}

fn limit(pins: &Pins, seconds: u64) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    pins.mark(&format!("{UNTIL}{}", (now + Duration::from_secs(seconds)).as_secs()))
}

/// Puts an idle set of this object to use as `pins`, which must not exist. Removes one of another object or layout.
///
/// # Errors
/// It can neither be moved nor be removed.
pub(super) fn take(pins: &Pins) -> Result<()> {
    let idle = pins.idle();
    for other in idle.in_all_versions() {
        if other.root() != idle.root() || !loader::is_complete(&idle) {
            other.remove()?;
        }
    }
    if !idle.exist() {
        return Ok(());
    }
    for until in idle.marks(UNTIL) {
        idle.unmark(&format!("{UNTIL}{until}"))?;
    }
    fs::rename(idle.root(), pins.root()).context(|| format!("cannot rename {}", idle.root().display()))
}

fn load(_lock: &Lock, host: u64, view: &HostView) -> Result<bool> {
    let pins = Pins::of(host);
    let idle = pins.idle();
    let place = if pins.exist() { &pins } else { &idle };
    let is_new = !loader::is_complete(place);
    if is_new {
        let mut needed = attach::programs(&compile::compile(&Desired::default(), view));
        needed.extend([program::BRIDGE_IN, program::VETH_IN]);
        loader::ensure(place, &needed, Families::Both)?;
    }
    if !place.has_mark(PRELOADED) {
        place.mark(PRELOADED)?;
    }
    for until in place.marks(UNTIL) {
        place.unmark(&format!("{UNTIL}{until}"))?;
    }
    Ok(is_new)
}

fn load_for(host: u64, desired: &Desired, view: &HostView, seconds: u64) -> Result<()> {
    let (pins, idle) = (Pins::of(host), Pins::of(host).idle());
    if pins.exist() || loader::is_complete(&idle) {
        return Ok(());
    }
    // An unfinished set is removed at once, because it has no time.
    loader::ensure(&idle, &attach::programs(&compile::compile(desired, view)), Families::of_networks(desired))?;
    limit(&idle, seconds)
}

fn state(host: u64) -> Option<IdleState> {
    Pins::of(host).idle().in_all_versions().iter().map(state_of).next()
}

fn state_of(idle: &Pins) -> IdleState {
    if idle.has_mark(PRELOADED) {
        return IdleState::Preloaded;
    }
    let until = idle.marks(UNTIL).iter().filter_map(|u| u.parse().ok()).max();
    // Without a mark a command was killed while it moved the set.
    IdleState::Until(until.map_or(UNIX_EPOCH, |seconds| UNIX_EPOCH + Duration::from_secs(seconds)))
}

fn unload(_lock: &Lock, host: u64) -> Result<usize> {
    let pins = Pins::of(host);
    if pins.exist() && pins.has_mark(PRELOADED) {
        pins.unmark(PRELOADED)?;
    }
    pins.idle().in_all_versions().iter().try_fold(0, |sum, idle| Ok(sum + idle.remove()?))
}

fn unload_expired() -> Result<usize> {
    let is_expired = |idle: &&Pins| matches!(state_of(idle), IdleState::Until(when) if when <= SystemTime::now());
    Pins::of_all_idle().iter().filter(is_expired).try_fold(0, |sum, idle| Ok(sum + idle.remove()?))
}
