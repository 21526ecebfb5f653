//! Real software that a host may have beside netpath, for the suite `neighbours`: Debian's packages, unpacked below
//! `target/neighbours` and never installed, as their services would start on the developer's own machine.
//! tests/support/neighbour/ lays them over the machine's directories in a mount namespace of its own.

use crate::steps::Steps;
use crate::vm::apt_sources::{self, Release};
use crate::{apt, workspace};
use anyhow::Result;
use std::path::PathBuf;

/// A directory below `target/neighbours`, and what is unpacked there.
pub struct Tree {
    name: &'static str,
    /// Another release of Debian; without, the machine's own, with all that the packages need.
    suite: Option<&'static str>,
    packages: &'static [&'static str],
}

const TREES: [Tree; 2] = [
    Tree { name: "own", suite: None, packages: &["firewalld", "dbus-daemon", "docker.io", "ufw"] },
    // StrictForwardPorts came with 2.3. It is Python, and lies over the machine's own.
    Tree { name: "firewalld-2", suite: Some("forky"), packages: &["firewalld", "python3-firewall"] },
];

impl Tree {
    fn directory(&self) -> PathBuf {
        workspace::target().join("neighbours").join(self.name)
    }

    fn is_to_be_had(&self) -> bool {
        if self.suite.is_some() { apt_sources::missing().is_none() } else { apt::is_here() }
    }
}

/// The next that is still to be unpacked. Without apt there is nothing to unpack from: the tests say what they lack.
pub fn missing() -> Option<&'static Tree> {
    TREES.iter().find(|tree| tree.is_to_be_had() && !tree.directory().exists())
}

/// # Errors
/// What apt-get or dpkg say.
pub fn unpack(tree: &Tree, steps: &mut Steps) -> Result<()> {
    let Some(suite) = tree.suite else { return apt_sources::unpack_missing(tree.packages, &tree.directory(), steps) };
    let packages: Vec<String> = tree.packages.iter().map(|&p| p.to_owned()).collect();
    Release::open(suite, steps)?.unpack(&packages, &tree.directory(), steps)
}

/// For people.
pub fn state() -> String {
    let there = TREES.iter().filter(|tree| tree.directory().exists()).count();
    format!("{there} of {} trees there", TREES.len())
}
