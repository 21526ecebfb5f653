//! Paths of the checkout, and the environment of the builds that xtask starts.

use anyhow::Result;
use std::path::PathBuf;
use std::process::Command;

/// The checkout that this xtask was built from.
pub(crate) fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// The workspace's target directory, independent of `CARGO_TARGET_DIR`: `netpath/build.rs`, the tests and the demo find the
/// object and the binary there whatever the caller's environment.
pub(crate) fn target() -> PathBuf {
    root().join("target")
}

/// Programs built by `setup`.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// The object that the netpath binary embeds.
pub(crate) fn object() -> PathBuf {
    target().join("ebpf/netpath-ebpf.o")
}

/// The object for networks without IPv6.
pub(crate) fn object_v4() -> PathBuf {
    target().join("ebpf/netpath-ebpf-v4.o")
}

/// The object with the program that leads DNS queries.
pub(crate) fn object_dns() -> PathBuf {
    target().join("ebpf/netpath-ebpf-dns.o")
}

/// Output of the programs that xtask starts.
pub(crate) fn logs() -> PathBuf {
    target().join("xtask")
}

/// The cargo that runs xtask, or the one in PATH; it builds into [`target`], whatever the caller's configuration.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("CARGO_TARGET_DIR", target());
    command
}

/// Removes the variables of an outer cargo or rustup, so that a build with another toolchain sees only its own settings.
/// Network settings (registry, proxy, offline) and rustup's own stay: they are the user's.
pub(crate) fn clean_environment(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let kept = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTR", "CARGO_SOURCE_", "RUSTUP_"];
        let kept = kept.iter().any(|p| name.starts_with(p)) && name != "RUSTUP_TOOLCHAIN";
        let of_a_build = ["CARGO", "RUST", "LLVM_", "LD_LIBRARY_PATH", "TARGET"].iter().any(|p| name.starts_with(p));
        if of_a_build && !kept {
            command.env_remove(name);
        }
    }
    command
}

/// The path of a built program.
pub(crate) fn built(name: &str) -> PathBuf {
    target().join("debug").join(name)
}

/// Builds netpath in the release profile, for measurements. Returns the binary.
///
/// # Errors
/// The build fails.
pub(crate) fn released() -> Result<PathBuf> {
    crate::test::run_cargo(cargo().args(["build", "--quiet", "--release", "-p", "netpath", "--bin", "netpath"]))?;
    Ok(target().join("release/netpath"))
}

/// Version of the netpath of this checkout and, where git is available, the commit. Untracked files are ignored.
pub(crate) fn version() -> String {
    let git = |arguments: &[&str]| {
        let out = Command::new("git").current_dir(root()).args(arguments).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let number = env!("CARGO_PKG_VERSION");
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return format!("netpath {number}") };
    let is_clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| changes.is_empty());
    format!("netpath {number} ({commit}{})", if is_clean { "" } else { "-dirty" })
}
