//! What the eBPF rung asks of a kernel: each probe tries the feature itself.

use super::tc_mode::TcMode;
use super::{cgroup, clsact, pins, sys};
use crate::datapath::probe::{Answer, Kernel, Probe};
use aya::programs::{ProgramError, ProgramType};
use aya::sys::{BpfHelper, is_helper_supported, is_program_supported};
use std::io;

pub(super) const BPF: Probe =
    Probe { name: "bpf", since: Kernel(4, 1), without: "netfilter is used instead", run: || answer(bpf()) };
pub(super) const BPFFS: Probe =
    Probe { name: "bpffs", since: Kernel(4, 4), without: "netfilter is used instead", run: || answer(bpffs()) };
pub(super) const TCX: Probe = Probe { name: "tcx", since: Kernel(6, 6), without: "clsact is used instead", run: tcx };
pub(super) const CLSACT: Probe =
    Probe { name: "clsact", since: Kernel(4, 5), without: "TCX alone can be used", run: clsact };
pub(super) const REDIRECT_PEER: Probe = Probe {
    name: "redirect_peer",
    since: Kernel(5, 10),
    without: "netfilter is used instead",
    run: || helper(BpfHelper::BPF_FUNC_redirect_peer),
};
pub(super) const REDIRECT_NEIGH: Probe = Probe {
    name: "redirect_neigh",
    since: Kernel(5, 10),
    without: "netfilter is used instead",
    run: || helper(BpfHelper::BPF_FUNC_redirect_neigh),
};
pub(super) const FIB_SOURCE: Probe = Probe {
    name: "fib_source",
    since: Kernel(6, 7),
    without: "masquerade takes the first address of the way out",
    run: || match fib_source() {
        Ok(true) => Answer::Yes,
        Ok(false) => Answer::No("bpf_fib_lookup refuses BPF_FIB_LOOKUP_SRC".into()),
        Err(e) => Answer::Unknown(e),
    },
};
pub(super) const CSUM_IPV6: Probe = Probe {
    name: "csum_ipv6",
    since: Kernel(6, 16),
    without: "IPv6 addresses are written by a helper that recomputes the checksum",
    run: || match csum_ipv6() {
        Ok(true) => Answer::Yes,
        Ok(false) => Answer::No("bpf_l4_csum_replace refuses BPF_F_IPV6".into()),
        Err(e) => Answer::Unknown(e),
    },
};
pub(super) const SOCK_ADDR: Probe = Probe {
    name: "sock_addr",
    since: Kernel(5, 8),
    without: "host-local clients are translated on lo",
    run: sock_addr,
};

pub(super) const ALL: [Probe; 9] =
    [BPF, BPFFS, REDIRECT_PEER, REDIRECT_NEIGH, TCX, CLSACT, FIB_SOURCE, CSUM_IPV6, SOCK_ADDR];

/// Whether the eBPF rung can be used.
///
/// # Errors
/// The first thing that is missing.
pub(super) fn usable() -> Result<(), String> {
    for probe in [BPF, BPFFS, REDIRECT_PEER, REDIRECT_NEIGH] {
        probe.require()?;
    }
    match TcMode::forced().map_err(|e| e.to_string())? {
        Some(TcMode::Tcx) => TCX.require(),
        Some(TcMode::Clsact) => CLSACT.require(),
        None => TCX.require().or_else(|no_tcx| CLSACT.require().map_err(|no_clsact| format!("{no_tcx}; {no_clsact}"))),
    }
}

/// Whether the kernel's FIB look-up tells the source address of a route; programs are loaded accordingly.
pub(super) fn fib_source_works() -> bool {
    fib_source().unwrap_or(false)
}

/// Whether checksums of IPv6 packets can be changed without a new sum over them; programs are loaded accordingly.
pub(super) fn csum_ipv6_works() -> bool {
    csum_ipv6().unwrap_or(false)
}

fn answer(result: io::Result<()>) -> Answer {
    match result {
        Ok(()) => Answer::Yes,
        Err(e) => Answer::No(e.to_string()),
    }
}

// Bytecode: opcode, registers (source << 4 | destination), offset, immediate, from the lowest byte up.
const fn insn(opcode: u8, registers: u8, offset: i16, immediate: i32) -> u64 {
    opcode as u64 | (registers as u64) << 8 | (offset as u16 as u64) << 16 | (immediate as u32 as u64) << 32
}
const EXIT: u64 = insn(0x95, 0, 0, 0);
const fn set(register: u8, value: i32) -> u64 {
    insn(0xb7, register, 0, value)
}
const fn call(helper: i32) -> u64 {
    insn(0x85, 0, 0, helper)
}

const PASS: [u64; 2] = [set(0, -1), EXIT];

fn bpf() -> io::Result<()> {
    sys::load_classifier(&PASS).map(drop)
}

