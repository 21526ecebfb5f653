//! The aardvark-dns process: state, reload, start and stop.
//!
//! The server forks into the background once it is ready, writes its pid into its directory and reads its files again on
//! SIGHUP. It must not inherit open descriptors, since an engine waits until every process has closed netpath's output.

use crate::model::error::{Context, Error, Result};
use bytes::BufMut;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Seek};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Limit for a start, which normally takes about 20 ms.
const START_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

/// Name of the pid file among the network files.
pub(super) const PID_FILE: &str = "aardvark.pid";

pub(super) struct Process<'a> {
    pub binary: &'a Path,
    /// The directory of the network files.
    pub dir: &'a Path,
    pub port: u16,
    pub rootless: bool,
}

impl Process<'_> {
    /// The server of this directory, if it runs. The pid file outlives a killed server and pids are reused, so the process
    /// must also have the directory on its command line.
    pub(super) fn running(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.dir.join(PID_FILE)).ok()?;
        let pid: i32 = text.trim().parse().ok().filter(|&p| p > 1)?;
        // Empty for a zombie.
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let is_server = cmdline.split(|&b| b == 0).any(|arg| same_path(arg, self.dir));
        is_server.then(|| Pid::from_raw(pid))
    }

    /// Makes a running server read its files again; `false`: no server runs. `here`: it has to serve this network namespace. Podman runs
    /// `update` outside of the namespace of its rootless networks.
    pub(super) fn reload(&self, here: bool) -> Result<bool> {
        let Some(pid) = self.running() else { return Ok(false) };
        if here && !same_netns(pid) {
            tracing::error!(
                "aardvark-dns (pid {pid}) runs in a different network namespace: names of this namespace are not answered; \
                 next: stop all containers of the other namespace, or end that process"
            );
        }
        match kill(pid, Signal::SIGHUP) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(e) => Err(Error::new(format!("cannot signal aardvark-dns (pid {pid})")).because(e)),
        }
    }

    /// Starts the server and waits until it is ready. `test_query`: a name that it knows and an address that it listens on.
    pub(super) fn start(&self, test_query: Option<(&str, IpAddr)>) -> Result<()> {
        let what = || format!("cannot start aardvark-dns ({})", self.binary.display());
        let next = "install aardvark-dns, or create the network with DNS disabled";
        // Not a pipe: the server would keep its end open, and reading would not end.
        let stderr = memory_file().context(what)?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr.try_clone().context(what)?);
        // SAFETY: the closure makes only system calls with numbers; it neither allocates nor locks between fork and exec.
        unsafe {
            command.pre_exec(|| {
                // Ignored signals stay ignored after exec, and the server could not be stopped.
                for signal in [libc::SIGTERM, libc::SIGINT] {
                    libc::signal(signal, libc::SIG_DFL);
                }
                // The server does not inherit descriptors of the engine. Not before 5.11, where the call fails.
                libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
                Ok(())
            });
        }
        let mut child = command.spawn().map_err(|e| Error::new(what()).because(e).next(next))?;
        let deadline = Instant::now() + START_LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait().context(what)? {
                break status;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                return Err(Error::new(what()).because(format!("it was not ready after {} s", START_LIMIT.as_secs())));
            }
            std::thread::sleep(POLL);
        };
        if !status.success() {
            let said = read_all(stderr);
            // The texts are netavark's.
            let cause = match said.trim() {
                "" => format!("aardvark-dns exited unexpectedly without error message ({status})"),
                said => format!("aardvark-dns failed to start: {said} ({status})"),
            };
            return Err(Error::new(what()).because(format!("error while applying dns entries: {cause}")));
        }
        if let Some((name, server)) = test_query
            && !answers(name, SocketAddr::new(server, self.port), Duration::from_secs(2))
        {
            tracing::warn!("aardvark-dns was started but does not answer on {server} port {}", self.port);
        }
        Ok(())
    }

    /// Stops the server and waits until it has ended, so that a following start does not find it still running.
    pub(super) fn stop(&self) {
        let pid_file = self.dir.join(PID_FILE);
        if let Some(pid) = self.running() {
            // The server does not handle SIGTERM, so the signal ends it at once.
            let _ = kill(pid, Signal::SIGTERM);
            let deadline = Instant::now() + Duration::from_secs(1);
            while self.running() == Some(pid) {
                if Instant::now() > deadline {
                    let _ = kill(pid, Signal::SIGKILL);
                    break;
                }
                std::thread::sleep(POLL);
            }
        }
        let _ = std::fs::remove_file(pid_file);
    }

    fn command(&self) -> Command {
        let mut command = match scope_runner() {
            // Otherwise the server would run in the scope of the first container and end with it.
            Some(systemd_run) => {
                let mut c = Command::new(systemd_run);
                c.args(["-q", "--scope"]);
                if self.rootless {
                    c.arg("--user");
                }
                c.arg(self.binary);
                c
            }
            None => Command::new(self.binary),
        };
        command.arg("--config").arg(self.dir).arg("-p").arg(self.port.to_string()).arg("run");
        let level = tracing::level_filters::LevelFilter::current().to_string().to_lowercase();
        command.env("RUST_LOG", level);
        command
    }
}

