//! ufw, on, with its defaults: what comes in and what is routed is denied.

use super::{OWN, Pids, Place, unpacked};
use crate::host::Netns;
use crate::need::Need;
use anyhow::Result;
use std::path::Path;

/// What its package's postinst does, where nothing is there yet.
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
    /// It cannot be switched on.
    pub fn start(host: &Netns, dir: &Path) -> Result<Self> {
        let ufw = Self { place: Place::new(host, dir, &[OWN], Pids::Shared)? };
        ufw.place.run("sh", &["-ec", INSTALL])?;
        ufw.command("--force enable")?;
        Ok(ufw)
    }

    /// `ufw` with these words.
    ///
    /// # Errors
    /// It failed, with what it wrote.
    pub fn command(&self, words: &str) -> Result<String> {
        let args: Vec<&str> = words.split(' ').collect();
        self.place.run("ufw", &args)
    }
}