fn bpffs() -> io::Result<()> {
    if pins::bpffs_is_mounted() {
        return Ok(());
    }
    if !std::path::Path::new(pins::BPFFS).is_dir() {
        return Err(io::Error::other(format!("{} does not exist", pins::BPFFS)));
    }
    pins::reachable().map_err(|e| io::Error::other(format!("{e}; {}", e.next_step().unwrap_or_default())))?;
    cgroup::open_context(c"bpf").map(drop)
}

fn helper(helper: BpfHelper) -> Answer {
    let is_interrupted = |e: &ProgramError| matches!(e, ProgramError::SyscallError(e) if e.io_error.raw_os_error() == Some(libc::EAGAIN));
    match sys::again_while(is_interrupted, || is_helper_supported(ProgramType::SchedClassifier, helper)) {
        Ok(true) => Answer::Yes,
        Ok(false) => Answer::No("the kernel does not know the helper".into()),
        Err(e) => Answer::Unknown(io::Error::other(e)),
    }
}

/// Calls `bpf_fib_lookup` for an address of `lo`: the flag is looked at when the program runs.
fn fib_source() -> io::Result<bool> {
    const FIB_LOOKUP: i32 = 69;
    const PARAMS: i16 = 64;
    const SRC: i32 = 1 << 4;
    let mut code = vec![insn(0xbf, 0x16, 0, 0)]; // r6 = r1, the packet
    code.push(set(1, 0));
    code.extend((1..=PARAMS / 8).map(|i| insn(0x7b, 0x1a, -8 * i, 0))); // *(u64 *)(r10 - 8i) = r1
    code.push(insn(0x72, 0x0a, -PARAMS, libc::AF_INET)); // params.family
    code.push(insn(0x62, 0x0a, -PARAMS + 8, 1)); // params.ifindex = lo
    code.push(insn(0xbf, 0x61, 0, 0)); // r1 = r6
    code.push(insn(0xbf, 0xa2, 0, 0)); // r2 = r10
    code.push(insn(0x07, 0x02, 0, -i32::from(PARAMS))); // r2 -= 64
    code.push(set(3, i32::from(PARAMS)));
    code.push(set(4, SRC));
    code.push(call(FIB_LOOKUP));
    code.push(EXIT); // its answer is the verdict
    let verdict = sys::run_once(sys::load_classifier(&code)?)? as i32;
    Ok(verdict != -libc::EINVAL)
}

/// Calls `bpf_l4_csum_replace` at an odd offset: it looks at the flags first (EINVAL), then at that (EFAULT).
fn csum_ipv6() -> io::Result<bool> {
    const L4_CSUM_REPLACE: i32 = 11;
    const PSEUDO_HDR_IPV6: i32 = 1 << 4 | 1 << 7;
    let code = [set(2, 1), set(3, 0), set(4, 0), set(5, PSEUDO_HDR_IPV6), call(L4_CSUM_REPLACE), EXIT];
    let verdict = sys::run_once(sys::load_classifier(&code)?)? as i32;
    Ok(verdict != -libc::EINVAL)
}

/// Runs in a namespace of its own, so that no interface of the host is touched.
fn apart<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let thread = std::thread::Builder::new().name("netpath-probe".into()).spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
        job()
    })?;
    thread.join().map_err(|_| io::Error::other("the probing thread died"))?
}

const LO: u32 = 1;

/// Asks for the programs at `lo`: attaching one would wait for all processors (`tcx_entry_sync()`), 15 ms and more.
fn tcx() -> Answer {
    match sys::tcx_query(LO) {
        Ok(()) => Answer::Yes,
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Answer::No("BPF_PROG_QUERY does not know the hook".into()),
        Err(e) => Answer::No(format!("{e} from BPF_PROG_QUERY")),
    }
}

fn clsact() -> Answer {
    let attached = apart(|| {
        let prog = sys::load_classifier(&PASS)?;
        clsact::probe(LO, prog)
    });
    match attached {
        Ok(()) => Answer::Yes,
        Err(e) => Answer::No(e.to_string()),
    }
}

fn sock_addr() -> Answer {
    match is_program_supported(ProgramType::CgroupSockAddr) {
        Ok(true) => {}
        Ok(false) => return Answer::No("the kernel does not know the program type".into()),
        Err(e) => return Answer::Unknown(io::Error::other(e)),
    }
    match cgroup::root() {
        Ok(_) => Answer::Yes,
        Err(e) => Answer::No(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytecode_is_laid_out_as_the_kernel_reads_it() {
        assert_eq!([0xb7, 0x00, 0, 0, 0xff, 0xff, 0xff, 0xff], set(0, -1).to_le_bytes());
        assert_eq!([0x7b, 0x1a, 0xf8, 0xff, 0, 0, 0, 0], insn(0x7b, 0x1a, -8, 0).to_le_bytes());
    }
}
