//! The kernels that the tests run on: Debian packages, unpacked below `target/vm/kernels`, or a directory of the user's.

use super::apt_sources::Release;
use crate::steps::Steps;
use crate::toolchain::numbers;
use crate::workspace;
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};

/// Kernel series, and the Debian release that ships each.
pub(super) const SERIES: [(&str, &str); 3] = [("6.1", "bookworm"), ("6.12", "trixie"), ("7.2", "forky")];

/// The names, with `all` expanded.
pub(super) fn expanded(names: &[String]) -> Vec<String> {
    let all = || SERIES.iter().map(|(series, _)| (*series).to_owned());
    let mut kernels: Vec<String> = Vec::new();
    for name in names {
        let meant: Vec<String> = if name == "all" { all().collect() } else { vec![name.clone()] };
        kernels.extend(meant.into_iter().filter(|k| !kernels.contains(k)).collect::<Vec<_>>());
    }
    kernels
}

pub(super) struct Kernel {
    /// The requested name; if Debian no longer has that series, the series that was fetched instead.
    pub label: String,
    /// The output of `uname -r`.
    pub release: String,
    pub image: PathBuf,
    pub modules: PathBuf,
}

impl Kernel {
    /// The kernel that `name` means: a series, or a directory with an unpacked package (`/` is this machine's own).
    ///
    /// # Errors
    /// It cannot be fetched, or there is no kernel in the directory.
    pub(super) fn get(name: &str, steps: &mut Steps) -> Result<Self> {
        if let Some((series, suite)) = SERIES.iter().find(|(series, _)| *series == name) {
            let directory = workspace::target().join("vm/kernels").join(series);
            if !directory.exists() {
                fetch(series, suite, &directory, steps)?;
            }
            return find(series, &directory).map(Kernel::named_as_it_is);
        }
        let directory = Path::new(name);
        if directory.is_dir() {
            return find(name, directory);
        }
        let known: Vec<&str> = SERIES.iter().map(|(series, _)| *series).collect();
        bail!("--kernel {name}: there is {}, or a directory with an unpacked kernel package", known.join(", "))
    }
}

impl Kernel {
    /// Counts and rows of one series must not be mixed with those of another.
    fn named_as_it_is(mut self) -> Self {
        if !is_of(&self.release, &self.label) {
            println!("Linux {} takes the place of {}, which Debian no longer has", self.release, self.label);
            self.label = self.release.split('.').take(2).collect::<Vec<_>>().join(".");
        }
        self
    }
}

fn is_of(release: &str, series: &str) -> bool {
    release.strip_prefix(series).is_some_and(|rest| rest.starts_with('.'))
}

/// The newest kernel in a directory with the layout of a root file system.
fn find(label: &str, directory: &Path) -> Result<Kernel> {
    let mut found = Vec::new();
    for modules in ["usr/lib/modules", "lib/modules"].map(|d| directory.join(d)) {
        for entry in fs::read_dir(&modules).into_iter().flatten().flatten() {
            let release = entry.file_name().to_string_lossy().into_owned();
            let images = [directory.join(format!("boot/vmlinuz-{release}")), entry.path().join("vmlinuz")];
            if let Some(image) = images.into_iter().find(|i| i.is_file()) {
                let label = if directory == Path::new(label) { release.clone() } else { label.to_owned() };
                found.push(Kernel { label, release, image, modules: entry.path() });
            }
        }
    }
    found.sort_by_key(|k| numbers(&k.release));
    found.pop().with_context(|| {
        format!(
            "{0} holds no kernel with its modules (boot/vmlinuz-…, lib/modules/…)\n  next: unpack a kernel package into a \
             directory, dpkg-deb -x linux-image-….deb DIRECTORY, and name that",
            directory.display()
        )
    })
}

/// The package `linux-image-amd64` depends on the kernel of a release; from 7.x on image and modules are separate packages.
fn fetch(series: &str, suite: &str, to: &Path, steps: &mut Steps) -> Result<()> {
    let release = Release::open(suite, steps)?;
    let is_kernel = |p: &String| ["linux-image-", "linux-binary-", "linux-modules-"].iter().any(|n| p.starts_with(n));
    let mut packages: Vec<String> = release.depends("linux-image-amd64")?.into_iter().filter(is_kernel).collect();
    let Some(image) = packages.first().cloned() else {
        bail!("Debian {suite} names no kernel: linux-image-amd64 depends on none");
    };
    let version = image.trim_start_matches("linux-image-");
    if !is_of(version, series) {
        println!("Debian {suite} has moved on from {series} to {version}");
    }
    packages.extend(release.depends(&image)?.into_iter().filter(is_kernel));
    release.unpack(&packages, to, steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_every_series_once() {
        let names = |n: &[&str]| expanded(&n.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>());
        assert_eq!(vec!["6.1", "6.12", "7.2"], names(&["all"]));
        assert_eq!(vec!["7.2", "6.1", "6.12", "/k"], names(&["7.2", "all", "/k"]));
    }

    #[test]
    fn a_kernel_of_another_series_has_that_ones_name() {
        let label = |release: &str| {
            let kernel =
                Kernel { label: "7.2".into(), release: release.into(), image: PathBuf::new(), modules: PathBuf::new() };
            kernel.named_as_it_is().label
        };
        assert_eq!(["7.2", "7.3", "7.21"], ["7.2.12+deb14-amd64", "7.3.1+deb14-amd64", "7.21.0-1"].map(label));
    }

    #[test]
    fn a_directory_without_a_kernel_is_an_error_that_names_it() {
        let error = find("x", Path::new("/no/such")).err().expect("no kernel").to_string();
        assert!(error.contains("/no/such"), "{error}");
    }
}
