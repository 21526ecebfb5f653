//! Attachment of programs to interfaces and the cgroup root: removes wrong and unwanted attachments, adds missing
//! ones, and updates in place those that run another program than the pinned one.

use super::clsact::Tc;
use super::compile::Tables;
use super::monitor_lock::{SHORTCUTS, doubt_shortcuts, monitor_is_alive, update};
use super::pins::Pins;
use super::tc_mode::TcMode;
use super::{cgroup, loader, sys, xdp};
use crate::model::error::{Context, Error, Result};
use aya::programs::ProgramFd;
use netpath_common::layout::{self, program};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Mark: the interface that follows may have filters of netpath.
pub(super) const FILTERS: &str = "clsact-";
/// Mark: netpath made the clsact qdisc of the interface that follows.
pub(super) const QDISC: &str = "qdisc-";

/// A classifier in one direction of an interface.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct TcHook {
    pub ifindex: u32,
    pub egress: bool,
    pub program: &'static str,
}

impl TcHook {
    /// Hooks of a container's veth, which is made and removed with it. Such a hook is a clsact filter if possible:
    /// attaching or removing a TCX program waits for all processors (`include/net/tcx.h, tcx_entry_sync()`), under
    /// the lock of all network configuration. The bridge's hook handles the packets that it leaves.
    fn is_shortcut(&self) -> bool {
        self.program == program::VETH_IN
    }

    fn pin(&self) -> String {
        format!("{}-{}", self.program, self.ifindex)
    }
}

/// The sock_addr programs and their cgroup attach types.
pub(super) const SOCKETS: [(&str, u32); 8] = [
    (program::CONNECT4, sys::CGROUP_INET4_CONNECT),
    (program::CONNECT6, sys::CGROUP_INET6_CONNECT),
    (program::SENDMSG4, sys::CGROUP_UDP4_SENDMSG),
    (program::SENDMSG6, sys::CGROUP_UDP6_SENDMSG),
    (program::RECVMSG4, sys::CGROUP_UDP4_RECVMSG),
    (program::RECVMSG6, sys::CGROUP_UDP6_RECVMSG),
    (program::GETPEERNAME4, sys::CGROUP_INET4_GETPEERNAME),
    (program::GETPEERNAME6, sys::CGROUP_INET6_GETPEERNAME),
];

/// Uplinks in both directions, veths and bridges on ingress, and `lo`.
pub(super) fn wanted(tables: &Tables) -> BTreeSet<TcHook> {
    let mut hooks = BTreeSet::new();
    for (&ifindex, uplink) in &tables.uplinks {
        let (into, out) = match uplink.ethernet {
            0 => (program::UPLINK_IN_L3, program::UPLINK_OUT_L3),
            _ => (program::UPLINK_IN, program::UPLINK_OUT),
        };
        hooks.insert(TcHook { ifindex, egress: false, program: into });
        hooks.insert(TcHook { ifindex, egress: true, program: out });
    }
    for &ifindex in tables.networks.keys() {
        hooks.insert(TcHook { ifindex, egress: false, program: program::BRIDGE_IN });
    }
    // Packets of an internal network belong to no flow.
    let is_internal = |bridge| tables.networks.get(bridge).is_some_and(|n| n.flags & layout::NET_INTERNAL != 0);
    for endpoint in tables.endpoints.values().filter(|e| !is_internal(&e.bridge)) {
        hooks.insert(TcHook { ifindex: endpoint.veth, egress: false, program: program::VETH_IN });
    }
    hooks.insert(TcHook { ifindex: tables.config.lo_ifindex, egress: false, program: program::LO_IN });
    hooks
}

/// The programs of these hooks, those of sockets, and the one of XDP if wanted.
pub(super) fn programs(tables: &Tables) -> BTreeSet<&'static str> {
    let early = tables.xdp.keys().map(|_| program::XDP_IN);
    wanted(tables).into_iter().map(|hook| hook.program).chain(SOCKETS.map(|(name, _)| name)).chain(early).collect()
}

