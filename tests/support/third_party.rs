//! Programs of other software at the hooks of traffic control and XDP: each counts its packets and passes them on.

use crate::bpf::{self, Attr, instruction};
use crate::host::Netns;
use anyhow::{Context, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Ingress,
    Egress,
}

impl Side {
    pub const BOTH: [Side; 2] = [Side::Ingress, Side::Egress];

    /// As `tc` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Side::Ingress => "ingress",
            Side::Egress => "egress",
        }
    }
}

/// A position in the order of a TCX hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    First,
    Last,
}

/// A program that counts; attached until dropped.
pub struct Counter {
    map: OwnedFd,
    program: OwnedFd,
    link: Option<OwnedFd>,
}

impl Counter {
    /// # Errors
    /// bpf() is refused.
    pub fn load() -> Result<Self> {
        // TCX_NEXT and TC_ACT_UNSPEC.
        Self::load_as(bpf::PROG_TYPE_SCHED_CLS, -1)
    }

    fn load_as(kind: u32, verdict: i32) -> Result<Self> {
        let mut attr = Attr::default();
        attr.words(0, &[bpf::MAP_TYPE_ARRAY, 4, 8, 1]);
        let map = attr.open(bpf::MAP_CREATE).context("cannot make a map")?;
        let fd = map.as_raw_fd();
        // r1 = &count; r2 = 1; lock *r1 += r2; return verdict.
        let program = [
            instruction(0x18, bpf::PSEUDO_MAP_VALUE << 4 | 1, 0, fd),
            instruction(0, 0, 0, 0),
            instruction(0xb7, 2, 0, 1),
            instruction(0xdb, 0x21, 0, 0),
            instruction(0xb7, 0, 0, verdict),
            instruction(0x95, 0, 0, 0),
        ];
        let program = bpf::load(kind, &program, "third_party")?;
        Ok(Self { map, program, link: None })
    }

    /// At a TCX hook of `device`.
    ///
    /// # Errors
    /// There is no such device.
    pub fn tcx(netns: &Netns, device: &str, side: Side, place: Place) -> Result<Self> {
        let mut counter = Self::load()?;
        let index = netns.run(|| nix::net::if_::if_nametoindex(device)).with_context(|| device.to_owned())?;
        let hook = if side == Side::Ingress { bpf::TCX_INGRESS } else { bpf::TCX_EGRESS };
        let order = if place == Place::First { bpf::BEFORE } else { bpf::AFTER };
        let mut attr = Attr::default();
        attr.words(0, &[counter.program.as_raw_fd() as u32, index, hook, order]);
        let link = netns.run(|| attr.open(bpf::LINK_CREATE)).with_context(|| format!("cannot attach to {device}"))?;
        counter.link = Some(link);
        Ok(counter)
    }

    /// As the XDP program of `device`, which must have none.
    ///
    /// # Errors
    /// There is no such device, or it has one.
    pub fn xdp(netns: &Netns, device: &str) -> Result<Self> {
        const PASS: i32 = 2;
        let mut counter = Self::load_as(bpf::PROG_TYPE_XDP, PASS)?;
        let index = netns.run(|| nix::net::if_::if_nametoindex(device)).with_context(|| device.to_owned())?;
        let mut attr = Attr::default();
        attr.words(0, &[counter.program.as_raw_fd() as u32, index, bpf::XDP, bpf::NATIVE]);
        let link = netns.run(|| attr.open(bpf::LINK_CREATE)).with_context(|| format!("cannot attach to {device}"))?;
        counter.link = Some(link);
        Ok(counter)
    }

    /// As a filter of the existing clsact qdisc of `device`; it stays on drop.
    ///
    /// # Errors
    /// `tc` fails.
    pub fn clsact(netns: &Netns, device: &str, side: Side, preference: u16) -> Result<Self> {
        static PINS: AtomicU32 = AtomicU32::new(0);
        let counter = Self::load()?;
        let name = format!("third_party-{}-{}", std::process::id(), PINS.fetch_add(1, Ordering::Relaxed));
        let pin = PathBuf::from("/sys/fs/bpf").join(name);
        let path = std::ffi::CString::new(pin.to_string_lossy().into_owned())?;
        let mut attr = Attr::default();
        attr.pointer(0, path.as_ptr());
        attr.words(8, &[counter.program.as_raw_fd() as u32]);
        attr.call(bpf::OBJ_PIN).with_context(|| format!("cannot pin {}", pin.display()))?;
        let (pinned, preference) = (pin.to_string_lossy(), preference.to_string());
        let words = format!("filter add dev {device} {} pref {preference} bpf da object-pinned {pinned}", side.name());
        let added = netns.command("tc", &words.split(' ').collect::<Vec<_>>());
        let _ = std::fs::remove_file(&pin);
        added.map(|_| counter)
    }

    /// The number of packets seen.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn seen(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attr = Attr::default();
        attr.words(0, &[self.map.as_raw_fd() as u32]);
        attr.pointer(8, &raw const key);
        attr.pointer(16, &raw mut value);
        attr.call(bpf::MAP_LOOKUP_ELEM).context("cannot read the count")?;
        Ok(value)
    }
}
