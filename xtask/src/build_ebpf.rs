//! Builds the eBPF programs and writes the object to the path that `netpath/build.rs` reads.
//!
//! The object depends on the sources and the toolchain alone: paths are remapped, and the caller's environment does not reach
//! the compiler (checked by `reproducible.rs`).

use crate::steps::seconds;
use crate::toolchain::Toolchain;
use crate::{rustc, setup, steps, v4_object, workspace};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

const TARGET: &str = "bpfel-unknown-none";
/// Increased when the build changes in a way that cargo cannot detect (`rustc.rs`).
const RECIPE: u32 = 4;

pub(crate) fn run() -> Result<ExitCode> {
    let begun = Instant::now();
    let changed = build()?;
    let object = workspace::object();
    let size = fs::metadata(&object)?.len();
    let what = if changed { "built" } else { "up to date" };
    println!("{} {what}: {size} bytes, {}", relative(&object).display(), seconds(begun.elapsed()));
    Ok(ExitCode::SUCCESS)
}

/// Brings the object, the one for networks without IPv6 and that of DNS up to date; `true` if one changed.
///
/// # Errors
/// No toolchain (the error names both ways to get one), or compiler errors on stderr.
pub(crate) fn build() -> Result<bool> {
    let toolchain = toolchain()?;
    let directory = workspace::target().join("ebpf");
    let built = build_in(&toolchain, &workspace::root(), &directory.join("cargo"), Stdio::inherit())?;
    let new = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let of_v4 = put(&workspace::object_v4(), &v4_object::of(&new)?)?;
    let dns = built.with_file_name("netpath-ebpf-dns");
    let dns = fs::read(&dns).with_context(|| format!("cannot read {}", dns.display()))?;
    let of_dns = put(&workspace::object_dns(), &dns)?;
    Ok(put(&workspace::object(), &new)? || of_v4 || of_dns)
}

/// Replaces the file, if it has other bytes.
fn put(object: &Path, new: &[u8]) -> Result<bool> {
    if fs::read(object).is_ok_and(|old| old == new) {
        return Ok(false);
    }
    // Renamed into place: a concurrent build of netpath sees either the old object or the new one.
    let partial = object.with_extension(format!("o.{}", std::process::id()));
    fs::write(&partial, new).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, object).with_context(|| format!("cannot write {}", object.display()))?;
    Ok(true)
}

/// The toolchain, installed first where possible.
pub(crate) fn toolchain() -> Result<Toolchain> {
    if let Some(found) = Toolchain::find() {
        return Ok(found);
    }
    setup::ensure(&[setup::Part::Toolchain])?;
    Toolchain::find().with_context(setup::both_ways)
}

/// Builds the programs of the checkout at `root`, with all output below `target_dir`; returns the object's path.
///
/// # Errors
/// The compilation fails.
pub(crate) fn build_in(toolchain: &Toolchain, root: &Path, target_dir: &Path, output: Stdio) -> Result<PathBuf> {
    let crate_dir = root.join("netpath-ebpf");
    if !crate_dir.join("Cargo.toml").exists() {
        bail!("{} is not there: this checkout has no eBPF programs", relative(&crate_dir).display());
    }
    forget_other_linker(toolchain, target_dir)?;
    let mut cargo = Command::new(&toolchain.compiler.cargo);
    for_bpf(cargo.arg("build"), toolchain, root, target_dir)?;
    let status = cargo.stdin(Stdio::null()).stdout(output).status();
    let status = status.with_context(|| format!("cannot start {}", toolchain.compiler.cargo.display()))?;
    if !status.success() {
        bail!("the eBPF programs were not built ({status}): {}", steps::line(&cargo));
    }
    Ok(target_dir.join(TARGET).join("release/netpath-ebpf"))
}