/// A program opened from its pin, once.
#[derive(Default)]
struct Programs(BTreeMap<&'static str, (ProgramFd, u32)>);

impl Programs {
    fn open(&mut self, pins: &Pins, name: &'static str) -> Result<&(ProgramFd, u32)> {
        match self.0.entry(name) {
            std::collections::btree_map::Entry::Occupied(e) => Ok(e.into_mut()),
            std::collections::btree_map::Entry::Vacant(e) => Ok(e.insert(loader::program(pins, name)?)),
        }
    }
}

/// Makes the hooks of interfaces exactly `wanted`, and adds missing ones of sockets. Returns the number of changes.
pub(super) fn reconcile(pins: &Pins, wanted: &BTreeSet<TcHook>, forced: Option<TcMode>) -> Result<usize> {
    let mut programs = Programs::default();
    let mut changed = 0;
    let marked = numbers(pins, FILTERS);
    let stays = wanted.iter().any(|hook| !hook.is_shortcut() && marked.contains(&hook.ifindex));
    let mut mode = forced.unwrap_or(if stays { TcMode::Clsact } else { TcMode::Tcx });
    let is_filter = |hook: &TcHook| forced.is_none() && hook.is_shortcut();
    let mut by_clsact: BTreeSet<TcHook> = wanted.iter().copied().filter(is_filter).collect();
    if mode == TcMode::Tcx {
        match filters(pins, &by_clsact, &mut programs) {
            Ok(more) => changed += more,
            Err(Attach::Unsupported(_)) => by_clsact.clear(),
            Err(Attach::Failed(e)) => return Err(e),
        }
        for hook in wanted.difference(&by_clsact) {
            match tcx(pins, hook, &mut programs) {
                Ok(more) => changed += more,
                Err(Attach::Unsupported(e)) if forced.is_none() => {
                    tracing::info!(error = %e, "the kernel has no TCX, clsact is used");
                    mode = TcMode::Clsact;
                    break;
                }
                Err(Attach::Unsupported(e)) => return Err(attach_error(hook, e)),
                Err(Attach::Failed(e)) => return Err(e),
            }
        }
    }
    if mode == TcMode::Clsact {
        by_clsact.clone_from(wanted);
        changed += filters(pins, &by_clsact, &mut programs).map_err(Attach::into_error)?;
    }
    changed += sockets(pins, &mut programs)?;
    let by_tcx: BTreeSet<String> = wanted.difference(&by_clsact).map(TcHook::pin).collect();
    for name in pins.names("link") {
        let socket = SOCKETS.iter().any(|(n, _)| *n == name);
        if !socket && !by_tcx.contains(&name) && !xdp::is_pin(&name) {
            pins.unpin(&pins.link(&name))?;
            changed += 1;
        }
    }
    Ok(changed)
}

/// Detaches the programs of all interfaces, at once, those of uplinks first: until the others follow, containers answer by the
/// flows that are there. Returns the number of links.
///
/// # Errors
/// The kernel's.
pub(super) fn detach(pins: &Pins) -> Result<usize> {
    let mut names = pins.names("link");
    names.retain(|name| SOCKETS.iter().all(|(socket, _)| socket != name) && !xdp::is_pin(name));
    names.sort_by_key(|name| !name.starts_with(program::UPLINK_IN));
    for name in &names {
        let path = pins.link(name);
        if let Some(link) = sys::open_pin(&path).context(|| format!("cannot open {}", path.display()))? {
            sys::link_detach(&link).context(|| format!("cannot detach {name}"))?;
        }
        pins.unpin(&path)?;
    }
    Ok(names.len() + remove_filters(pins)?)
}

/// Detaches what has no pinned link.
///
/// # Errors
/// The kernel's.
pub(super) fn detach_unpinned(pins: &Pins) -> Result<usize> {
    xdp::detach(pins)?;
    remove_filters(pins)
}

/// Detaches everything, and removes all pins. Returns their number.
///
/// # Errors
/// The kernel's.
pub(super) fn remove(pins: &Pins) -> Result<usize> {
    if pins.exist() { Ok(detach_unpinned(pins)? + pins.remove()?) } else { Ok(0) }
}

/// As [`remove`] for the trees of other layouts.
///
/// # Errors
/// The kernel's.
pub(super) fn remove_other_versions(cookie: u64) -> Result<usize> {
    Pins::of_other_versions(cookie).iter().try_fold(0, |sum, (_, pins)| Ok(sum + remove(pins)?))
}

/// Adds missing hooks of sockets. Returns the number of changes.
pub(super) fn reconcile_sockets(pins: &Pins) -> Result<usize> {
    sockets(pins, &mut Programs::default())
}

/// The interfaces with this mark.
fn numbers(pins: &Pins, prefix: &str) -> BTreeSet<u32> {
    pins.marks(prefix).iter().filter_map(|n| n.parse().ok()).collect()
}

/// Removes attachments without pins: filters of clsact. Links are removed with their pins.
pub(super) fn remove_filters(pins: &Pins) -> Result<usize> {
    if pins.marks(FILTERS).is_empty() && pins.marks(QDISC).is_empty() {
        return Ok(0);
    }
    filters(pins, &BTreeSet::new(), &mut Programs::default()).map_err(Attach::into_error)
}

/// An interface has one slot for netpath's clsact filter, independent of the layout: filters that `to` has replaced
/// are its own, and a qdisc that `from` made becomes `to`'s. The other filters of `from` are removed.
pub(super) fn hand_over(from: &Pins, to: &Pins) -> Result<usize> {
    let taken = |ifindex: &String| to.has_mark(&format!("{FILTERS}{ifindex}"));
    for prefix in [QDISC, FILTERS] {
        for ifindex in from.marks(prefix).iter().filter(|i| taken(i)) {
            let mark = format!("{prefix}{ifindex}");
            if !to.has_mark(&mark) {
                to.mark(&mark)?;
            }
            from.unmark(&mark)?;
        }
    }
    remove_filters(from)
}

/// Why a hook was not attached.
enum Attach {
    /// The kernel has no such hook.
    Unsupported(io::Error),
    Failed(Error),
}

impl Attach {
    fn into_error(self) -> Error {
        match self {
            Attach::Unsupported(e) => Error::new("cannot attach programs by clsact").because(e).next("netpath doctor"),
            Attach::Failed(e) => e,
        }
    }
}

impl From<Error> for Attach {
    fn from(e: Error) -> Self {
        Attach::Failed(e)
    }
}

fn attach_error(hook: &TcHook, e: io::Error) -> Error {
    let side = if hook.egress { "egress" } else { "ingress" };
    Error::new(format!("cannot attach {} to {side} of interface {}", hook.program, hook.ifindex))
        .because(e)
        .next("netpath doctor")
}

fn tcx(pins: &Pins, hook: &TcHook, programs: &mut Programs) -> std::result::Result<usize, Attach> {
    let path = pins.link(&hook.pin());
    let (prog, id) = programs.open(pins, hook.program)?;
    if let Some(link) = sys::open_pin(&path).context(|| format!("cannot open {}", path.display()))? {
        let info = sys::link_info(&link).context(|| format!("cannot read {}", path.display()))?;
        if info.tcx_ifindex() == Some(hook.ifindex) {
            return Ok(update(pins, hook.program, &link, info.prog_id, prog, *id)?);
        }
        // The interface is gone, and another one has its index.
        pins.unpin(&path)?;
    }
    let place = if hook.egress { sys::TCX_EGRESS } else { sys::TCX_INGRESS };
    match attach(prog, hook.ifindex, place) {
        Ok(link) => {
            sys::pin(&link, &path).context(|| format!("cannot pin {}", path.display()))?;
            Ok(1)
        }
        Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Err(Attach::Unsupported(e)),
        // The interface was removed since the host was read.
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(0),
        Err(e) => Err(Attach::Failed(attach_error(hook, e))),
    }
}

/// Time limit for a link without a pin to be freed. The kernel frees it from a work queue, under the lock of all
/// network configuration (kernel/bpf/syscall.c, bpf_link_put()): after microseconds, or seconds while namespaces are
/// destroyed.
const LINK_GONE: Duration = Duration::from_secs(10);

/// As [`sys::link_create`]. A TCX hook holds a program once: if the earlier link has just lost its pin, this waits
/// until the kernel has freed it.
fn attach(prog: &ProgramFd, ifindex: u32, place: u32) -> io::Result<OwnedFd> {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        match sys::link_create(prog, ifindex, place) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) && start.elapsed() < LINK_GONE => {
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            other => return other,
        }
    }
}

