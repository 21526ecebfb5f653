//! Selects the compiler and the linker that build the eBPF programs.
//!
//! `core` has to be built for the BPF target, so a compiler counts only with its library source: (a) rustup's nightly with
//! `rust-src`, (b) a distribution's rustc with its library source, which accepts `-Z` with `RUSTC_BOOTSTRAP`. The linker reads
//! the compiler's bitcode, so its LLVM must not be older than the compiler's.

use crate::{need, workspace};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The minimum compiler of the programs (`rust-version` of the workspace).
pub(crate) const OLDEST_RUST: (u32, u32) = (1, 88);

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Compiler {
    pub rustc: PathBuf,
    pub cargo: PathBuf,
    /// The full output of `rustc -vV`.
    pub version: String,
    /// Major version.
    pub llvm: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Linker {
    pub path: PathBuf,
    /// Major version of the LLVM it is linked against.
    pub llvm: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Toolchain {
    pub compiler: Compiler,
    pub linker: Linker,
}

impl Compiler {
    /// The first line of its version, shown to users.
    pub(crate) fn name(&self) -> &str {
        self.version.lines().next().unwrap_or("rustc")
    }

    /// The host triple as cargo spells it in names of environment variables.
    pub(crate) fn host_as_variable(&self) -> String {
        field(&self.version, "host:").unwrap_or_default().to_uppercase().replace('-', "_")
    }

    fn at(rustc: &Path) -> Option<Self> {
        // In rustup and in distributions `bin` lies in the sysroot; asking rustc would start a process for each.
        let sysroot = rustc.parent()?.parent()?;
        let source = sysroot.join("lib/rustlib/src/rust/library/core/src/lib.rs");
        let cargo = rustc.with_file_name("cargo");
        if !source.exists() || !cargo.exists() {
            return None;
        }
        let version = output(rustc, &["-vV"])?;
        let (rust, llvm) = (numbers(field(&version, "release:")?), numbers(field(&version, "LLVM version:")?).0);
        (rust >= OLDEST_RUST).then_some(Self { rustc: rustc.to_owned(), cargo, version, llvm })
    }
}

impl Toolchain {
    /// The best compatible pair on this machine.
    pub(crate) fn find() -> Option<Self> {
        let linkers = linkers();
        compilers().into_iter().find_map(|compiler| {
            let linker = linkers.iter().find(|l| l.llvm >= compiler.llvm)?.clone();
            Some(Self { compiler, linker })
        })
    }
}

/// Compilers that can build `core` for BPF, best first.
pub(crate) fn compilers() -> Vec<Compiler> {
    let home = std::env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(".rustup")));
    let mut rustup: Vec<PathBuf> = home
        .and_then(|h| std::fs::read_dir(h.join("toolchains")).ok())
        .map(|dir| dir.flatten().map(|e| e.path()).collect())
        .unwrap_or_default();
    // "nightly-…" without a date first, then dated nightlies, newest first, then the rest.
    rustup.sort_by_key(|p| {
        let name = p.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dated = name.strip_prefix("nightly-").is_some_and(|r| r.starts_with(|c: char| c.is_ascii_digit()));
        (!name.starts_with("nightly"), dated, std::cmp::Reverse(name))
    });
    let rustup = rustup.into_iter().map(|p| p.join("bin/rustc"));
    // A rustc beside a rustup is rustup's proxy, which selects a toolchain by the working directory.
    let distribution = need::in_path("rustc").filter(|p| !p.with_file_name("rustup").exists());
    let mut found: Vec<Compiler> = Vec::new();
    for compiler in rustup.chain(distribution).filter_map(|p| Compiler::at(&p)) {
        if !found.iter().any(|f| f.version == compiler.version) {
            found.push(compiler);
        }
    }
    found
}

fn linkers() -> Vec<Linker> {
    let own = workspace::tools().join("bin/bpf-linker");
    std::iter::once(own)
        .chain(need::in_path("bpf-linker"))
        .filter_map(|path| {
            output(&path, &["--version"])?;
            let llvm = llvm_of_file(&path)?;
            Some(Linker { path, llvm })
        })
        .collect()
}

/// Library names are near the beginning of a program; the rest of a large one is read only if they are not found there.
fn llvm_of_file(path: &Path) -> Option<u32> {
    use std::io::Read;
    let mut file = std::fs::File::open(path).ok()?;
    let mut beginning = Vec::new();
    file.by_ref().take(1 << 20).read_to_end(&mut beginning).ok()?;
    llvm_of(&beginning).or_else(|| {
        file.read_to_end(&mut beginning).ok()?;
        llvm_of(&beginning)
    })
}

/// The major version in the name of the LLVM library that a program is linked against (`libLLVM.so.22.1`,
/// `libLLVM-19.so.1`). `None`: statically linked, or not LLVM at all.
fn llvm_of(program: &[u8]) -> Option<u32> {
    const NAME: &[u8] = b"libLLVM";
    program.windows(NAME.len()).enumerate().filter(|(_, w)| *w == NAME).find_map(|(at, _)| {
        let rest = program.get(at + NAME.len()..)?;
        let rest = rest.strip_prefix(b".so.").or_else(|| rest.strip_prefix(b"-"))?;
        let digits: Vec<u8> = rest.iter().copied().take_while(u8::is_ascii_digit).collect();
        String::from_utf8(digits).ok()?.parse().ok()
    })
}

/// `llvm-config` of this major version.
pub(crate) fn llvm_config(major: u32) -> Option<PathBuf> {
    let versioned = PathBuf::from(format!("/usr/lib/llvm-{major}/bin/llvm-config"));
    let names = [format!("llvm-config-{major}"), format!("llvm-config{major}"), "llvm-config".to_owned()];
    std::iter::once(versioned)
        .chain(names.iter().filter_map(|n| need::program(n)))
        .filter(|p| p.exists())
        .find(|p| output(p, &["--version"]).is_some_and(|v| numbers(&v).0 == major))
}

fn output(program: &Path, args: &[&str]) -> Option<String> {
    let mut command = Command::new(program);
    let out = workspace::clean_environment(command.args(args)).output().ok()?;
    out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
}

fn field<'a>(version: &'a str, name: &str) -> Option<&'a str> {
    version.lines().find_map(|l| l.strip_prefix(name)).map(str::trim)
}

/// The first two numbers of a version.
pub(crate) fn numbers(version: &str) -> (u32, u32) {
    let mut parts = version.trim().split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_linker_is_read_from_the_library_it_needs() {
        assert_eq!(Some(22), llvm_of(b"\0libc.so.6\0libLLVM.so.22.1\0"));
        assert_eq!(Some(19), llvm_of(b"\0libLLVM-19.so.1\0"));
        assert_eq!(Some(21), llvm_of(b"see libLLVM for more\0libLLVM.so.21.1-rust-1.91.0-stable\0"));
        assert_eq!(None, llvm_of(b"\0libc.so.6\0"));
    }

    #[test]
    fn versions_compare_by_number_and_not_by_text() {
        assert!(numbers("1.100.0") > numbers("1.96.0"));
        assert_eq!((1, 97), numbers("1.97.0-nightly"));
        assert_eq!((22, 1), numbers("22.1.8\n"));
    }

    #[test]
    fn fields_of_the_version_are_found() {
        let text = "rustc 1.96.0 (built)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(Some("22.1.8"), field(text, "LLVM version:"));
        assert_eq!(None, field(text, "host:"));
    }
}
