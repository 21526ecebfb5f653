//! The embedded object: loads and pins its maps, and the programs that a host needs, once for all containers.
//!
//! While the mark of this object's digest exists among the pins, nothing is loaded again. Another digest (an upgrade), or
//! the first network with IPv6, loads the new programs on the same maps beside the old ones, and replaces the pins one by one; `attach` updates
//! the links. A map whose shape changed without a new layout version cannot be kept: all maps are recreated.

use super::pins::{OBJECT, Pins};
use super::sys;
use crate::model::Desired;
use crate::model::error::{Context, Error, Result};
use aya::maps::MapInfo;
use aya::programs::{Program, ProgramError, ProgramFd, ProgramInfo};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use aya_obj::{EbpfSectionKind, Object};
use netpath_common::layout::{global, name};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::{fs, thread};

static BYTES: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpath-ebpf.o"));
/// The same maps and programs; what never runs without IPv6 is not linked to them.
static BYTES_V4: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpath-ebpf-v4.o"));

/// Digest of the object, in hexadecimal.
pub const DIGEST: &str = env!("NETPATH_OBJECT_DIGEST");

/// Maps of one process: that of `aya_log_ebpf`, a ring buffer with one reader, sockets of the agent, and its promotion of flows.
const OWN_MAPS: [&str; 6] = ["AYA_LOGS", name::SINK, name::PROMOTION, name::CARRY, name::METER, name::LASTING];

/// No logging; the verifier removes the log code.
pub const QUIET: u8 = 0;

/// The address families that a set of programs handles.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Families {
    /// For networks without IPv6: half as long to verify.
    V4,
    Both,
}

impl Families {
    /// Those of the networks with a bridge.
    pub fn of_networks(desired: &Desired) -> Self {
        let has_v6 = desired.bridged().any(|(record, _)| record.network.has_v6());
        if has_v6 { Families::Both } else { Families::V4 }
    }

    fn mark(self) -> String {
        format!("{OBJECT}{DIGEST}{}", if self == Families::V4 { "-v4" } else { "" })
    }

    /// What the pinned programs of this object handle; `None`: they are of another object, or incomplete.
    fn of(pins: &Pins) -> Option<Self> {
        [Families::Both, Families::V4].into_iter().find(|f| pins.has_mark(&f.mark()))
    }
}

/// Whether the pins are those of this object, and complete.
pub fn is_complete(pins: &Pins) -> bool {
    Families::of(pins).is_some()
}

/// Makes the pins those of this object, with at least the `needed` programs for these families: verifying one takes
/// milliseconds, and most hosts do not need all. Returns the number of new pins.
pub fn ensure(pins: &Pins, needed: &BTreeSet<&str>, families: Families) -> Result<usize> {
    ensure_with(pins, needed, families, None)
}

/// The same with the maps that the needed programs use; `None` = all.
pub fn ensure_with(pins: &Pins, needed: &BTreeSet<&str>, families: Families, maps: Option<&[&str]>) -> Result<usize> {
    let present = pins.names("prog");
    let (has_this, families) = match Families::of(pins) {
        Some(Families::Both) => (true, Families::Both),
        found => (found == Some(families), families),
    };
    let mark = families.mark();
    let is_missing = |name: &str| needed.contains(name) && !(has_this && present.iter().any(|p| p == name));
    if has_this && !needed.iter().any(|n| is_missing(n)) {
        return Ok(0);
    }
    if !has_this {
        make_room(pins)?;
    }
    let mut ebpf = load_with(pins, QUIET, families, maps)?;
    let mut programs: Vec<_> = ebpf.programs_mut().filter(|(name, _)| is_missing(name)).collect();
    load_programs(&mut programs)?;
    for (name, program) in &mut programs {
        // A pin cannot be overwritten, but rename works on bpffs.
        let (new, place) = (pins.prog(&format!("new-{name}")), pins.prog(name));
        pins.unpin(&new)?;
        program.pin(&new).context(|| format!("cannot pin program {name}"))?;
        fs::rename(&new, &place).context(|| format!("cannot put program {name} in place"))?;
    }
    if !has_this {
        for name in pins.names("prog").into_iter().filter(|n| !needed.contains(n.as_str())) {
            pins.unpin(&pins.prog(&name))?;
        }
        pins.mark(&mark)?;
    }
    Ok(programs.len())
}

/// Removes the mark first, so that an incomplete set is never taken for complete, then unusable maps.
fn make_room(pins: &Pins) -> Result<()> {
    pins.ensure()?;
    for old in pins.marks(OBJECT) {
        pins.unmark(&format!("{OBJECT}{old}"))?;
    }
    let misfits = misfits(pins)?;
    if !misfits.is_empty() {
        tracing::warn!(maps = ?misfits, "unusable maps of another build: all maps are recreated, flows are lost");
        pins.remove()?;
        pins.ensure()?;
    }
    Ok(())
}

/// The object on maps of this process alone, its programs not loaded yet. `entries`: the sizes of those that are used.
pub(super) fn load_unpinned(families: Families, entries: &[(&str, u32)]) -> Result<Ebpf> {
    let object = Object::parse(BYTES).context(|| "cannot read the embedded eBPF object".to_owned())?;
    let mut loader = EbpfLoader::new();
    loader.btf(None).verifier_log_level(VerifierLogLevel::DEBUG);
    for (name, _) in pinned_maps(&object) {
        loader.map_max_entries(name, 1);
    }
    for (name, size) in entries {
        loader.map_max_entries(name, *size);
    }
    let csum_ipv6 = u8::from(super::probe::csum_ipv6_works());
    loader.override_global(global::CSUM_IPV6, &csum_ipv6, true);
    loader.override_global(aya_log::LEVEL, &QUIET, false);
    let bytes = if families == Families::V4 { BYTES_V4 } else { BYTES };
    loader.load(bytes).context(|| "cannot create the eBPF maps".to_owned())
}