fn sockets(pins: &Pins, programs: &mut Programs) -> Result<usize> {
    let mut root: Option<OwnedFd> = None;
    let mut changed = 0;
    for (name, place) in SOCKETS {
        let path = pins.link(name);
        let (prog, id) = programs.open(pins, name)?;
        if let Some(link) = sys::open_pin(&path).context(|| format!("cannot open {}", path.display()))? {
            let info = sys::link_info(&link).context(|| format!("cannot read {}", path.display()))?;
            if info.cgroup_id().is_some_and(|c| c != 0) {
                changed += update(pins, name, &link, info.prog_id, prog, *id)?;
                continue;
            }
            pins.unpin(&path)?;
        }
        if root.is_none() {
            match cgroup::root() {
                Ok(fd) => root = Some(fd),
                Err(e) => {
                    tracing::warn!(error = %e, "host-local clients are translated on lo instead of at connect");
                    return Ok(changed);
                }
            }
        }
        let Some(fd) = &root else { return Ok(changed) };
        match sys::link_create(prog, fd.as_raw_fd() as u32, place) {
            Ok(link) => {
                sys::pin(&link, &path).context(|| format!("cannot pin {}", path.display()))?;
                changed += 1;
            }
            // No reason to fail a container: lo handles connections that these programs miss.
            Err(e) => {
                tracing::warn!(program = name, error = %e, "cannot attach to the cgroup root, lo is used instead");
                return Ok(changed);
            }
        }
    }
    Ok(changed)
}

