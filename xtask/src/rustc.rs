//! xtask in the place of rustc, while cargo builds the eBPF programs.
//!
//! Cargo derives `-C metadata`, and with it every symbol, from the directory of a crate that lies outside the workspace
//! root, as netpath-common does seen from netpath-ebpf. Our own crates get their name instead, so that the object does
//! not depend on where the checkout lies. May go when cargo hashes such paths relative to something.

use anyhow::{Result, bail};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Set for the cargo that is to call us as its `RUSTC_WRAPPER`.
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
    let error = Command::new(rustc).args(with_stable_metadata(arguments)).exec();
    bail!("cannot start {rustc}: {error}");
}

fn with_stable_metadata(arguments: &[String]) -> Vec<String> {
    let name = arguments.windows(2).find(|w| w[0] == "--crate-name").map(|w| w[1].clone());
    let ours = name.filter(|n| OUR_CRATES.contains(&n.as_str()));
    let replace = |argument: &String| match &ours {
        Some(name) if argument.starts_with("metadata=") => format!("metadata={name}"),
        _ => argument.clone(),
    };
    arguments.iter().map(replace).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replaced(line: &str) -> String {
        with_stable_metadata(&line.split(' ').map(str::to_owned).collect::<Vec<_>>()).join(" ")
    }

    #[test]
    fn only_our_crates_get_another_metadata() {
        assert_eq!(
            "--crate-name netpath_ebpf -C metadata=netpath_ebpf -C extra-filename=-12",
            replaced("--crate-name netpath_ebpf -C metadata=12 -C extra-filename=-12")
        );
        assert_eq!("--crate-name core -C metadata=12", replaced("--crate-name core -C metadata=12"));
        assert_eq!("-vV", replaced("-vV"));
    }
}
