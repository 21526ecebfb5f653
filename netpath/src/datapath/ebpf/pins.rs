//! Pin paths of a host namespace, under which maps, programs and links outlive the process, and their removal.
//!
//! `/sys/fs/bpf/netpath/v<layout>/<cookie>/{map,prog,link}/<name>` (`idle-<cookie>`: see `idle`), in directories accessible to root only. bpffs
//! allows neither dots in names nor regular files, so marks are directories: `object-<digest>` says that every map
//! exists, and that maps and programs are of that object; `qdisc-<ifindex>` that netpath made the clsact qdisc of
//! that interface.
//!
//! Each mount of bpffs is a file system of its own, so all commands of a host use the one of PID 1, whatever mount
//! namespace they are started in (`ip netns exec`, a service with private mounts).

use crate::model::error::{Context, Error, Result};
use netpath_common::layout::LAYOUT_VERSION;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

pub(super) const BPFFS: &str = "/sys/fs/bpf";
/// Mark: all maps exist, and they and the programs are of the object with the digest that follows.
pub(super) const OBJECT: &str = "object-";

/// Begins the name of a tree without containers.
const IDLE: &str = "idle-";

/// The mount namespace of PID 1, and its root as seen from others.
const FIRST_MOUNTS: &str = "/proc/1/ns/mnt";
const FIRST_ROOT: &str = "/proc/1/root";

/// Where this process finds the bpffs of the host.
enum Place {
    /// In its own mount namespace: PID 1's, or one that has the same bpffs.
    Here,
    /// In PID 1's, which it may enter.
    First,
    /// In PID 1's, where it must not look, and why.
    Unreachable(String),
}

fn place() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let of = |namespace: &str| fs::metadata(namespace).map(|m| (m.dev(), m.ino()));
        let found = of("/proc/self/ns/mnt").and_then(|own| {
            let is_own = own == of(FIRST_MOUNTS)?;
            if !is_own {
                fs::metadata(in_first(BPFFS))?;
            }
            Ok(is_own)
        });
        match found {
            Ok(true) => Place::Here,
            Ok(false) => Place::First,
            // PID 1 has none at all.
            Err(e) if e.kind() == ErrorKind::NotFound => Place::Here,
            Err(_) if is_shared_with_first() => Place::Here,
            Err(e) => Place::Unreachable(e.to_string()),
        }
    })
}

/// What the lists of mounts say, which need no capability: whether `/` is one mount, or `/sys/fs/bpf` one bpffs.
fn is_shared_with_first() -> bool {
    let mounts = |process: &str| fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    are_shared(&mounts("self"), &mounts("1"))
}

/// Of two lists in the form of `/proc/PID/mountinfo` (proc(5)): number, parent, device, root, mount point. Numbers are unique on the
/// machine, and of two mounts on one place the later hides the other.
fn are_shared(own: &str, first: &str) -> bool {
    let last = |mounts: &str, point: &str, field: usize| {
        let lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let found = lines.rev().find(|words| words.get(4) == Some(&point))?;
        found.get(field).map(|word| (*word).to_owned())
    };
    [("/", 0), (BPFFS, 2)].into_iter().any(|(point, field)| {
        let own = last(own, point, field);
        own.is_some() && own == last(first, point, field)
    })
}

fn in_first(path: &str) -> PathBuf {
    Path::new(FIRST_ROOT).join(path.trim_start_matches('/'))
}

/// # Errors
/// This process cannot reach the host's bpffs, and would use one that other commands do not see.
pub(super) fn reachable() -> Result<()> {
    let Place::Unreachable(why) = place() else { return Ok(()) };
    Err(Error::new(format!("cannot reach the host's {BPFFS}"))
        .because(format!(
            "this process is in another mount namespace than PID 1, and must not look into that one: {why}"
        ))
        .next("start it in the host's mount namespace, or give it CAP_SYS_PTRACE and CAP_SYS_CHROOT"))
}

/// The path of the host's bpffs for this process.
fn bpffs() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| if matches!(place(), Place::First) { in_first(BPFFS) } else { PathBuf::from(BPFFS) })
}

#[derive(Clone, Debug)]
pub struct Pins {
    root: PathBuf,
}

impl Pins {
    pub fn of(cookie: u64) -> Self {
        Self::of_version(cookie, LAYOUT_VERSION)
    }

