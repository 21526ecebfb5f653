//! Where things are in the checkout, and the environment in which other builds are started.

use std::path::PathBuf;
use std::process::Command;

/// The checkout that this xtask was built from.
pub fn root() -> PathBuf {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    here.parent().map(PathBuf::from).unwrap_or(here)
}

/// The workspace's target directory, whatever `CARGO_TARGET_DIR` says: `netpath/build.rs`, the tests and the demo look
/// for the object and the binary in a place that does not depend on the caller's environment.
pub fn target() -> PathBuf {
    root().join("target")
}

/// Programs that `setup` built for itself.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// The object that the netpath binary carries.
pub fn object() -> PathBuf {
    target().join("ebpf/netpath-ebpf.o")
}

/// Where the output of the programs that we start goes.
pub fn logs() -> PathBuf {
    target().join("xtask")
}

/// The cargo that runs us, or the one in PATH; it builds into [`target`], wherever the caller has other builds go.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).env("CARGO_TARGET_DIR", target());
    command
}

/// Takes away what an outer cargo or rustup has put into the environment, so that a build with another toolchain sees
/// its own settings alone. Network settings (registry, proxy, offline) and
/// rustup's own are the user's and stay.
pub fn clean_environment(command: &mut Command) -> &mut Command {
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
