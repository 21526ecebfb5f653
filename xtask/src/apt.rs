//! Debian packages: queries, and installation without prompts or recommended packages.

use crate::need;
use crate::steps::Steps;
use anyhow::{Result, bail};
use std::path::Path;
use std::process::Command;

/// Whether this machine installs its packages by apt.
pub(crate) fn is_here() -> bool {
    need::program("apt-get").is_some() && Path::new("/var/lib/dpkg/status").exists()
}

pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// The version that `apt-get install` would install, or `None` without an entry in the package lists.
pub(crate) fn candidate(package: &str) -> Option<String> {
    let out = Command::new("apt-cache").args(["policy", package]).env("LC_ALL", "C").output().ok()?;
    candidate_in(&String::from_utf8_lossy(&out.stdout))
}

fn candidate_in(policy: &str) -> Option<String> {
    let line = policy.lines().find_map(|l| l.trim().strip_prefix("Candidate:"))?;
    Some(line.trim().to_owned()).filter(|v| v != "(none)")
}

/// Whether this package is installed.
pub(crate) fn is_installed(package: &str) -> bool {
    let out = Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Abbrev}", package]).output();
    out.is_ok_and(|o| o.status.success() && o.stdout.starts_with(b"ii"))
}

/// Updates the package lists.
///
/// # Errors
/// `apt-get update` fails.
pub(crate) fn update(steps: &mut Steps) -> Result<()> {
    steps.one_more();
    steps.run("apt-get update", apt_get().arg("update"))
}

/// Installs packages; fetches missing or outdated lists first. Removes nothing: a conflict with an installed package is an
/// error.
///
/// # Errors
/// Not root, or `apt-get` fails.
pub(crate) fn install(steps: &mut Steps, what: &str, packages: &[String]) -> Result<()> {
    if !is_root() {
        bail!(
            "{what}: root is needed to install packages\n  next: sudo apt-get install --no-install-recommends {}",
            packages.join(" ")
        );
    }
    if packages.iter().any(|p| candidate(p).is_none()) {
        update(steps)?;
    }
    if steps.run(what, &mut install_command(packages)).is_ok() {
        return Ok(());
    }
    // The lists may name versions that the mirror has dropped.
    update(steps)?;
    steps.one_more();
    steps.run(what, &mut install_command(packages))
}

fn install_command(packages: &[String]) -> Command {
    let mut command = apt_get();
    command.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages);
    command
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").args(["-o", "DPkg::Lock::Timeout=900"]);
    command
}

/// The upstream version as numbers: 1.96 of `1:1.96.0+dfsg1-1~deb12u2`.
pub(crate) fn upstream(version: &str) -> (u32, u32) {
    let after_epoch = version.split_once(':').map_or(version, |(_, v)| v);
    let mut numbers = after_epoch.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_candidate_is_unavailable() {
        assert_eq!(None, candidate_in("rustc-web:\n  Installed: (none)\n  Candidate: (none)\n"));
        assert_eq!(Some("1.2-3".to_owned()), candidate_in("x:\n  Installed: (none)\n  Candidate: 1.2-3\n"));
        assert_eq!(None, candidate_in(""));
    }

    #[test]
    fn versions_are_read_past_their_epoch() {
        assert_eq!((1, 96), upstream("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!((22, 1), upstream("1:22.1.8-1~deb12u1"));
        assert_eq!((0, 0), upstream("unknown"));
    }
}
