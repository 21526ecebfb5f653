//! The object as netpath loads it on this kernel, and the verifier's reason for rejecting a program.

use anyhow::{Context, Result};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use netpath_common::layout::{METERS, global, name};
use std::process::Command;
use std::sync::OnceLock;

/// The built object.
///
/// # Errors
/// It is missing.
pub fn bytes() -> Result<Vec<u8>> {
    read(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/netpath-ebpf.o"))
}

/// The object for networks without IPv6.
///
/// # Errors
/// It is missing.
pub fn bytes_for_v4() -> Result<Vec<u8>> {
    read(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/ebpf/netpath-ebpf-v4.o"))
}

fn read(path: &str) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("cannot read {path}: cargo xtask build-ebpf makes it"))
}

/// The object, with nothing loaded yet; logging off. With `NETPATH_VERIFIER` set the verifier prints its log. With an empty
/// `level`, aya would hide the kernel's message behind the error of its retry.
///
/// # Errors
/// It is missing, or aya rejects it.
pub fn load(level: VerifierLogLevel) -> Result<Ebpf> {
    loaded(level, &bytes()?, 0)
}

/// The same for networks without IPv6.
///
/// # Errors
/// As [`load`].
pub fn load_for_v4(level: VerifierLogLevel) -> Result<Ebpf> {
    loaded(level, &bytes_for_v4()?, 1)
}

fn loaded(level: VerifierLogLevel, object: &[u8], v4_only: u8) -> Result<Ebpf> {
    let wanted = std::env::var_os("NETPATH_VERIFIER").is_some();
    static HAS: OnceLock<[u8; 2]> = OnceLock::new();
    let [fib_source, csum_ipv6] = HAS.get_or_init(|| ["fib_source", "csum_ipv6"].map(|f| u8::from(kernel_has(f))));
    EbpfLoader::new()
        .verifier_log_level(if wanted { VerifierLogLevel::DEBUG } else { level })
        .override_global(global::LOG_LEVEL, &0u8, true)
        .override_global(global::FIB_SRC, fib_source, true)
        .override_global(global::CSUM_IPV6, csum_ipv6, true)
        .override_global(global::V4_ONLY, &v4_only, true)
        .map_max_entries(name::METER, METERS)
        .load(object)
        .context("cannot load the object's maps")
}

/// Loads a program, with retries: the verifier returns EAGAIN while a signal is pending, such as for an ended child of another
/// test.
///
/// # Errors
/// The verifier's error, or a program type that netpath does not have.
pub fn accept(program: &mut Program) -> Result<(), ProgramError> {
    let mut once = || match program {
        Program::SchedClassifier(p) => p.load(),
        Program::CgroupSockAddr(p) => p.load(),
        Program::SkLookup(p) => p.load(),
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

/// The verifier's reason for rejecting a program: the end of its log.
pub fn explained(name: &str) -> String {
    const LINES: usize = 30;
    let again = || -> Result<()> {
        let mut ebpf = load(VerifierLogLevel::DEBUG | VerifierLogLevel::STATS)?;
        Ok(accept(ebpf.program_mut(name).context("no such program")?)?)
    };
    let Err(e) = again() else { return "but it can be loaded again".to_owned() };
    let text = format!("{e}");
    let lines: Vec<&str> = text.lines().collect();
    format!("the end of the verifier's log:\n{}", lines[lines.len().saturating_sub(LINES)..].join("\n"))
}

/// Whether `netpath doctor` reports a feature; true where the program under test has no doctor.
fn kernel_has(feature: &str) -> bool {
    let asked = || -> Result<bool> {
        let out = Command::new(crate::netavark::binary()?).args(["doctor", "--json"]).output()?;
        let report: serde_json::Value = serde_json::from_slice(&out.stdout)?;
        let probes = report["probes"].as_array().context("no probes")?;
        Ok(probes.iter().any(|p| p["name"] == feature && p["answer"] == "yes"))
    };
    asked().unwrap_or(true)
}
