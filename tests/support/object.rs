//! The object as netpath loads it on this kernel, and why the kernel refuses a program of it.

use anyhow::{Context, Result};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use netpath_common::layout::global;
use std::process::Command;
use std::sync::OnceLock;

/// The object as it was built.
///
/// # Errors
/// It is missing.
pub fn bytes() -> Result<Vec<u8>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/netpath-ebpf.o");
    std::fs::read(path).with_context(|| format!("cannot read {path}: cargo xtask build-ebpf makes it"))
}

/// The object, with nothing loaded yet; logging off. With `NETPATH_VERIFIER` set the verifier gives its reasons. A `level` of
/// nothing would have aya hide what the kernel said behind an error of its own second try.
///
/// # Errors
/// It is missing, or not what aya takes.
pub fn load(level: VerifierLogLevel) -> Result<Ebpf> {
    let object = bytes()?;
    let wanted = std::env::var_os("NETPATH_VERIFIER").is_some();
    static HAS: OnceLock<[u8; 2]> = OnceLock::new();
    let [fib_source, csum_ipv6] = HAS.get_or_init(|| ["fib_source", "csum_ipv6"].map(|f| u8::from(kernel_has(f))));
    EbpfLoader::new()
        .verifier_log_level(if wanted { VerifierLogLevel::DEBUG } else { level })
        .override_global(global::LOG_LEVEL, &0u8, true)
        .override_global(global::FIB_SRC, fib_source, true)
        .override_global(global::CSUM_IPV6, csum_ipv6, true)
        .load(&object)
        .context("cannot load the object's maps")
}

/// Brings a program into the kernel. A few times: the verifier stops with EAGAIN where a signal is pending, as of another
/// test's child that has ended.
///
/// # Errors
/// The verifier's, or that it is of a kind that netpath does not have.
pub fn accept(program: &mut Program) -> Result<(), ProgramError> {
    let mut once = || match program {
        Program::SchedClassifier(p) => p.load(),
        Program::CgroupSockAddr(p) => p.load(),
        Program::Xdp(p) => p.load(),
        _ => Err(ProgramError::UnexpectedProgramType),
    };
    let is_interrupted = |e: &ProgramError| matches!(e, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EAGAIN));
    let mut tries = 5;
    loop {
        match once() {
            Err(e) if tries > 1 && is_interrupted(&e) => tries -= 1,
            other => return other,
        }
    }
}

/// Why the verifier refuses a program: the end of what it says.
pub fn explained(name: &str) -> String {
    const LINES: usize = 30;
    let again = || -> Result<()> {
        let mut ebpf = load(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)?;
        Ok(accept(ebpf.program_mut(name).context("no such program")?)?)
    };
    let Err(e) = again() else { return "but it can be loaded again".to_owned() };
    let text = format!("{e}");
    let lines: Vec<&str> = text.lines().collect();
    format!("the verifier's last words:\n{}", lines[lines.len().saturating_sub(LINES)..].join("\n"))
}

/// What `netpath doctor` says of a feature; true where the program under test has no such word.
fn kernel_has(feature: &str) -> bool {
    let asked = || -> Result<bool> {
        let out = Command::new(crate::netavark::binary()?).args(["doctor", "--json"]).output()?;
        let report: serde_json::Value = serde_json::from_slice(&out.stdout)?;
        let probes = report["probes"].as_array().context("no probes")?;
        Ok(probes.iter().any(|p| p["name"] == feature && p["answer"] == "yes"))
    };
    asked().unwrap_or(true)
}