fn filters(pins: &Pins, wanted: &BTreeSet<TcHook>, programs: &mut Programs) -> std::result::Result<usize, Attach> {
    let marked = numbers(pins, FILTERS);
    let made = numbers(pins, QDISC);
    if wanted.is_empty() && marked.is_empty() && made.is_empty() {
        return Ok(0);
    }
    let mut tc = Tc::open()?;
    let mut changed = 0;
    let shortcut = match wanted.iter().find(|hook| hook.is_shortcut()) {
        Some(hook) => Some(programs.open(pins, hook.program)?.1),
        None => None,
    };
    let is_settled = shortcut.is_some_and(|id| pins.has_mark(&format!("{SHORTCUTS}{id}")));
    for hook in wanted {
        // Marked filters are not read again: one request per veth costs a busy host more than the check is worth.
        if !(hook.is_shortcut() && is_settled && marked.contains(&hook.ifindex)) {
            changed += filter(pins, hook, hook.is_shortcut() && is_settled, &mut tc, programs)?;
        }
    }
    if let Some(id) = shortcut
        && !is_settled
        && !monitor_is_alive(pins)
    {
        doubt_shortcuts(pins)?;
        pins.mark(&format!("{SHORTCUTS}{id}"))?;
    }
    let attached: BTreeSet<u32> = wanted.iter().map(|hook| hook.ifindex).collect();
    for ifindex in marked.difference(&attached) {
        for egress in [false, true] {
            tc.remove_filter(*ifindex, egress).context(|| format!("cannot remove filters of interface {ifindex}"))?;
        }
        changed += 1;
        pins.unmark(&format!("{FILTERS}{ifindex}"))?;
    }
    for ifindex in made.difference(&attached) {
        tc.remove_qdisc_if_empty(*ifindex).context(|| format!("cannot remove clsact from interface {ifindex}"))?;
        pins.unmark(&format!("{QDISC}{ifindex}"))?;
    }
    Ok(changed)
}

/// An interface that `is_new` has no filter of netpath.
fn filter(
    pins: &Pins,
    hook: &TcHook,
    is_new: bool,
    tc: &mut Tc,
    programs: &mut Programs,
) -> std::result::Result<usize, Attach> {
    let (prog, id) = programs.open(pins, hook.program)?;
    let there = match is_new {
        true => None,
        false => tc.our_filter(hook.ifindex, hook.egress).map_err(|e| attach_error(hook, e))?,
    };
    let mark = format!("{FILTERS}{}", hook.ifindex);
    let stays = there.as_ref().is_some_and(|f| f.prog_id == Some(*id) || monitor_is_alive(pins));
    // Marks precede their objects, except those of veths, which say that no check is needed.
    if (stays || !hook.is_shortcut()) && !pins.has_mark(&mark) {
        pins.mark(&mark)?;
    }
    if stays {
        return Ok(0);
    }
    if is_new || (there.is_none() && !tc.has_qdisc(hook.ifindex).map_err(|e| attach_error(hook, e))?) {
        let mark = format!("{QDISC}{}", hook.ifindex);
        pins.mark(&mark)?;
        match tc.add_qdisc(hook.ifindex) {
            Ok(true) => {}
            Ok(false) => pins.unmark(&mark)?,
            Err(e) => {
                pins.unmark(&mark)?;
                return match e.raw_os_error() {
                    Some(libc::ENODEV) => Ok(0),
                    // The kernel has no such qdisc (`net/sched/sch_api.c, qdisc_create()`).
                    Some(libc::ENOENT | libc::EOPNOTSUPP) => Err(Attach::Unsupported(e)),
                    _ => Err(attach_error(hook, e).into()),
                };
            }
        }
    }
    match tc.set_filter(hook.ifindex, hook.egress, prog, hook.program) {
        Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(0),
        other => other.map_err(|e| attach_error(hook, e))?,
    }
    if hook.is_shortcut() {
        pins.mark(&mark)?;
    }
    Ok(1)
}
