//! Network namespaces: opened by path, told apart by cookie, entered in a thread of their own, so that the calling
//! thread never leaves its namespace.

use super::Rtnl;
use crate::model::error::{Context, Error, Result};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

/// An open network namespace.
pub struct Netns {
    path: PathBuf,
    file: File,
}

impl Netns {
    /// `None` when there is no namespace at `path`: no file, or one that is no namespace any more because the engine
    /// has unmounted it.
    ///
    /// # Errors
    /// The path cannot be opened or looked at.
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

    pub fn raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// Whether this is the namespace of the calling thread.
    ///
    /// # Errors
    /// /proc cannot be read.
    pub fn is_here(&self) -> Result<bool> {
        let what = || format!("cannot tell network namespace {} from the host's", self.path.display());
        let here = std::fs::metadata("/proc/thread-self/ns/net").context(what)?;
        let there = self.file.metadata().context(what)?;
        Ok(here.ino() == there.ino() && here.dev() == there.dev())
    }

    /// Starts a thread inside the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn enter(&self) -> Result<Inside> {
        let what = || format!("cannot enter network namespace {}", self.path.display());
        let file = self.file.try_clone().context(what)?;
        let (jobs, inbox) = mpsc::channel::<Job>();
        let (ready, entered) = mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("netpath-netns".into())
            .spawn(move || {
                let opened = setns(file.as_fd(), CloneFlags::CLONE_NEWNET)
                    .map_err(|e| Error::new("setns").because(e))
                    .and_then(|()| Rtnl::here());
                match opened {
                    Ok(rtnl) => {
                        let _ = ready.send(Ok(()));
                        while let Ok(job) = inbox.recv() {
                            job(&rtnl);
                        }
                    }
                    Err(e) => {
                        let _ = ready.send(Err(e));
                    }
                }
            })
            .context(what)?;
        match entered.recv() {
            Ok(Ok(())) => Ok(Inside { jobs: Some(jobs), thread: Some(thread) }),
            Ok(Err(e)) => Err(e.within(what())),
            Err(_) => Err(Error::new(what()).because("its thread ended")),
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

type Job = Box<dyn FnOnce(&Rtnl) + Send>;

/// A thread inside a namespace, with a netlink socket of that namespace. It ends when this is dropped.
pub struct Inside {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Inside {
    /// Runs `job` inside and waits for what it returns.
    ///
    /// # Errors
    /// What `job` returns, or that the thread is gone.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce(&Rtnl) -> Result<T> + Send + 'static) -> Result<T> {
        let gone = || Error::new("the thread inside the container's network namespace has ended");
        let (done, answer) = mpsc::sync_channel(1);
        let job: Job = Box::new(move |rtnl| {
            let _ = done.send(job(rtnl));
        });
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())?;
        answer.recv().map_err(|_| gone())?
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The number that names the calling thread's network namespace for as long as the machine runs: SO_NETNS_COOKIE
/// (5.14), or the namespace's inode where the kernel has no cookie.
///
/// # Errors
/// Neither can be read.
pub fn cookie() -> Result<u64> {
    let what = || "cannot tell which network namespace this is".to_owned();
    // Every socket knows its namespace; this kind needs no address and no port.
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
