//! Prepares a machine for builds and tests. Idempotent: installed parts are left alone.
//!
//! Installs Debian packages and, below `target/tools`, a bpf-linker, and unpacks neighbours below `target/neighbours`; nothing
//! else. On other distributions it lists the missing parts and stops.

use crate::need::{BUILD, ENGINE, Need, TEST};
use crate::steps::{Steps, seconds};
use crate::toolchain::{self, Compiler, OLDEST_RUST, Toolchain};
use crate::{apt, neighbours, workspace};
use anyhow::{Result, bail};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// The bpf-linker release to install, and the newest LLVM that it supports.
const LINKER_VERSION: &str = "0.13.0";
const LINKER_NEWEST_LLVM: u32 = 23;

/// A group of requirements; each verb names those it needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// Compilers and bpf-linker.
    Toolchain,
    /// Programs that the tests and the demo call.
    Tests,
    /// A real Podman.
    Engine,
    /// Other users of a host's netfilter: firewalld, Docker, ufw.
    Neighbours,
}

pub(crate) fn run() -> Result<ExitCode> {
    let begun = Instant::now();
    let parts = [Part::Toolchain, Part::Tests, Part::Engine, Part::Neighbours];
    let found = Toolchain::find();
    let did = ensure_with(&parts, found.as_ref())?;
    if let Some(t) = if did { Toolchain::find() } else { found } {
        println!("eBPF compiler  {} ({})", t.compiler.name(), t.compiler.rustc.display());
        println!("bpf-linker     LLVM {} ({})", t.linker.llvm, t.linker.path.display());
    }
    println!("test programs  {} of {0} there", TEST.len() + ENGINE.len());
    println!("neighbours     {}", neighbours::state());
    let state = if did { "ready now" } else { "everything was there already" };
    println!("setup: {state}, {}\n  next: cargo xtask test, or cargo xtask demo", seconds(begun.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// Installs the missing parts of these groups; silent if none is missing. `true`: something was installed.
///
/// # Errors
/// Not root, no apt, or an installation fails.
pub(crate) fn ensure(parts: &[Part]) -> Result<bool> {
    ensure_with(parts, Toolchain::find().as_ref())
}

fn ensure_with(parts: &[Part], toolchain: Option<&Toolchain>) -> Result<bool> {
    let mut needs: Vec<&Need> = BUILD.iter().collect();
    if parts.contains(&Part::Tests) {
        needs.extend(TEST);
    }
    if parts.contains(&Part::Engine) {
        needs.extend(ENGINE);
    }
    let missing: Vec<&Need> = needs.into_iter().filter(|n| !n.is_met()).collect();
    let no_toolchain = parts.contains(&Part::Toolchain) && toolchain.is_none();
    let next_neighbours = || neighbours::missing().filter(|_| parts.contains(&Part::Neighbours));
    if missing.is_empty() && !no_toolchain && next_neighbours().is_none() {
        return Ok(false);
    }
    let present = if no_toolchain { toolchain::compilers() } else { Vec::new() };
    let for_toolchain = match first_with_llvm(&present) {
        _ if !no_toolchain => 0,
        Some(_) => 2, // LLVM, bpf-linker
        None => 3,    // and a compiler first
    };
    let mut steps = Steps::of(usize::from(!missing.is_empty()) + for_toolchain);
    if !missing.is_empty() {
        install_needs(&mut steps, &missing)?;
    }
    if no_toolchain {
        install_toolchain(&mut steps, &present)?;
    }
    // Computed again each time: the first may have fetched the package lists that the next lookup needs.
    while let Some(tree) = next_neighbours() {
        neighbours::unpack(tree, &mut steps)?;
    }
    Ok(true)
}

/// Installs the packages of missing requirements.
///
/// # Errors
/// No apt, not root, or `apt-get` fails.
pub(crate) fn install_needs(steps: &mut Steps, missing: &[&Need]) -> Result<()> {
    let names: Vec<_> = missing.iter().map(|n| n.what).collect();
    if !apt::is_here() {
        bail!(
            "this machine lacks: {}\n  next: install them with your distribution's package manager",
            names.join(", ")
        );
    }
    let packages: Vec<_> = missing.iter().map(|n| n.apt.to_owned()).collect();
    println!("missing: {}", names.join(", "));
    apt::install(steps, &format!("packages {}", packages.join(" ")), &packages)?;
    match missing.iter().find(|n| !n.is_met()) {
        Some(still) => bail!("package {} is installed, but {} is still not found", still.apt, still.what),
        None => Ok(()),
    }
}

fn install_toolchain(steps: &mut Steps, present: &[Compiler]) -> Result<()> {
    if let Some(found) = first_with_llvm(present) {
        return install_linker(steps, &found);
    }
    if !apt::is_here() {
        bail!("{}", both_ways());
    }
    if install_compiler(steps)? {
        let now = toolchain::compilers();
        if let Some(found) = first_with_llvm(&now) {
            return install_linker(steps, &found);
        }
    }
    bail!("{}", both_ways())
}

/// A compiler, and the major version of an LLVM that reads its bitcode.
struct Pair {
    compiler: Compiler,
    llvm: u32,
}

/// The first compiler for which an LLVM is installed or available.
fn first_with_llvm(compilers: &[Compiler]) -> Option<Pair> {
    compilers.iter().find_map(|compiler| {
        let newest = LINKER_NEWEST_LLVM.max(compiler.llvm);
        let mut majors = compiler.llvm..=newest;
        let to_be_had = |m: &u32| toolchain::llvm_config(*m).is_some() || has_llvm_package(*m);
        majors.find(to_be_had).map(|llvm| Pair { compiler: compiler.clone(), llvm })
    })
}

fn has_llvm_package(major: u32) -> bool {
    apt::is_here() && apt::candidate(&format!("llvm-{major}-dev")).is_some()
}

/// Installs the distribution's rustc with its library source and clippy. `false`: none is new enough.
fn install_compiler(steps: &mut Steps) -> Result<bool> {
    const SETS: [[&str; 4]; 2] =
        [["rustc-web", "cargo-web", "rust-web-src", "rust-web-clippy"], ["rustc", "cargo", "rust-src", "rust-clippy"]];
    let is_new = |p: &&str| apt::candidate(p).is_some_and(|v| apt::upstream(&v) >= OLDEST_RUST);
    // Without clippy the check of the programs is skipped.
    let usable = |set: &&[&str; 4]| set[..3].iter().all(is_new);
    if !SETS.iter().any(|s| usable(&s)) {
        apt::update(steps)?;
    }
    let Some(set) = SETS.iter().find(usable) else { return Ok(false) };
    let packages: Vec<_> = set.iter().filter(|p| is_new(p)).map(|&p| p.to_owned()).collect();
    apt::install(steps, &format!("eBPF compiler: packages {}", packages.join(" ")), &packages)?;
    Ok(true)
}

fn install_linker(steps: &mut Steps, pair: &Pair) -> Result<()> {
    let what = format!("LLVM {}", pair.llvm);
    if !apt::is_here() {
        steps.nothing_to_do(&what);
    } else {
        let mut packages = vec!["libzstd-dev".to_owned(), "zlib1g-dev".to_owned(), "g++".to_owned()];
        if toolchain::llvm_config(pair.llvm).is_none() {
            packages.push(format!("llvm-{}-dev", pair.llvm));
        }
        packages.retain(|p| !apt::is_installed(p));
        if packages.is_empty() {
            steps.nothing_to_do(&what);
        } else {
            apt::install(steps, &format!("{what}: packages {}", packages.join(" ")), &packages)?;
        }
    }
    let Some(config) = toolchain::llvm_config(pair.llvm) else {
        bail!("llvm-config of LLVM {} is not found, which bpf-linker is built against", pair.llvm);
    };
    let bin = config.parent().map(Path::to_owned).unwrap_or_default();
    let path = std::env::join_paths(
        std::iter::once(bin.clone()).chain(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())),
    )?;
    let build = workspace::tools().join("build");
    let mut install = workspace::cargo();
    workspace::clean_environment(&mut install);
    // The rustc beside this cargo: the one in PATH may be rustup's proxy, which would select another toolchain.
    let cargo = install.get_program().to_owned();
    let rustc = Path::new(&cargo).with_file_name("rustc");
    if rustc.is_absolute() && rustc.exists() {
        install.env("RUSTC", rustc);
    }
    install.args(["install", "bpf-linker", "--locked", "--force", "--no-default-features", "--features"]);
    install.arg(format!("llvm-{}", pair.llvm)).arg("--root").arg(workspace::tools());
    if pair.llvm <= LINKER_NEWEST_LLVM {
        install.args(["--version", LINKER_VERSION]);
    }
    install.env("CARGO_TARGET_DIR", &build).env("PATH", path).env("CARGO_PROFILE_RELEASE_DEBUG", "0");
    if let Some(prefix) = bin.parent() {
        install.env("LLVM_PREFIX", prefix);
    }
    steps.run(&format!("bpf-linker with LLVM {}", pair.llvm), &mut install)?;
    let _ = std::fs::remove_dir_all(build);
    match Toolchain::find() {
        Some(_) => Ok(()),
        None => bail!("bpf-linker is built, but does not serve {}", pair.compiler.name()),
    }
}

/// The two ways to get a compiler for the programs, shown to users.
pub(crate) fn both_ways() -> String {
    let (major, minor) = OLDEST_RUST;
    format!(
        "no compiler for the eBPF programs: rustc {major}.{minor} or newer with its library source is needed, and bpf-linker \
         with an LLVM that is not older than the compiler's\n  \
         next: rustup toolchain install nightly --component rust-src    (then LLVM's development files, and: cargo xtask setup)\n  \
         or:   the distribution's rustc, cargo and rust-src packages    (Debian: cargo xtask setup installs them)"
    )
}
