//! What `netpath install podman` puts on a host: names in a directory where Podman looks for its programs, and systemd units.

use crate::model::error::{Error, Result};
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

/// The programs of Podman in whose place netpath runs.
pub const NAMES: &[&str] = &["netavark", "aardvark-dns"];

/// With netpath's own path as [`BINARY`]. Those of the DHCP proxy have the names of netavark's, which they take the place of. The first
/// container starts the agent; its unit waits for the end of a killed one.
pub const UNITS: &[(&str, &str)] = &[
    ("netavark-dhcp-proxy.socket", include_str!("../../systemd/netavark-dhcp-proxy.socket")),
    ("netavark-dhcp-proxy.service", include_str!("../../systemd/netavark-dhcp-proxy.service")),
    ("netpath-agent.path", include_str!("../../systemd/netpath-agent.path")),
    ("netpath-agent.service", include_str!("../../systemd/netpath-agent.service")),
    ("netpath-preload.service", include_str!("../../systemd/netpath-preload.service")),
];
const BINARY: &str = "/usr/local/bin/netpath";
/// The first line of an installed unit.
const MARK: &str = "# Installed by `netpath install podman`.\n";
/// systemd's place for the units of an administrator's own software. They precede a distribution's of the same name.
const UNIT_DIR: &str = "usr/local/lib/systemd/system";
/// `systemctl enable` makes links to units below it.
const ENABLED: &str = "etc/systemd/system";

/// Where Podman looks, unless a `containers.conf` says otherwise; the first directory that has the name counts.
const HELPER_DIRS: [&str; 4] =
    ["/usr/local/libexec/podman", "/usr/local/lib/podman", "/usr/libexec/podman", "/usr/lib/podman"];
/// Later ones replace values of earlier ones.
const CONFIGS: [&str; 2] = ["usr/share/containers/containers.conf", "etc/containers/containers.conf"];
const CONFIG_DIR: &str = "etc/containers/containers.conf.d";

/// What is at a place that netpath may take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Found {
    Nothing,
    /// netpath's: for a link, with the path that it leads to.
    Own(PathBuf),
    /// In words.
    Other(String),
}

/// A host's file system, or a part of one.
pub struct Root(PathBuf);

impl Root {
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// Where `path` of the host is.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// How the host calls this path.
    pub fn inside(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.0).map_or_else(|_| path.to_owned(), |rest| Path::new("/").join(rest))
    }

    pub fn unit(&self, name: &str) -> PathBuf {
        self.at(UNIT_DIR).join(name)
    }

    /// The directories in which Podman looks for its programs, in its order.
    ///
    /// # Errors
    /// A configuration file cannot be read.
    pub fn helper_dirs(&self) -> Result<Vec<PathBuf>> {
        let mut dirs: Vec<String> = HELPER_DIRS.map(str::to_owned).into();
        let mut configs: Vec<PathBuf> = CONFIGS.iter().map(|path| self.at(path)).collect();
        let mut more: Vec<PathBuf> =
            listed(&self.at(CONFIG_DIR))?.into_iter().filter(|p| p.extension().is_some_and(|e| e == "conf")).collect();
        more.sort();
        configs.append(&mut more);
        for path in configs {
            match fs::read_to_string(&path) {
                Ok(text) => dirs = helper_dirs_of(&text).unwrap_or(dirs),
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(Error::new(format!("cannot read {}", path.display())).because(e)),
            }
        }
        // `$BINDIR` is beside Podman's own program.
        Ok(dirs.into_iter().filter(|d| d.starts_with('/')).map(|d| self.at(d)).collect())
    }

    /// The links by which systemd has enabled a unit of netpath.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn enabled(&self, unit: &str) -> Result<Vec<PathBuf>> {
        let path = self.inside(&self.unit(unit));
        let dirs = listed(&self.at(ENABLED))?.into_iter().filter(|d| d.is_dir());
        let links = dirs.map(|d| d.join(unit)).filter(|l| fs::read_link(l).is_ok_and(|to| to == path));
        Ok(links.collect())
    }
}

