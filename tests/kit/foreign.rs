//! Somebody else's programs at the hooks of traffic control and XDP: each counts the packets it sees and lets them go on.

use crate::host::Netns;
use anyhow::{Context, Result};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
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

/// Where in the order of a TCX hook.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    First,
    Last,
}

/// A program that counts; attached until it is dropped.
pub struct Counter {
    map: OwnedFd,
    program: OwnedFd,
    link: Option<OwnedFd>,
}

// include/uapi/linux/bpf.h
const MAP_CREATE: i64 = 0;
const MAP_LOOKUP_ELEM: i64 = 1;
const PROG_LOAD: i64 = 5;
const OBJ_PIN: i64 = 6;
const LINK_CREATE: i64 = 28;
const MAP_TYPE_ARRAY: u32 = 2;
const PROG_TYPE_SCHED_CLS: u32 = 3;
const PROG_TYPE_XDP: u32 = 6;
const XDP: u32 = 37;
/// include/uapi/linux/if_link.h, XDP_FLAGS_DRV_MODE: native.
const NATIVE: u32 = 1 << 2;
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const BEFORE: u32 = 1 << 3;
const AFTER: u32 = 1 << 4;
const PSEUDO_MAP_VALUE: u8 = 2;

impl Counter {
    /// # Errors
    /// bpf() is refused.
    pub fn load() -> Result<Self> {
        // TCX_NEXT and TC_ACT_UNSPEC.
        Self::load_as(PROG_TYPE_SCHED_CLS, -1)
    }

    fn load_as(kind: u32, verdict: i32) -> Result<Self> {
        let mut attr = Attr::default();
        attr.words(0, &[MAP_TYPE_ARRAY, 4, 8, 1]);
        let map = attr.open(MAP_CREATE).context("cannot make a map")?;
        let fd = map.as_raw_fd();
        // r1 = &count; r2 = 1; lock *r1 += r2; return verdict.
        let program = [
            instruction(0x18, PSEUDO_MAP_VALUE << 4 | 1, fd),
            instruction(0, 0, 0),
            instruction(0xb7, 2, 1),
            instruction(0xdb, 0x21, 0),
            instruction(0xb7, 0, verdict),
            instruction(0x95, 0, 0),
        ];
        let mut attr = Attr::default();
        attr.words(0, &[kind, program.len() as u32]);
        attr.pointer(8, program.as_ptr());
        attr.pointer(16, c"GPL".as_ptr());
        attr.bytes(48, b"foreign");
        let program = attr.open(PROG_LOAD).context("cannot load a program")?;
        Ok(Self { map, program, link: None })
    }

    /// At a TCX hook of `device`.
    ///
    /// # Errors
    /// There is no such device.
    pub fn tcx(netns: &Netns, device: &str, side: Side, place: Place) -> Result<Self> {
        let mut counter = Self::load()?;
        let index = netns.run(|| nix::net::if_::if_nametoindex(device)).with_context(|| device.to_owned())?;
        let hook = if side == Side::Ingress { TCX_INGRESS } else { TCX_EGRESS };
        let order = if place == Place::First { BEFORE } else { AFTER };
        let mut attr = Attr::default();
        attr.words(0, &[counter.program.as_raw_fd() as u32, index, hook, order]);
        let link = netns.run(|| attr.open(LINK_CREATE)).with_context(|| format!("cannot attach to {device}"))?;
        counter.link = Some(link);
        Ok(counter)
    }

    /// As the XDP program of `device`, which has none.
    ///
    /// # Errors
    /// There is no such device, or it has one.
    pub fn xdp(netns: &Netns, device: &str) -> Result<Self> {
        const PASS: i32 = 2;
        let mut counter = Self::load_as(PROG_TYPE_XDP, PASS)?;
        let index = netns.run(|| nix::net::if_::if_nametoindex(device)).with_context(|| device.to_owned())?;
        let mut attr = Attr::default();
        attr.words(0, &[counter.program.as_raw_fd() as u32, index, XDP, NATIVE]);
        let link = netns.run(|| attr.open(LINK_CREATE)).with_context(|| format!("cannot attach to {device}"))?;
        counter.link = Some(link);
        Ok(counter)
    }

    /// As a filter of the clsact qdisc that `device` has already; it stays when this is dropped.
    ///
    /// # Errors
    /// `tc` fails.
    pub fn clsact(netns: &Netns, device: &str, side: Side, preference: u16) -> Result<Self> {
        static PINS: AtomicU32 = AtomicU32::new(0);
        let counter = Self::load()?;
        let name = format!("foreign-{}-{}", std::process::id(), PINS.fetch_add(1, Ordering::Relaxed));
        let pin = PathBuf::from("/sys/fs/bpf").join(name);
        let path = std::ffi::CString::new(pin.to_string_lossy().into_owned())?;
        let mut attr = Attr::default();
        attr.pointer(0, path.as_ptr());
        attr.words(8, &[counter.program.as_raw_fd() as u32]);
        attr.call(OBJ_PIN).with_context(|| format!("cannot pin {}", pin.display()))?;
        let (pinned, preference) = (pin.to_string_lossy(), preference.to_string());
        let words = format!("filter add dev {device} {} pref {preference} bpf da object-pinned {pinned}", side.name());
        let added = netns.command("tc", &words.split(' ').collect::<Vec<_>>());
        let _ = std::fs::remove_file(&pin);
        added.map(|_| counter)
    }

    /// The packets that it has seen.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn seen(&self) -> Result<u64> {
        let (key, mut value) = (0_u32, 0_u64);
        let mut attr = Attr::default();
        attr.words(0, &[self.map.as_raw_fd() as u32]);
        attr.pointer(8, &raw const key);
        attr.pointer(16, &raw mut value);
        attr.call(MAP_LOOKUP_ELEM).context("cannot read the count")?;
        Ok(value)
    }
}

/// One instruction: code, registers (source above destination), immediate value.
fn instruction(code: u8, registers: u8, value: i32) -> u64 {
    let [a, b, c, d] = value.to_le_bytes();
    u64::from_le_bytes([code, registers, 0, 0, a, b, c, d])
}

/// `union bpf_attr`.
#[repr(C, align(8))]
struct Attr([u8; 128]);

impl Default for Attr {
    fn default() -> Self {
        Self([0; 128])
    }
}

impl Attr {
    fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn words(&mut self, at: usize, words: &[u32]) {
        self.bytes(at, &words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>());
    }

    fn pointer<T>(&mut self, at: usize, pointer: *const T) {
        self.bytes(at, &(pointer as u64).to_ne_bytes());
    }

    fn call(&mut self, command: i64) -> io::Result<i32> {
        // SAFETY: a block of the size given; what it points to outlives the call, and is as large as the command reads or
        // writes.
        let answer = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
    }

    fn open(&mut self, command: i64) -> io::Result<OwnedFd> {
        // SAFETY: the descriptor was just opened and is nobody else's.
        self.call(command).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
