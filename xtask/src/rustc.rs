//! xtask as a rustc wrapper, while cargo builds the eBPF programs.
//!
//! Cargo derives `-C metadata`, and with it every symbol, from the directory of a crate outside the workspace root, such as
//! netpath-common seen from netpath-ebpf. The wrapper replaces it by the crate's name, so that the object does not depend on
//! the checkout's path. Obsolete once cargo hashes such paths relative to a root. The checkout's own paths are remapped here
//! and not by RUSTFLAGS, which would rebuild `core` for every checkout.

use anyhow::{Result, bail};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Set for a cargo that calls xtask as its `RUSTC_WRAPPER`; holds the checkout's directory.
pub(crate) const ENVIRONMENT: &str = "NETPATH_XTASK_IS_RUSTC";
const OUR_CRATES: [&str; 2] = ["netpath_common", "netpath_ebpf"];

/// Replaces this process by the rustc named in the first argument.
///
/// # Errors
/// rustc cannot be started.
pub(crate) fn become_rustc(arguments: Vec<String>) -> Result<std::process::ExitCode> {
    let Some((rustc, arguments)) = arguments.split_first() else {
        bail!("{ENVIRONMENT} is set, but no rustc is named")
    };
    let root = std::env::var(ENVIRONMENT).unwrap_or_default();
    let error = Command::new(rustc).args(independent_of(&root, arguments)).exec();
    bail!("cannot start {rustc}: {error}");
}

fn independent_of(root: &str, arguments: &[String]) -> Vec<String> {
    let name = arguments.windows(2).find(|w| w[0] == "--crate-name").map(|w| w[1].clone());
    let Some(name) = name.filter(|n| OUR_CRATES.contains(&n.as_str())) else { return arguments.to_vec() };
    let metadata = |a: &String| if a.starts_with("metadata=") { format!("metadata={name}") } else { a.clone() };
    let mapped = format!("--remap-path-prefix={root}=/netpath");
    arguments.iter().map(metadata).chain([mapped]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(line: &str) -> String {
        independent_of("/home/me/netpath", &line.split(' ').map(str::to_owned).collect::<Vec<_>>()).join(" ")
    }

    #[test]
    fn only_our_crates_are_built_another_way() {
        assert_eq!(
            "--crate-name netpath_ebpf -C metadata=netpath_ebpf -o x --remap-path-prefix=/home/me/netpath=/netpath",
            replaced("--crate-name netpath_ebpf -C metadata=12 -o x")
        );
        assert_eq!("--crate-name core -C metadata=12", replaced("--crate-name core -C metadata=12"));
        assert_eq!("-vV", replaced("-vV"));
    }
}