fn listed(dir: &Path) -> Result<Vec<PathBuf>> {
    let what = |e: io::Error| Error::new(format!("cannot list {}", dir.display())).because(e);
    match fs::read_dir(dir) {
        Ok(entries) => entries.map(|e| e.map(|e| e.path()).map_err(what)).collect(),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        Err(e) => Err(what(e)),
    }
}

/// `helper_binaries_dir` of a `containers.conf`.
fn helper_dirs_of(text: &str) -> Option<Vec<String>> {
    let mut lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let first = lines.find(|line| line.starts_with("helper_binaries_dir"))?;
    let value: String = std::iter::once(first).chain(lines).collect();
    let list = value.split_once('[')?.1.split_once(']')?.0;
    Some(
        list.split(',')
            .map(|word| word.trim().trim_matches(['"', '\'']).to_owned())
            .filter(|w| !w.is_empty())
            .collect(),
    )
}

/// The unit's text for a binary at `path`.
pub fn unit_text(template: &str, path: &Path) -> String {
    format!("{MARK}{}", template.replace(BINARY, &path.to_string_lossy()))
}

/// What is at the place of a name. netpath's link leads to a file named `netpath`, also to one that is gone.
///
/// # Errors
/// It cannot be examined.
pub fn link(path: &Path) -> Result<Found> {
    match fs::symlink_metadata(path) {
        Err(e) if is_absent(&e) => Ok(Found::Nothing),
        Err(e) => Err(examined(path, e)),
        Ok(meta) if !meta.is_symlink() => Ok(Found::Other("a file".to_owned())),
        Ok(_) => {
            let to = fs::read_link(path).map_err(|e| examined(path, e))?;
            let is_own = to.file_name().is_some_and(|name| name == "netpath");
            Ok(if is_own { Found::Own(to) } else { Found::Other(format!("a link to {}", to.display())) })
        }
    }
}

/// What is at the place of a unit.
///
/// # Errors
/// It cannot be examined.
pub fn unit(path: &Path) -> Result<Found> {
    match fs::read(path) {
        Err(e) if is_absent(&e) => Ok(Found::Nothing),
        Err(e) => Err(examined(path, e)),
        Ok(bytes) if bytes.starts_with(MARK.as_bytes()) => Ok(Found::Own(path.to_owned())),
        Ok(_) => Ok(Found::Other("a unit".to_owned())),
    }
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

fn examined(path: &Path, e: io::Error) -> Error {
    Error::new(format!("cannot examine {}", path.display())).because(e)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directories_of_a_configuration_are_read_as_podman_does() {
        let of = |text: &str| helper_dirs_of(text).unwrap_or_default();
        let two = "[engine]\n  helper_binaries_dir = [\n  \"/opt/bin\", # first\n  '/usr/lib/podman',\n]\n";
        assert_eq!(vec!["/opt/bin", "/usr/lib/podman"], of(two));
        assert_eq!(vec!["$BINDIR/x"], of("helper_binaries_dir=[\"$BINDIR/x\"]"));
        assert_eq!(None, helper_dirs_of("[engine]\n# helper_binaries_dir = [\"/opt\"]\n"), "a comment");
        assert_eq!(None, helper_dirs_of(""));
    }

    #[test]
    fn a_path_below_the_root_is_named_as_the_host_does() {
        let root = Root::new(Path::new("/tmp/image"));
        assert_eq!(Path::new("/tmp/image/usr/x"), root.at("/usr/x"));
        assert_eq!(Path::new("/usr/x"), root.inside(Path::new("/tmp/image/usr/x")));
        assert_eq!(Path::new("/usr/x"), Root::new(Path::new("/")).at("/usr/x"));
    }

    #[test]
    fn every_unit_that_starts_netpath_names_its_path() {
        for (name, template) in UNITS.iter().filter(|(name, _)| name.ends_with(".service")) {
            assert!(unit_text(template, Path::new("/opt/netpath")).contains("ExecStart=/opt/netpath "), "{name}");
        }
    }
}
