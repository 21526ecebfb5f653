//! ufw, enabled with default settings: incoming and forwarded packets are denied.

use super::{OWN, Pids, Place, unpacked};
use crate::host::Netns;
use crate::need::Need;
use anyhow::Result;
use std::path::Path;

/// The work of its package's postinst on a fresh system.
const INSTALL: &str = "\
for f in before.rules before6.rules after.rules after6.rules user.rules user6.rules before.init after.init ufw.conf; do
    [ -e /etc/ufw/$f ] || { from=/usr/share/ufw/iptables/$f; [ -e $from ] || from=/usr/share/ufw/$f; install -m 640 $from /etc/ufw/$f; }
done";

pub struct Ufw {
    place: Place,
}

impl Ufw {
    pub fn need() -> Need {
        unpacked("usr/sbin/ufw", &[OWN])
    }

    /// Its files are in `dir`.
    ///
    /// # Errors
    /// It cannot be enabled.
    pub fn start(host: &Netns, dir: &Path) -> Result<Self> {
        let ufw = Self { place: Place::new(host, dir, &[OWN], Pids::Shared)? };
        ufw.place.run("sh", &["-ec", INSTALL])?;
        ufw.command("--force enable")?;
        Ok(ufw)
    }

    /// `ufw` with these words.
    ///
    /// # Errors
    /// It failed; the error holds its output.
    pub fn command(&self, words: &str) -> Result<String> {
        let args: Vec<&str> = words.split(' ').collect();
        self.place.run("ufw", &args)
    }
}
