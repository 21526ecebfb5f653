//! Other network software for the suite `neighbours`: Debian packages, unpacked below `target/neighbours` and never installed,
//! as installation would start their services on the developer's machine. tests/support/neighbour/ overlays them on the
//! machine's directories in a mount namespace of its own.

use crate::steps::Steps;
use crate::vm::apt_sources::{self, Release};
use crate::{apt, workspace};
use anyhow::Result;
use std::path::PathBuf;

/// A directory below `target/neighbours`, and the packages unpacked there.
pub(crate) struct Tree {
    name: &'static str,
    /// Another release of Debian. `None`: the machine's own release, with all dependencies.
    suite: Option<&'static str>,
    packages: &'static [&'static str],
}

const TREES: [Tree; 2] = [
    Tree { name: "own", suite: None, packages: &["firewalld", "dbus-daemon", "docker.io", "ufw"] },
    // StrictForwardPorts came with 2.3. The package is Python code and is overlaid on the machine's own.
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

/// The next tree to unpack. Without apt none: the tests report what they lack.
pub(crate) fn missing() -> Option<&'static Tree> {
    TREES.iter().find(|tree| tree.is_to_be_had() && !tree.directory().exists())
}

/// # Errors
/// apt-get or dpkg fails.
pub(crate) fn unpack(tree: &Tree, steps: &mut Steps) -> Result<()> {
    let Some(suite) = tree.suite else { return apt_sources::unpack_missing(tree.packages, &tree.directory(), steps) };
    let packages: Vec<String> = tree.packages.iter().map(|&p| p.to_owned()).collect();
    Release::open(suite, steps)?.unpack(&packages, &tree.directory(), steps)
}

/// Shown to users.
pub(crate) fn state() -> String {
    let there = TREES.iter().filter(|tree| tree.directory().exists()).count();
    format!("{there} of {} trees there", TREES.len())
}
