//! What is attached now, and its replacement in place.

use super::attach::FILTERS;
use super::clsact::Tc;
use super::pins::Pins;
use super::sys;
use crate::model::error::{Context, Result};
use aya::programs::ProgramInfo;
use netpath_common::layout::program;
use std::os::fd::AsFd;

/// An attached program, as the kernel reports it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Attached {
    pub program: String,
    /// `None` = the cgroup root.
    pub ifindex: Option<u32>,
    pub egress: bool,
    pub by: By,
    /// Runs the pinned program; otherwise a monitor's or an older build's.
    pub pinned: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum By {
    Tcx,
    Clsact,
    Cgroup,
    Xdp,
}

/// Everything that is attached. Read-only.
pub(super) fn attached(pins: &Pins) -> Result<Vec<Attached>> {
    let mut all = Vec::new();
    for name in pins.names("link") {
        let path = pins.link(&name);
        let Some(link) = sys::open_pin(&path).context(|| format!("cannot open {}", path.display()))? else { continue };
        let info = sys::link_info(&link).context(|| format!("cannot read {}", path.display()))?;
        let program = name.split('-').next().unwrap_or_default().to_owned();
        let (ifindex, by) = match (info.tcx_ifindex(), info.xdp_ifindex(), info.cgroup_id()) {
            (Some(0), ..) | (_, Some(0), _) | (.., Some(0)) => continue,
            (Some(ifindex), ..) => (Some(ifindex), By::Tcx),
            (_, Some(ifindex), _) => (Some(ifindex), By::Xdp),
            _ => (None, By::Cgroup),
        };
        let egress = program == program::UPLINK_OUT;
        all.push(Attached { pinned: runs_pinned(pins, &program, info.prog_id), program, ifindex, egress, by });
    }
    let marked = pins.marks(FILTERS);
    if !marked.is_empty() {
        let mut tc = Tc::open()?;
        for ifindex in marked.iter().filter_map(|n| n.parse::<u32>().ok()) {
            for egress in [false, true] {
                let found = tc.our_filter(ifindex, egress);
                if let Some(f) = found.context(|| format!("cannot read filters of interface {ifindex}"))? {
                    let pinned = runs_pinned(pins, &f.name, f.prog_id.unwrap_or(0));
                    all.push(Attached { program: f.name, ifindex: Some(ifindex), egress, by: By::Clsact, pinned });
                }
            }
        }
    }
    all.sort();
    Ok(all)
}

fn runs_pinned(pins: &Pins, name: &str, id: u32) -> bool {
    ProgramInfo::from_pin(pins.prog(name)).is_ok_and(|pinned| pinned.id() == id)
}

/// Replaces an attached program of the same name. False if it was no longer attached.
pub(super) fn replace(pins: &Pins, hook: &Attached, prog: impl AsFd) -> Result<bool> {
    let what = || format!("cannot replace {} in place", hook.program);
    if let (By::Clsact, Some(ifindex)) = (hook.by, hook.ifindex) {
        let set = Tc::open()?.set_filter(ifindex, hook.egress, prog, &hook.program);
        return match set {
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            other => other.map(|()| true).context(what),
        };
    }
    let name = hook.ifindex.map_or_else(|| hook.program.clone(), |i| format!("{}-{i}", hook.program));
    match sys::open_pin(&pins.link(&name)).context(what)? {
        None => Ok(false),
        Some(link) => match sys::link_update(link, prog) {
            // The interface is gone (`kernel/bpf/tcx.c, tcx_link_update()`, `net/core/dev.c, bpf_xdp_link_update()`).
            Err(e) if e.raw_os_error() == Some(libc::ENOLINK) => Ok(false),
            other => other.map(|()| true).context(what),
        },
    }
}
