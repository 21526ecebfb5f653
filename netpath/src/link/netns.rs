//! Network namespaces: opened by path, identified by cookie, entered only by short-lived threads, so that the calling
//! thread never changes its namespace.

use super::Rtnl;
use crate::model::NetnsId;
use crate::model::error::{Context, Error, Result};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The namespace with this path, if it exists.
pub fn id(path: &Path) -> Option<NetnsId> {
    let file = std::fs::metadata(path).ok()?;
    Some(NetnsId { device: file.dev(), inode: file.ino() })
}

/// An open network namespace.
pub struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// `None` if there is no namespace at `path`: no file, or the file that is left after an unmount.
    ///
    /// # Errors
    /// The path cannot be opened or examined.
    pub fn open(path: &Path) -> Result<Option<Self>> {
        let what = || format!("cannot open network namespace {}", path.display());
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR | libc::ESRCH)) => return Ok(None),
            Err(e) => return Err(Error::new(what()).because(e)),
        };
        let stat = nix::sys::statfs::fstatfs(&file).context(what)?;
        if stat.filesystem_type() != nix::sys::statfs::NSFS_MAGIC {
            return Ok(None);
        }
        Ok(Some(Self { path: path.to_owned(), file }))
    }

    /// Whether this is the namespace of the calling thread.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn is_here(&self) -> Result<bool> {
        let what = || format!("cannot compare network namespace {} with the host's", self.path.display());
        let here = std::fs::metadata("/proc/thread-self/ns/net").context(what)?;
        let there = self.file.metadata().context(what)?;
        Ok(here.ino() == there.ino() && here.dev() == there.dev())
    }

    /// By which a namespace is told from another one at the same path.
    ///
    /// # Errors
    /// It cannot be examined.
    pub fn inode(&self) -> Result<u64> {
        self.file.metadata().map(|m| m.ino()).context(|| format!("cannot examine {}", self.path.display()))
    }

    /// Opens a netlink socket inside the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter(&self) -> Result<Inside> {
        let what = || format!("cannot enter network namespace {}", self.path.display());
        let file = self.file.try_clone().context(what)?;
        // A socket stays in the namespace in which it was created.
        let rtnl = in_thread(&file, Rtnl::here).map_err(|e| e.within(what()))?;
        Ok(Inside { rtnl, file })
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Access to the inside of a namespace: a netlink socket for the calling thread, and threads for everything else.
pub struct Inside {
    rtnl: Rtnl,
    file: File,
}

impl Inside {
    pub fn rtnl(&self) -> &Rtnl {
        &self.rtnl
    }

    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Runs `job` in a thread inside the namespace and waits for its result.
    ///
    /// # Errors
    /// That of `job`, or the namespace cannot be entered.
    pub fn run<T: Send>(&self, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        in_thread(&self.file, job)
    }
}

fn in_thread<T: Send>(namespace: &File, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let run = || {
        setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)
            .context(|| "cannot enter the network namespace".to_owned())?;
        job()
    };
    std::thread::scope(|scope| match scope.spawn(run).join() {
        Ok(answer) => answer,
        Err(_) => Err(Error::new("the thread inside the network namespace panicked")),
    })
}

/// The number of the calling thread's network namespace, unique until the next boot: SO_NETNS_COOKIE (5.14), or the
/// namespace's inode where the kernel has no cookie.
///
/// # Errors
/// Neither can be read.
pub fn cookie() -> Result<u64> {
    let what = || "cannot identify the network namespace".to_owned();
    // Any socket works; this kind needs neither address nor port.
    let socket = std::os::unix::net::UnixDatagram::unbound().context(what)?;
    let mut cookie = 0u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` outlive the call, and `len` is the size of `cookie`.
    let answer = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, SO_NETNS_COOKIE, (&raw mut cookie).cast(), &raw mut len)
    };
    if answer == 0 && cookie != 0 {
        return Ok(cookie);
    }
    Ok(std::fs::metadata("/proc/thread-self/ns/net").context(what)?.ino())
}

/// `include/uapi/asm-generic/socket.h`; not in the libc crate for every target.
const SO_NETNS_COOKIE: libc::c_int = 71;
