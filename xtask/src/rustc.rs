//! xtask in the place of rustc, while cargo builds the eBPF programs.
//!
//! Cargo derives `-C metadata`, and with it every symbol, from the directory of a crate that lies outside the workspace
//! root, as netpath-common does seen from netpath-ebpf. Our own crates get their name instead, so that the object does
//! not depend on where the checkout lies. May go when cargo hashes such paths relative to something. The checkout's own
//! paths are mapped away here too, and not by RUSTFLAGS, which would have `core` built again for every checkout.

use anyhow::{Result, bail};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Set for the cargo that is to call us as its `RUSTC_WRAPPER`; holds the checkout's directory.
pub const ENVIRONMENT: &str = "NETPATH_XTASK_IS_RUSTC";
const OUR_CRATES: [&str; 2] = ["netpath_common", "netpath_ebpf"];

/// Becomes the rustc that is named in the first argument.
///
/// # Errors
/// It could not be started.
pub fn become_rustc(arguments: Vec<String>) -> Result<std::process::ExitCode> {
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