/// The findings of clippy in the programs, by the compiler that builds them. The inner `Err` says why it cannot run here.
///
/// # Errors
/// No toolchain, or clippy cannot be started.
pub(crate) fn clippy() -> Result<Result<Option<String>, String>> {
    let toolchain = toolchain()?;
    // Cargo prefers a subcommand of its home directory to the one beside the compiler, which is of the same version.
    let program = toolchain.compiler.rustc.with_file_name("cargo-clippy");
    if !program.exists() {
        let name = toolchain.compiler.name();
        return Ok(Err(format!("needs clippy of {name}: rustup component add clippy, or Debian's rust-web-clippy")));
    }
    let mut clippy = Command::new(program);
    let target_dir = workspace::target().join("ebpf/clippy");
    for_bpf(clippy.arg("clippy"), &toolchain, &workspace::root(), &target_dir)?;
    clippy.env("CARGO", &toolchain.compiler.cargo).args(["--", "-D", "warnings"]);
    let out = clippy.stdin(Stdio::null()).output().context("cannot start clippy of the eBPF compiler")?;
    let text = || format!("{}:\n{}", steps::line(&clippy), steps::tail(&String::from_utf8_lossy(&out.stderr), 80));
    Ok(Ok((!out.status.success()).then(text)))
}

/// Adds the arguments and the environment by which the compiler's cargo sees the programs of the checkout at `root`.
fn for_bpf(cargo: &mut Command, toolchain: &Toolchain, root: &Path, target_dir: &Path) -> Result<()> {
    workspace::clean_environment(cargo).current_dir(root.join("netpath-ebpf"));
    cargo.args(["--release", "-Z", "build-std=core", "--target", TARGET, "--quiet"]);
    cargo.arg("--target-dir").arg(target_dir);
    cargo.env("RUSTC", &toolchain.compiler.rustc).env("RUSTC_BOOTSTRAP", "1");
    let xtask = std::env::current_exe().context("cannot tell where xtask lies")?;
    cargo.env("RUSTC_WRAPPER", xtask).env(rustc::ENVIRONMENT, root);
    cargo.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &toolchain.linker.path);
    // Set explicitly: `.cargo/cc` has a different path in every checkout, which would rebuild the build scripts.
    cargo.env(format!("CARGO_TARGET_{}_LINKER", toolchain.compiler.host_as_variable()), "cc");
    cargo.env("CARGO_ENCODED_RUSTFLAGS", rust_flags().join("\u{1f}"));
    Ok(())
}

/// `--disable-expand-memcpy-in-order`: otherwise the linker expands copies of sixteen bytes into a byte loop. Debug information
/// is the source of BTF, which gives the kernel our types and lets the verifier quote lines. The flags are equal for every
/// checkout, so that artefacts of other crates are shared; our own paths are remapped by `rustc.rs`.
fn rust_flags() -> Vec<String> {
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let cargo_home = cargo_home.or_else(|| std::env::var_os("HOME").map(|h| Path::new(&h).join(".cargo")));
    let mut flags =
        ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Clink-arg=--disable-expand-memcpy-in-order"].map(String::from).to_vec();
    flags.extend(cargo_home.map(|home| format!("--remap-path-prefix={}=/cargo", home.display())));
    flags
}

/// Cargo does not detect a changed linker behind the same path, nor changed linker flags: remove the artefacts of our crates
/// then.
fn forget_other_linker(toolchain: &Toolchain, target_dir: &Path) -> Result<()> {
    let linker = &toolchain.linker;
    let meta = fs::metadata(&linker.path).with_context(|| format!("cannot read {}", linker.path.display()))?;
    let path = linker.path.display();
    let now = format!("recipe {RECIPE}, {path}, LLVM {}, {} {:?}\n", linker.llvm, meta.len(), meta.modified().ok());
    let stamp = target_dir.join("linker");
    if fs::read_to_string(&stamp).is_ok_and(|before| before == now) {
        return Ok(());
    }
    let fingerprints = target_dir.join(TARGET).join("release/.fingerprint");
    for entry in fs::read_dir(&fingerprints).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with("netpath-") {
            fs::remove_dir_all(entry.path()).with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    fs::create_dir_all(target_dir).with_context(|| format!("cannot create {}", target_dir.display()))?;
    fs::write(&stamp, now).with_context(|| format!("cannot write {}", stamp.display()))
}

pub(crate) fn relative(path: &Path) -> &Path {
    path.strip_prefix(workspace::root()).unwrap_or(path)
}
