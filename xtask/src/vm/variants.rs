//! What is set up on the host of three machines.

use crate::test::run_cargo;
use crate::workspace;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    Netpath,
    /// The release that netpath is compared with, from its crate.
    Netavark,
}

impl Program {
    pub fn in_guest(self) -> &'static str {
        match self {
            Self::Netpath => "/usr/bin/netpath",
            Self::Netavark => "/usr/bin/netavark",
        }
    }
}

#[derive(Debug)]
pub struct Variant {
    pub key: &'static str,
    pub title: &'static str,
    pub program: Program,
    pub environment: &'static [(&'static str, &'static str)],
    /// Of the network.
    pub options: &'static [(&'static str, &'static str)],
    /// An option that the program must know; before it does, there is no such variant.
    since: Option<&'static str>,
}

/// What netpath is compared with.
pub const PEER: &str = "netavark";

const ALL: &[Variant] = &[
    netpath("netpath-offload", "netpath offload", EBPF, &[("netpath.path", "offload")], None),
    netpath("netpath-edge", "netpath edge", EBPF, &[("netpath.path", "edge")], None),
    netpath(
        "netpath-xdp",
        "netpath XDP",
        EBPF,
        &[("netpath.path", "offload"), ("netpath.xdp", "on")],
        Some("netpath.xdp"),
    ),
    netpath("netpath-iptables", "netpath iptables", &[("NETPATH_DATAPATH", "iptables")], &[], None),
    Variant {
        key: PEER,
        title: "netavark 2.1",
        program: Program::Netavark,
        environment: &[("NETAVARK_FW", "nftables")],
        options: &[],
        since: None,
    },
];

const EBPF: &[(&str, &str)] = &[("NETPATH_DATAPATH", "ebpf")];

const fn netpath(
    key: &'static str,
    title: &'static str,
    environment: &'static [(&'static str, &'static str)],
    options: &'static [(&'static str, &'static str)],
    since: Option<&'static str>,
) -> Variant {
    Variant { key, title, program: Program::Netpath, environment, options, since }
}

/// Those of the `netpath` binary at `binary` and, with `peer`, Netavark; with `names` these alone.
///
/// # Errors
/// A name that none has, or the binary cannot be read.
pub fn chosen(binary: &Path, peer: bool, names: &[String]) -> Result<Vec<&'static Variant>> {
    let code = std::fs::read(binary)?;
    let knows = |option: &str| code.windows(option.len()).any(|w| w == option.as_bytes());
    let there: Vec<_> =
        ALL.iter().filter(|v| v.since.is_none_or(knows) && (peer || v.program == Program::Netpath)).collect();
    if let Some(unknown) = names.iter().find(|n| !there.iter().any(|v| v.key == **n)) {
        let known: Vec<_> = there.iter().map(|v| v.key).collect();
        bail!("--variants {unknown}: there is {}", known.join(", "));
    }
    Ok(there.into_iter().filter(|v| names.is_empty() || names.iter().any(|n| n == v.key)).collect())
}

/// Where a build puts a program.
pub fn built(name: &str) -> PathBuf {
    workspace::target().join("debug").join(name)
}

/// Builds netpath as users have it, for what is measured. Gives the binary.
///
/// # Errors
/// It does not build.
pub fn released() -> Result<PathBuf> {
    run_cargo(workspace::cargo().args(["build", "--quiet", "--release", "-p", "netpath", "--bin", "netpath"]))?;
    Ok(workspace::target().join("release/netpath"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_whose_option_the_binary_does_not_know_is_not_there() {
        let directory = std::env::temp_dir().join(format!("netpath-xtask-{}-variants", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let binary = directory.join("netpath");
        let keys = |text: &str, peer| -> Vec<&str> {
            std::fs::write(&binary, text).expect("a file");
            chosen(&binary, peer, &[]).expect("variants").iter().map(|v| v.key).collect()
        };
        assert_eq!(vec!["netpath-offload", "netpath-edge", "netpath-iptables"], keys("netpath.path", false));
        assert!(keys("..netpath.xdp..", false).contains(&"netpath-xdp"));
        assert_eq!(Some(&PEER), keys("", true).last());
        let error = chosen(&binary, false, &["netpath-xdp".to_owned()]).expect_err("unknown").to_string();
        assert!(error.contains("netpath-xdp") && error.contains("netpath-edge"), "{error}");
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
