//! The real Netavark 2.1 that `cargo xtask bench` builds from its crate.

use crate::need::Need;
use std::path::{Path, PathBuf};
use std::process::Command;

/// # Errors
/// It cannot be told where the tests were built.
pub fn built() -> std::io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    // In a guest there is no such directory.
    let target = own.ancestors().nth(3).unwrap_or(Path::new("/"));
    Ok(target.join("tools/peer/bin/netavark"))
}

/// # Errors
/// `program` is no Netavark of that version.
pub fn version(program: &Path, major: u8) -> Need {
    let out = Command::new(program).arg("--version").output();
    let said = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    if said.starts_with(&format!("netavark {major}.")) {
        Ok(())
    } else {
        Err(format!("netavark {major}.x at {} (cargo xtask bench builds 2.1)", program.display()))
    }
}