    fn of_version(cookie: u64, version: u32) -> Self {
        Self { root: bpffs().join(format!("netpath/v{version}/{cookie:x}")) }
    }

    /// The trees of all host namespaces, with their cookies.
    pub fn of_this_version() -> Vec<(u64, Self)> {
        list(&bpffs().join(format!("netpath/v{LAYOUT_VERSION}")))
            .into_iter()
            .filter_map(|n| u64::from_str_radix(&n, 16).ok())
            .map(|cookie| (cookie, Self::of(cookie)))
            .collect()
    }

    /// The tree beside this one for programs and maps without containers.
    pub fn idle(&self) -> Self {
        let name = self.root.file_name().unwrap_or_default().to_string_lossy();
        Self { root: self.root.with_file_name(format!("{IDLE}{name}")) }
    }

    /// The idle trees of all host namespaces and layout versions.
    pub fn of_all_idle() -> Vec<Self> {
        let root = bpffs().join("netpath");
        let versions = list(&root).into_iter().map(|version| root.join(version));
        let trees = versions.flat_map(|v| list(&v).into_iter().map(move |tree| Self { root: v.join(tree) }));
        trees.filter(|t| t.root.file_name().is_some_and(|n| n.to_string_lossy().starts_with(IDLE))).collect()
    }

    /// The trees of this name in all layout versions, this one first.
    pub fn in_all_versions(&self) -> Vec<Self> {
        let mut all: Vec<Self> =
            Self::of_all_idle().into_iter().filter(|t| t.root.file_name() == self.root.file_name()).collect();
        all.sort_by_key(|t| t.root != self.root);
        all
    }

    /// The trees of other layout versions for the same namespace, with their versions.
    pub fn of_other_versions(cookie: u64) -> Vec<(u32, Self)> {
        list(&bpffs().join("netpath"))
            .into_iter()
            .filter_map(|n| n.strip_prefix('v')?.parse::<u32>().ok())
            .filter(|v| *v != LAYOUT_VERSION)
            .map(|v| (v, Self::of_version(cookie, v)))
            .filter(|(_, pins)| pins.exist())
            .collect()
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join("map").join(name)
    }

    pub fn prog(&self, name: &str) -> PathBuf {
        self.root.join("prog").join(name)
    }

    pub fn link(&self, name: &str) -> PathBuf {
        self.root.join("link").join(name)
    }

    pub fn exist(&self) -> bool {
        self.root.is_dir()
    }

    /// Mounts bpffs if necessary and creates the directories.
    pub fn ensure(&self) -> Result<()> {
        ensure_bpffs()?;
        for dir in ["map", "prog", "link"] {
            let dir = self.root.join(dir);
            if !dir.is_dir() {
                make(&dir).context(|| format!("cannot create {}", dir.display()))?;
            }
        }
        Ok(())
    }

    /// The names in one of the directories.
    pub fn names(&self, dir: &str) -> Vec<String> {
        list(&self.root.join(dir))
    }

    pub fn has_mark(&self, mark: &str) -> bool {
        self.root.join(mark).is_dir()
    }

    pub fn mark(&self, mark: &str) -> Result<()> {
        let dir = self.root.join(mark);
        make(&dir).context(|| format!("cannot create {}", dir.display()))
    }

    pub fn unmark(&self, mark: &str) -> Result<()> {
        let dir = self.root.join(mark);
        gone(fs::remove_dir(&dir)).context(|| format!("cannot remove {}", dir.display()))
    }

    /// The suffix of each mark that begins with `prefix`.
    pub fn marks(&self, prefix: &str) -> Vec<String> {
        list(&self.root).into_iter().filter_map(|n| n.strip_prefix(prefix).map(str::to_owned)).collect()
    }

    /// Removes all marks except those that `stays` holds for.
    pub fn unmark_except(&self, stays: impl Fn(&str) -> bool) -> Result<()> {
        let is_mark = |name: &String| !["map", "prog", "link"].contains(&name.as_str());
        list(&self.root).iter().filter(|name| is_mark(name) && !stays(name)).try_for_each(|name| self.unmark(name))
    }

    pub fn unpin(&self, path: &Path) -> Result<()> {
        gone(fs::remove_file(path)).context(|| format!("cannot remove the pin {}", path.display()))
    }

