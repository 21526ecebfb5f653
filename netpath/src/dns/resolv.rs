//! The servers of the host: `nameserver` lines of resolv.conf, and a watch of its directory.
//!
//! systemd-resolved and NetworkManager replace the file, so that a watch of the file itself would end with the first change.

use super::upstream::Upstreams;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use std::ffi::OsStr;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use tokio::io::unix::AsyncFd;

/// Where upstream servers listen.
const PORT: u16 = 53;
/// Links that are followed from resolv.conf.
const LINKS: usize = 8;

/// `NETPATH_RESOLV_CONF`, or the usual file.
pub(super) fn path() -> PathBuf {
    std::env::var_os("NETPATH_RESOLV_CONF").map_or_else(|| "/etc/resolv.conf".into(), PathBuf::from)
}

/// The servers in this file; none if it cannot be read.
pub(super) fn read(path: &Path) -> Upstreams {
    let text = std::fs::read(path).unwrap_or_else(|e| {
        tracing::warn!("cannot read {}: {e}; nothing can be forwarded to the host's DNS servers", path.display());
        Vec::new()
    });
    Upstreams::new(parse(&String::from_utf8_lossy(&text), path))
}

fn parse(text: &str, path: &Path) -> Vec<SocketAddr> {
    let mut servers = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        for word in words.take_while(|w| !w.starts_with(['#', ';'])) {
            match server(word) {
                Some(server) if !servers.contains(&server) => servers.push(server),
                Some(_) => {}
                None => tracing::warn!("{} line {number}: {word:?} is no address of a DNS server", path.display()),
            }
        }
    }
    servers
}

/// `192.0.2.1`, `2001:db8::1`, or with the name or number of a link: `fe80::1%eth0`.
fn server(word: &str) -> Option<SocketAddr> {
    let Some((address, zone)) = word.split_once('%') else { return Some(SocketAddr::new(word.parse().ok()?, PORT)) };
    let index = zone.parse().ok().or_else(|| nix::net::if_::if_nametoindex(zone).ok())?;
    match address.parse().ok()? {
        IpAddr::V6(address) => Some(SocketAddrV6::new(address, PORT, 0, index).into()),
        IpAddr::V4(_) => None,
    }
}

/// Reports changes of a file: of its content, its replacement, and that of symbolic links to it.
pub(super) struct Watch {
    inotify: AsyncFd<Descriptor>,
    names: Vec<Box<OsStr>>,
}

struct Descriptor(Inotify);

impl AsRawFd for Descriptor {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watch {
    /// Has to be made again after each change, since links may lead elsewhere.
    ///
    /// # Errors
    /// The kernel has no watch left.
    pub(super) fn of(path: &Path) -> std::io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let what = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE;
        let mut names = Vec::new();
        for file in chain(path) {
            let (Some(directory), Some(name)) = (file.parent(), file.file_name()) else { continue };
            // A directory that is missing is created together with what leads to it, which is watched.
            let _ = inotify.add_watch(directory, what);
            // A file that is mounted over another one is not in this directory.
            let _ = inotify.add_watch(&file, AddWatchFlags::IN_CLOSE_WRITE);
            names.push(name.into());
        }
        // SAFETY: the descriptor is open, is owned here alone, and stays the same until it is dropped.
        let inotify = unsafe { AsyncFd::register(Descriptor(inotify)) }.map_err(std::io::Error::from)?;
        Ok(Self { inotify, names })
    }

    pub(super) async fn changed(&self) {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else { return std::future::pending().await };
            match self.inotify.get_ref().0.read_events() {
                Ok(events) => {
                    // Without a name: events were lost, or the directory itself is gone.
                    if events.iter().any(|e| e.name.as_ref().is_none_or(|n| self.names.iter().any(|o| **o == **n))) {
                        return;
                    }
                }
                Err(_) => ready.clear_ready(),
            }
        }
    }
}

/// The file and everything that it links to.
fn chain(path: &Path) -> Vec<PathBuf> {
    let mut files = vec![path.to_owned()];
    while let Some(last) = files.last()
        && files.len() < LINKS
        && let Ok(target) = std::fs::read_link(last)
    {
        files.push(last.parent().unwrap_or(Path::new("/")).join(target));
    }
    files
}
