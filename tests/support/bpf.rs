//! Plain bpf(2), for programs of a few instructions that tests write themselves.

use anyhow::{Context, Result};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

// include/uapi/linux/bpf.h
pub const MAP_CREATE: i64 = 0;
pub const MAP_LOOKUP_ELEM: i64 = 1;
pub const MAP_UPDATE_ELEM: i64 = 2;
pub const PROG_LOAD: i64 = 5;
pub const OBJ_PIN: i64 = 6;
pub const PROG_TEST_RUN: i64 = 10;
pub const LINK_CREATE: i64 = 28;
pub const MAP_TYPE_ARRAY: u32 = 2;
pub const PROG_TYPE_SCHED_CLS: u32 = 3;
pub const PROG_TYPE_XDP: u32 = 6;
pub const XDP: u32 = 37;
/// include/uapi/linux/if_link.h, XDP_FLAGS_DRV_MODE: native.
pub const NATIVE: u32 = 1 << 2;
pub const TCX_INGRESS: u32 = 46;
pub const TCX_EGRESS: u32 = 47;
pub const BEFORE: u32 = 1 << 3;
pub const AFTER: u32 = 1 << 4;
pub const PSEUDO_MAP_VALUE: u8 = 2;

/// One instruction: code, registers (source above destination), offset, immediate value.
pub fn instruction(code: u8, registers: u8, offset: i16, value: i32) -> u64 {
    let ([a, b, c, d], [low, high]) = (value.to_le_bytes(), offset.to_le_bytes());
    u64::from_le_bytes([code, registers, low, high, a, b, c, d])
}

/// # Errors
/// The kernel refuses the program.
pub fn load(kind: u32, program: &[u64], name: &str) -> Result<OwnedFd> {
    let mut attr = Attr::default();
    attr.words(0, &[kind, program.len() as u32]);
    attr.pointer(8, program.as_ptr());
    attr.pointer(16, c"GPL".as_ptr());
    attr.bytes(48, name.as_bytes());
    attr.open(PROG_LOAD).context("cannot load a program")
}

/// Nanoseconds of one of `repeat` runs of a program over `packet`.
///
/// # Errors
/// The kernel refuses the run.
pub fn time(program: &OwnedFd, packet: &[u8], repeat: u32) -> Result<u32> {
    let mut attr = Attr::default();
    attr.words(0, &[program.as_raw_fd() as u32, 0, packet.len() as u32]);
    attr.pointer(16, packet.as_ptr());
    attr.words(32, &[repeat]);
    attr.call(PROG_TEST_RUN).context("cannot run a program")?;
    let [a, b, c, d] = [36, 37, 38, 39].map(|at| attr.0[at]);
    Ok(u32::from_ne_bytes([a, b, c, d]))
}

/// `union bpf_attr`.
#[repr(C, align(8))]
pub struct Attr([u8; 128]);

impl Default for Attr {
    fn default() -> Self {
        Self([0; 128])
    }
}

impl Attr {
    pub fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub fn words(&mut self, at: usize, words: &[u32]) {
        self.bytes(at, &words.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<_>>());
    }

    pub fn pointer<T>(&mut self, at: usize, pointer: *const T) {
        self.bytes(at, &(pointer as u64).to_ne_bytes());
    }

    /// # Errors
    /// The errno of bpf(2).
    pub fn call(&mut self, command: i64) -> io::Result<i32> {
        // SAFETY: a block of the size given; its pointers outlive the call, and their targets are as large as the command reads
        // or writes.
        let answer = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), self.0.len()) };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer as i32) }
    }

    /// A command that returns a descriptor.
    ///
    /// # Errors
    /// The errno of bpf(2).
    pub fn open(&mut self, command: i64) -> io::Result<OwnedFd> {
        // SAFETY: the descriptor was just opened and has no other owner.
        self.call(command).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
    }
}
