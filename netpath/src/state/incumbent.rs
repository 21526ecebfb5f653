//! Netavark's own state of its firewall, below the engine's run-time directory: a file for each network, and one for each container on it.
//! Its reload services make the rules of all of them again.

use crate::model::error::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

/// What Netavark still has after a container has been removed. Holds Netavark's lock: rules are removed under it too.
#[derive(Debug)]
pub struct Left {
    pub others: bool,
    _lock: Flock<fs::File>,
}

/// Removes the container's file, and the network's with the last container. `None`: Netavark has never set up a firewall here.
///
/// # Errors
/// A file cannot be removed.
pub fn forget(config: &Path, network: &str, container: &str) -> Result<Option<Left>> {
    let dir = config.join("firewall");
    let what = || format!("cannot remove Netavark's state in {}", dir.display());
    if network.is_empty() || container.is_empty() || !dir.join("ports").is_dir() {
        return Ok(None);
    }
    // Its reload service holds it while it reads.
    let lock = fs::File::create(dir.join("firewall-reload.lock")).context(what)?;
    let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e).context(what)?;
    remove(&dir.join("ports").join(format!("{network}_{container}"))).context(what)?;
    let names = || fs::read_dir(dir.join("ports")).into_iter().flatten().flatten().map(|e| e.file_name());
    if !names().any(|name| name.to_string_lossy().starts_with(&format!("{network}_"))) {
        remove(&dir.join("networks").join(network)).context(what)?;
    }
    Ok(Some(Left { others: names().next().is_some(), _lock: lock }))
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
