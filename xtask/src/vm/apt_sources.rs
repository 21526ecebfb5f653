//! Debian packages of other releases, fetched and unpacked below `target/vm` without installation: by apt's own programs and
//! keys, from the mirror that the machine's apt uses, with separate lists and caches.

use crate::steps::Steps;
use crate::{apt, need, workspace};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const KEYS: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// The reason why packages are unavailable on this machine, if they are.
pub(crate) fn missing() -> Option<String> {
    if !apt::is_here() || need::program("dpkg").is_none() {
        return Some("apt and dpkg, which fetch and unpack kernels".to_owned());
    }
    match mirror() {
        Some(_) if Path::new(KEYS).exists() => None,
        Some(_) => Some("the package debian-archive-keyring".to_owned()),
        None => Some("a mirror of Debian among apt's sources (after apt-get update)".to_owned()),
    }
}

/// The Debian mirror that this machine's apt uses.
fn mirror() -> Option<String> {
    let out = Command::new("apt-cache").arg("policy").env("LC_ALL", "C").output().ok()?;
    mirror_in(&String::from_utf8_lossy(&out.stdout))
}

/// `apt-cache policy` prints a line with the address, then one with the fields of the release.
fn mirror_in(policy: &str) -> Option<String> {
    let lines: Vec<&str> = policy.lines().map(str::trim).collect();
    lines.windows(2).find_map(|pair| {
        let of_debian = pair[1].starts_with("release ") && pair[1].contains("l=Debian,");
        pair[0].split_whitespace().nth(1).filter(|_| of_debian).map(str::to_owned)
    })
}

/// One release of Debian, as apt sees it.
pub(crate) struct Release {
    directory: PathBuf,
    options: Vec<String>,
}

impl Release {
    /// Fetches the package list of `suite`.
    ///
    /// # Errors
    /// apt-get fails.
    pub(crate) fn open(suite: &str, steps: &mut Steps) -> Result<Self> {
        let Some(mirror) = mirror() else { bail!("{} is needed", missing().unwrap_or_default()) };
        let directory = workspace::target().join("vm/apt").join(suite);
        for part in ["lists/partial", "archives/partial", "state"] {
            let made = directory.join(part);
            fs::create_dir_all(&made).with_context(|| format!("cannot create {}", made.display()))?;
        }
        let sources = directory.join("debian.sources");
        let text = format!(
            "Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\nArchitectures: amd64\nTargets: Packages\nSigned-By: {KEYS}\n"
        );
        fs::write(&sources, text).with_context(|| format!("cannot write {}", sources.display()))?;
        let at = |part: &str| directory.join(part).display().to_string();
        let options = [
            format!("Dir::State={}", at("state")),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::State::lists={}", at("lists")),
            format!("Dir::Cache={}", at("")),
            format!("Dir::Etc::sourcelist={}", sources.display()),
            "Dir::Etc::sourceparts=-".to_owned(),
            "Acquire::Languages=none".to_owned(),
            // An outdated mirror is acceptable: signatures are still verified, and a test kernel may be old.
            "Acquire::Check-Valid-Until=false".to_owned(),
            "APT::Sandbox::User=".to_owned(),
        ];
        let options = options.into_iter().flat_map(|o| ["-o".to_owned(), o]).collect();
        let release = Self { directory, options };
        steps.one_more();
        steps.run(&format!("package list of {suite}"), release.apt("apt-get").arg("update"))?;
        Ok(release)
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options).env("LC_ALL", "C").current_dir(&self.directory);
        command
    }

    /// The dependencies of `package`.
    ///
    /// # Errors
    /// apt-cache cannot be started.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>> {
        let out = self.apt("apt-cache").args(["depends", package]).output().context("cannot start apt-cache")?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        Ok(text.lines().filter_map(|l| l.trim().strip_prefix("Depends: ")).map(|n| n.trim().to_owned()).collect())
    }

    /// Fetches `packages` and unpacks them into `to`, completely or not at all.
    ///
    /// # Errors
    /// apt-get or dpkg fails.
    pub(crate) fn unpack(&self, packages: &[String], to: &Path, steps: &mut Steps) -> Result<()> {
        let debs = self.directory.join("debs");
        let _ = fs::remove_dir_all(&debs);
        fs::create_dir_all(&debs).with_context(|| format!("cannot create {}", debs.display()))?;
        steps.one_more();
        let mut download = self.apt("apt-get");
        download.current_dir(&debs).arg("download").args(packages);
        steps.run(&format!("fetch {}", packages.join(" ")), &mut download)?;
        unpack(&debs, to)?;
        fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))
    }
}

/// Fetches those of `packages` and their dependencies that are not installed here, in the versions that the machine's apt would
/// install, and unpacks them into `to`. An installation could remove other packages, or start a service.
///
/// # Errors
/// apt-get or dpkg fails.
pub(crate) fn unpack_missing(packages: &[&str], to: &Path, steps: &mut Steps) -> Result<()> {
    let debs = to.with_extension("debs");
    fs::create_dir_all(debs.join("partial")).with_context(|| format!("cannot create {}", debs.display()))?;
    let mut fetch = Command::new("apt-get");
    fetch.args(["install", "--download-only", "--yes", "--no-install-recommends", "-o", "Debug::NoLocking=true", "-o"]);
    fetch.arg(format!("Dir::Cache::archives={}", debs.display())).args(["-o", "APT::Sandbox::User="]).args(packages);
    fetch.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    steps.one_more();
    let what = format!("fetch {} with what they need", packages.join(" "));
    if let Err(error) = steps.run(&what, &mut fetch) {
        if !apt::is_root() {
            return Err(error.context("next: apt-get update as root, or install the packages"));
        }
        // There is no package list yet, or it names versions that the mirror has dropped.
        apt::update(steps)?;
        steps.one_more();
        steps.run(&what, &mut fetch)?;
    }
    unpack(&debs, to)?;
    fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))
}

/// Unpacks all packages in `debs` into `to`.
///
/// # Errors
/// dpkg fails.
pub(crate) fn unpack(debs: &Path, to: &Path) -> Result<()> {
    let partial = to.with_extension("partial");
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    for entry in fs::read_dir(debs).with_context(|| format!("cannot list {}", debs.display()))? {
        let deb = entry?.path();
        if deb.extension().is_none_or(|e| e != "deb") {
            continue;
        }
        let out = Command::new("dpkg").arg("-x").args([&deb, &partial]).output().context("cannot start dpkg")?;
        if !out.status.success() {
            bail!("cannot unpack {}: {}", deb.display(), String::from_utf8_lossy(&out.stderr).trim());
        }
    }
    let _ = fs::remove_dir_all(to);
    fs::rename(&partial, to).with_context(|| format!("cannot put what was unpacked to {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_whose_release_says_that_it_is_debians() {
        let policy = "Package files:
 500 https://other.example/apt stable/main amd64 Packages
     release o=Other,l=Other,c=main,b=amd64
 500 https://mirror.example/debian-security bookworm-security/main amd64 Packages
     release v=12,o=Debian,n=bookworm-security,l=Debian-Security,c=main
 500 https://mirror.example/debian bookworm/main amd64 Packages
     release v=12.15,o=Debian,a=oldstable,n=bookworm,l=Debian,c=main,b=amd64
";
        assert_eq!(Some("https://mirror.example/debian"), mirror_in(policy).as_deref());
        assert_eq!(None, mirror_in("Package files:\n"));
    }
}
