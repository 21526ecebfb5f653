//! Pin paths of a host namespace, under which maps, programs and links outlive the process, and their removal.
//!
//! `/sys/fs/bpf/netpath/v<layout>/<cookie>/{map,prog,link}/<name>` (`idle-<cookie>`: see `idle`), in directories accessible to root only. bpffs
//! allows neither dots in names nor regular files, so marks are directories: `object-<digest>` says that every map
//! exists, and that maps and programs are of that object; `qdisc-<ifindex>` that netpath made the clsact qdisc of
//! that interface.
//!
//! Each mount of bpffs is a file system of its own, so all commands of a host use the one of PID 1, whatever mount
//! namespace they are started in (`ip netns exec`, a service with private mounts).

use crate::model::error::{Context, Result};
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

/// Whether this process has a mount namespace other than PID 1's, which is accessible.
fn is_apart() -> bool {
    let of = |namespace: &str| fs::metadata(namespace).map(|m| (m.dev(), m.ino()));
    match (of("/proc/self/ns/mnt"), of(FIRST_MOUNTS)) {
        (Ok(own), Ok(first)) => own != first && Path::new(FIRST_ROOT).join(&BPFFS[1..]).is_dir(),
        _ => false,
    }
}

/// The path of the host's bpffs for this process.
fn bpffs() -> &'static Path {
    static PLACE: OnceLock<PathBuf> = OnceLock::new();
    PLACE.get_or_init(|| if is_apart() { Path::new(FIRST_ROOT).join(&BPFFS[1..]) } else { PathBuf::from(BPFFS) })
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
    statfs(bpffs()).is_ok_and(|s| s.filesystem_type() == BPF_FS_MAGIC)
}

fn ensure_bpffs() -> Result<()> {
    if bpffs_is_mounted() {
        return Ok(());
    }
    let what = || format!("cannot mount bpffs on {BPFFS}");
    let mounted = if bpffs() == Path::new(BPFFS) { mount_bpffs() } else { among_first_mounts(mount_bpffs) };
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