/// The object on the pinned maps, its programs not loaded yet.
pub fn load(pins: &Pins, log_level: u8, families: Families) -> Result<Ebpf> {
    load_with(pins, log_level, families, None)
}

fn load_with(pins: &Pins, log_level: u8, families: Families, maps: Option<&[&str]>) -> Result<Ebpf> {
    let object = Object::parse(BYTES).context(|| "cannot read the embedded eBPF object".to_owned())?;
    let all: Vec<(String, PathBuf)> = pinned_maps(&object).map(|(n, _)| (n.to_owned(), pins.map(n))).collect();
    let is_kept = |name: &str| maps.is_none_or(|maps| maps.contains(&name));
    let (paths, unused): (Vec<_>, Vec<_>) = all.into_iter().partition(|(name, _)| is_kept(name));
    let mut loader = EbpfLoader::new();
    for (name, _) in &unused {
        // Not used by the programs that are needed: it goes with this process.
        loader.map_max_entries(name, 1);
    }
    // Without BTF: only UAPI structs are used, nothing is relocated. The verifier log is requested only after a
    // rejection.
    loader.btf(None).verifier_log_level(VerifierLogLevel::DEBUG);
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    // Programs at sockets ask for neither.
    let fib_src = u8::from(maps.is_none() && super::probe::fib_source_works());
    let csum_ipv6 = u8::from(maps.is_none() && super::probe::csum_ipv6_works());
    loader.override_global(global::FIB_SRC, &fib_src, true);
    loader.override_global(global::CSUM_IPV6, &csum_ipv6, true);
    let v4_only = u8::from(families == Families::V4);
    loader.override_global(global::V4_ONLY, &v4_only, true);
    loader.override_global(aya_log::LEVEL, &log_level, false);
    let bytes = if families == Families::V4 { BYTES_V4 } else { BYTES };
    loader.load(bytes).context(|| "cannot create the eBPF maps".to_owned())
}

/// Loads programs in parallel: the verifier holds no lock for programs of root.
pub fn load_programs(programs: &mut [(&str, &mut Program)]) -> Result<()> {
    // Classifiers first: they are a hundred times as long as those of sockets.
    programs.sort_by_key(|(_, program)| matches!(program, Program::CgroupSockAddr(_)));
    let workers = thread::available_parallelism().map_or(1, usize::from).min(programs.len());
    let queue = Mutex::new(programs.iter_mut());
    let work = || {
        loop {
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((name, program)) = next else { return Ok(()) };
            load_program(name, program)?;
        }
    };
    thread::scope(|scope| {
        let started: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        // Joins every worker, even after an error.
        let ended: Vec<Result<()>> =
            started.into_iter().map(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect();
        ended.into_iter().collect()
    })
}

fn load_program(name: &str, program: &mut Program) -> Result<()> {
    let once = || match program {
        Program::SchedClassifier(p) => p.load(),
        Program::CgroupSockAddr(p) => p.load(),
        Program::SkLookup(p) => p.load(),
        Program::Xdp(p) => p.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    let is_interrupted = |e: &ProgramError| matches!(e, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EAGAIN));
    let loaded = sys::again_while(is_interrupted, once);
    loaded.map_err(|e| match e {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            tracing::debug!(program = name, log, "rejected by the verifier");
            let why: Vec<&str> = log.lines().rev().filter(|l| !l.starts_with("processed ")).take(2).collect();
            refused(name, format!("{io_error}: {}", why.into_iter().rev().collect::<Vec<_>>().join(" ")))
        }
        other => refused(name, other.to_string()),
    })
}

fn refused(name: &str, why: String) -> Error {
    Error::new(format!("cannot load program {name}")).because(why).next("netpath doctor; or NETPATH_DATAPATH=iptables")
}

/// Maps with pins: all except the programs' constants and the maps of one process.
fn pinned_maps(object: &Object) -> impl Iterator<Item = (&str, &aya_obj::Map)> {
    object
        .maps
        .iter()
        .filter(|(name, map)| {
            let constant =
                matches!(map.section_kind(), EbpfSectionKind::Bss | EbpfSectionKind::Data | EbpfSectionKind::Rodata);
            !constant && !OWN_MAPS.contains(&name.as_str())
        })
        .map(|(name, map)| (name.as_str(), map))
}

/// Pinned maps that do not fit this object: aya 0.14 takes any map under the name.
fn misfits(pins: &Pins) -> Result<Vec<String>> {
    let present = pins.names("map");
    if present.is_empty() {
        return Ok(Vec::new());
    }
    let object = Object::parse(BYTES).context(|| "cannot read the embedded eBPF object".to_owned())?;
    let wanted: Vec<_> = pinned_maps(&object).collect();
    let mut misfits = Vec::new();
    for name in present {
        let fits = wanted.iter().find(|(n, _)| *n == name).is_some_and(|(_, map)| {
            MapInfo::from_pin(pins.map(&name)).is_ok_and(|info| {
                let kind = info.map_type().is_ok_and(|t| t as u32 == map.map_type());
                kind && info.key_size() == map.key_size()
                    && info.value_size() == map.value_size()
                    && info.max_entries() == map.max_entries()
                    && info.map_flags() == map.map_flags()
            })
        });
        if !fits {
            misfits.push(name);
        }
    }
    Ok(misfits)
}

/// A pinned program, and its id.
pub fn program(pins: &Pins, name: &str) -> Result<(ProgramFd, u32)> {
    let what = || format!("cannot open program {name}");
    let info = ProgramInfo::from_pin(pins.prog(name)).context(what)?;
    Ok((info.fd().context(what)?, info.id()))
}