/// `systemd-run`, if systemd is the init system and the program is in PATH.
pub fn scope_runner() -> Option<PathBuf> {
    if !Path::new("/run/systemd/system").is_dir() {
        return None;
    }
    std::env::split_paths(&std::env::var_os("PATH")?).map(|d| d.join("systemd-run")).find(|p| p.is_file())
}

fn same_path(arg: &[u8], dir: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(arg)) == dir
}

/// Also `true` if /proc cannot be read.
fn same_netns(pid: Pid) -> bool {
    let netns = |p: &str| std::fs::read_link(format!("/proc/{p}/ns/net")).ok();
    match (netns("self"), netns(&pid.to_string())) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    }
}

fn memory_file() -> nix::Result<std::fs::File> {
    use nix::sys::memfd::{MFdFlags, memfd_create};
    memfd_create(c"aardvark-stderr", MFdFlags::MFD_CLOEXEC).map(std::fs::File::from)
}

fn read_all(mut file: std::fs::File) -> String {
    let mut bytes = Vec::new();
    let _ = file.rewind();
    let _ = file.take(4096).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a DNS server answers a query for `name` within `limit`.
fn answers(name: &str, server: SocketAddr, limit: Duration) -> bool {
    let any: SocketAddr = if server.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let Ok(socket) = UdpSocket::bind(any).and_then(|s| s.connect(server).map(|()| s)) else { return false };
    let Some(query) = query(name) else { return true };
    let _ = socket.set_read_timeout(Some(Duration::from_millis(50)));
    let deadline = Instant::now() + limit;
    let mut answer = [0u8; 512];
    while Instant::now() < deadline {
        // Refused until the server listens.
        if socket.send(&query).is_err() {
            std::thread::sleep(POLL);
            continue;
        }
        match socket.recv(&mut answer) {
            Ok(n) if n >= 12 && answer[..2] == query[..2] => return true,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => std::thread::sleep(POLL),
            _ => {}
        }
    }
    false
}

/// A query for the A record of `name.dns.podman` (RFC 1035 §4.1), which the server never forwards.
fn query(name: &str) -> Option<Vec<u8>> {
    let mut q = Vec::new();
    // Id, flags, one question, no records.
    [0x6e70, 0x0100, 1, 0, 0, 0].into_iter().for_each(|n| q.put_u16(n));
    for label in name.split('.').chain(["dns", "podman"]) {
        q.put_u8(u8::try_from(label.len()).ok().filter(|n| (1..=63).contains(n))?);
        q.put_slice(label.as_bytes());
    }
    q.put_u8(0);
    [1, 1].into_iter().for_each(|n| q.put_u16(n));
    Some(q)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_one_label_per_part_of_the_name() {
        let q = query("a.web").expect("a name");
        assert_eq!(b"\x01a\x03web\x03dns\x06podman\0\0\x01\0\x01", &q[12..]);
        assert!(query("a..b").is_none());
        assert!(query(&"x".repeat(64)).is_none());
    }

    #[test]
    fn the_pid_of_another_process_is_not_the_servers() {
        let dir = std::env::temp_dir().join(format!("netpath-dns-{}-foreign", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join(PID_FILE), std::process::id().to_string()).expect("a pid file");
        let p = Process { binary: Path::new("none"), dir: &dir, port: 53, rootless: false };
        assert_eq!(None, p.running());
        assert!(!p.reload(true).expect("no server runs"));
        std::fs::remove_dir_all(&dir).expect("clean up");
    }
}