    /// Removes all links, which detaches their programs, and keeps the maps.
    pub fn remove_links(&self) -> Result<usize> {
        let names = self.names("link");
        names.iter().try_for_each(|name| self.unpin(&self.link(name)))?;
        Ok(names.len())
    }

    /// Removes all pins, links first so that no program runs on removed maps, and the directories with empty parents.
    /// Returns the number of pins.
    pub fn remove(&self) -> Result<usize> {
        let mut removed = 0;
        // The mark first: an interrupted removal must not be taken for a complete set.
        for mark in self.marks(OBJECT) {
            self.unmark(&format!("{OBJECT}{mark}"))?;
        }
        for dir in ["link", "prog", "map"] {
            for name in self.names(dir) {
                self.unpin(&self.root.join(dir).join(name))?;
                removed += 1;
            }
            let dir = self.root.join(dir);
            gone(fs::remove_dir(&dir)).context(|| format!("cannot remove {}", dir.display()))?;
        }
        for mark in list(&self.root) {
            self.unmark(&mark)?;
        }
        gone(fs::remove_dir(&self.root)).context(|| format!("cannot remove {}", self.root.display()))?;
        for above in self.root.ancestors().skip(1).take(2) {
            if fs::remove_dir(above).is_err() {
                break; // in use
            }
        }
        Ok(removed)
    }
}

/// Whether a bpffs is mounted where pins go.
pub(super) fn bpffs_is_mounted() -> bool {
    reachable().is_ok() && statfs(bpffs()).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC)
}

fn ensure_bpffs() -> Result<()> {
    if bpffs_is_mounted() {
        return Ok(());
    }
    reachable()?;
    let what = || format!("cannot mount bpffs on {BPFFS}");
    let mounted = if matches!(place(), Place::First) { among_first_mounts(mount_bpffs) } else { mount_bpffs() };
    mounted.context(what).map_err(|e| e.next("mount it at boot, or use another datapath with NETPATH_DATAPATH"))
}

fn mount_bpffs() -> io::Result<()> {
    // Two concurrent mounts would hide each other's pins: the second process waits on the lock of the directory
    // below.
    let bare = fs::File::open(BPFFS)?;
    let _lock = Flock::lock(bare, FlockArg::LockExclusive).map_err(|(_, e)| e)?;
    if statfs(BPFFS)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=0700"))?)
}

/// Runs `work` in the mount namespace of PID 1, on a thread of its own.
fn among_first_mounts(work: impl FnOnce() -> io::Result<()> + Send) -> io::Result<()> {
    let inside = || {
        // A thread that shares its working directory with others must not change the mount namespace (setns(2)).
        unshare(CloneFlags::CLONE_FS)?;
        setns(fs::File::open(FIRST_MOUNTS)?, CloneFlags::CLONE_NEWNS)?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
}

fn make(dir: &Path) -> io::Result<()> {
    // A concurrent removal of empty parents may come between the levels.
    for _ in 0..8 {
        match fs::DirBuilder::new().recursive(true).mode(0o700).create(dir) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            other => return other,
        }
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn list(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(|e| e.ok()?.file_name().into_string().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bpffs_is_the_hosts_if_its_mount_namespace_or_its_device_is() {
        let of = |root: u32, device: &str| {
            format!(
                "{root} 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n\
                 {} {root} 0:30 / /sys/fs/bpf rw - tmpfs t rw\n\
                 {} {root} {device} / /sys/fs/bpf rw - bpf bpf rw\n",
                root + 1,
                root + 2
            )
        };
        let bare = |root: u32| format!("{root} 1 8:1 / / rw - ext4 /dev/sda rw\n");
        assert!(are_shared(&of(20, "0:31"), &of(20, "0:31")), "one mount namespace");
        assert!(are_shared(&bare(20), &bare(20)), "one without a bpffs yet");
        assert!(are_shared(&of(90, "0:31"), &of(20, "0:31")), "a copy of the mounts");
        assert!(!are_shared(&of(90, "0:55"), &of(20, "0:31")), "a bpffs of its own");
        assert!(!are_shared(&bare(90), &bare(20)), "it would mount one of its own");
        assert!(!are_shared(&bare(90), ""), "nothing is known of PID 1");
        assert!(!are_shared("", ""));
        if nix::unistd::geteuid().is_root() && matches!(place(), Place::Here) {
            assert!(is_shared_with_first(), "the lists of this machine");
        }
    }
}
