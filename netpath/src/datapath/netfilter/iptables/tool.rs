//! Finds, selects and runs the iptables programs of the host.

use super::snapshot::Snapshot;
use crate::datapath::netfilter::nfnetlink;
use crate::datapath::netfilter::rules::Family;
use crate::model::error::{Context, Error, Result};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Seconds to wait for another program that holds the lock of the legacy tables.
const LOCK_WAIT_S: u32 = 30;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Backend {
    /// Rules live in nf_tables.
    Nft,
    Legacy,
}

/// A pair of iptables-save and iptables-restore.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Tool {
    pub family: Family,
    pub backend: Backend,
    save: PathBuf,
    restore: PathBuf,
}

/// Name of the programs of a family.
pub(super) fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "iptables",
        Family::V6 => "ip6tables",
    }
}

/// The pairs on this host, at most one for each backend. The first is the administrator's choice (alternatives).
pub(super) fn find(family: Family) -> Vec<Tool> {
    let name = name(family);
    let mut dirs: Vec<PathBuf> =
        std::env::var_os("PATH").map(|p| std::env::split_paths(&p).collect()).unwrap_or_default();
    dirs.extend(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from));
    let mut tools: Vec<Tool> = Vec::new();
    for variant in ["", "-nft", "-legacy"] {
        let program = |verb: &str| dirs.iter().map(|d| d.join(format!("{name}{variant}-{verb}"))).find(|p| p.is_file());
        let (Some(save), Some(restore)) = (program("save"), program("restore")) else { continue };
        let backend = backend(&restore);
        if tools.iter().all(|t| t.backend != backend) {
            tools.push(Tool { family, backend, save, restore });
        }
    }
    tools
}

/// Determined by the name of the file behind the alternatives' links, else by `--version`.
fn backend(program: &Path) -> Backend {
    let real = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    let name = real.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.contains("nft") {
        return Backend::Nft;
    }
    if name.contains("legacy") {
        return Backend::Legacy;
    }
    match Command::new(program).arg("--version").stdin(Stdio::null()).output() {
        Ok(out) if String::from_utf8_lossy(&out.stdout).contains("nf_tables") => Backend::Nft,
        _ => Backend::Legacy,
    }
}

/// Whether the kernel has tables of legacy iptables in this namespace.
pub(super) fn has_legacy_tables(family: Family) -> bool {
    let names = match family {
        Family::V4 => "/proc/thread-self/net/ip_tables_names",
        Family::V6 => "/proc/thread-self/net/ip6_tables_names",
    };
    std::fs::read_to_string(names).is_ok_and(|n| !n.trim().is_empty())
}

/// The error of a host without the tools.
pub(super) fn missing(family: Family) -> Error {
    let name = name(family);
    Error::new(format!("cannot find {name}-save and {name}-restore"))
        .next("install the package iptables, which has the tools of both families")
}

/// The tool to use, and its tables. Of both backends, the one with netpath's rules; otherwise the preferred one, unless only
/// the other is in use.
///
/// # Errors
/// There is no tool, or the kernel refuses its request.
pub(super) fn choose(tools: &[Tool], family: Family) -> Result<(&Tool, Snapshot)> {
    let Some((first, others)) = tools.split_first() else { return Err(missing(family)) };
    let present = match first.save() {
        Ok(present) => present,
        // The administrator's choice is not the kernel's.
        Err(e) if nfnetlink::generation().is_err() => {
            return others.iter().find_map(|other| Some((other, other.save().ok()?))).ok_or(e);
        }
        Err(e) => return Err(e),
    };
    if present.has_own_rules() {
        return Ok((first, present));
    }
    for other in others.iter().filter(|t| t.may_be_used()) {
        // A backend that the kernel does not support is not in use.
        let Ok(tables) = other.save() else { continue };
        if tables.has_own_rules() || (tables.is_used() && !present.is_used()) {
            return Ok((other, tables));
        }
    }
    Ok((first, present))
}

impl Tool {
    /// `false` if this backend certainly has no tables in this namespace. Runs no program.
    pub(super) fn may_be_used(&self) -> bool {
        match self.backend {
            Backend::Nft => true,
            Backend::Legacy => has_legacy_tables(self.family),
        }
    }

    /// All existing tables. Creates none.
    ///
    /// # Errors
    /// The kernel refuses the request, or the program cannot be run.
    pub(super) fn save(&self) -> Result<Snapshot> {
        self.save_text().map(|text| Snapshot::parse(&text))
    }

    /// As the program prints them.
    ///
    /// # Errors
    /// As [`Tool::save`].
    pub(super) fn save_text(&self) -> Result<String> {
        let what = || format!("cannot read the rules with {}", self.save.display());
        let out = run(Command::new(&self.save), None).context(what)?;
        if !out.status.success() {
            return Err(failed(what(), &out));
        }
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Commits a script. Chains that it does not name stay unchanged.
    ///
    /// # Errors
    /// A line is refused; tables before that line may be written.
    pub(super) fn restore(&self, script: &str) -> Result<()> {
        self.run_restore(script, &[], format!("cannot write the rules with {}", self.restore.display()))
    }

    /// Tests whether the kernel supports NAT in this family. Writes nothing.
    ///
    /// # Errors
    /// The missing feature.
    pub(super) fn test(&self) -> Result<()> {
        let script = "*nat\n:NETPATH_TEST - [0:0]\n-A NETPATH_TEST -j MASQUERADE\nCOMMIT\n";
        self.run_restore(script, &["--test"], format!("cannot translate addresses with {}", self.restore.display()))
    }

    fn run_restore(&self, script: &str, more: &[&str], what: String) -> Result<()> {
        let mut command = Command::new(&self.restore);
        command.arg("--noflush").arg(format!("--wait={LOCK_WAIT_S}")).args(more);
        let out = run(command, Some(script)).context(|| what.clone())?;
        if out.status.success() {
            return Ok(());
        }
        tracing::debug!("refused script:\n{script}");
        Err(failed(what, &out))
    }
}

fn run(mut command: Command, input: Option<&str>) -> std::io::Result<Output> {
    match input {
        // Not a pipe: writing would fail if the program ends before it has read everything.
        Some(text) => command.stdin(memory_file(text)?),
        None => command.stdin(Stdio::null()),
    };
    command.env("LC_ALL", "C");
    // SAFETY: the closure makes only system calls with numbers; it neither allocates nor locks between fork and exec.
    unsafe {
        command.pre_exec(|| {
            // The program must not write after netpath was killed, since another command may hold the lock then.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        });
    }
    command.output()
}

fn memory_file(text: &str) -> std::io::Result<File> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    let mut file = File::from(memfd_create(c"netpath-rules", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

fn failed(what: String, out: &Output) -> Error {
    let stderr = String::from_utf8_lossy(&out.stderr);
    let lines: Vec<&str> = stderr.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with("Try `")).collect();
    Error::new(what).because(format!("{}: {}", out.status, lines.join("; ")))
}
