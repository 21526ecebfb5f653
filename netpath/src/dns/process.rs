//! The process that answers from a directory of network files: the agent, or the server of the command line of aardvark-dns. Its
//! number is in the directory, and it reads the files again on SIGHUP.
//!
//! The latter forks into the background once it is ready. It must not inherit open descriptors, since an engine waits until every
//! process has closed netpath's output.

use super::pid_file;
use crate::model::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Limit for a start, which normally takes about 20 ms.
const START_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(2);

pub struct Process<'a> {
    /// The directory of the network files.
    pub dir: &'a Path,
    pub port: u16,
    pub rootless: bool,
}

/// A process that serves a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Running {
    pid: Pid,
    pub is_agent: bool,
    /// In the network namespace of this process.
    pub is_here: bool,
}

impl Process<'_> {
    /// The pid file outlives a killed server and pids are reused, so the process must also look like one.
    pub fn running(&self) -> Option<Running> {
        let text = std::fs::read_to_string(self.dir.join(pid_file::NAME)).ok()?;
        let pid: i32 = text.trim().parse().ok().filter(|&p| p > 1)?;
        // Empty for a zombie.
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let is_agent = name.trim_end() == "netpath-agent" && cmdline.split(|&b| b == 0).nth(1) == Some(b"agent");
        let is_server = is_agent || cmdline.split(|&b| b == 0).any(|arg| same_path(arg, self.dir));
        let pid = Pid::from_raw(pid);
        is_server.then(|| Running { pid, is_agent, is_here: same_netns(pid) })
    }

    /// Makes a running server read its files again; `false`: no server runs. In whatever network namespace: Podman runs `update`
    /// outside of that of its rootless networks.
    ///
    /// # Errors
    /// It cannot be signalled.
    pub fn reload(&self) -> Result<bool> {
        let Some(Running { pid, .. }) = self.running() else { return Ok(false) };
        match kill(pid, Signal::SIGHUP) {
            Ok(()) => Ok(true),
            Err(Errno::ESRCH) => Ok(false),
            Err(e) => Err(Error::new(format!("cannot signal the DNS server (pid {pid})")).because(e)),
        }
    }

    /// Starts a server from this binary and waits until it is ready.
    ///
    /// # Errors
    /// It does not start.
    pub fn start(&self) -> Result<()> {
        let what = || "cannot start the DNS server".to_owned();
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
        let mut child = command.spawn().context(what)?;
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
        Ok(())
    }

    /// Ends a server and waits until it has ended, so that a following start does not find it still running. An agent goes on: it
    /// notices that there is nothing left to serve.
    pub fn stop(&self) {
        let pid_file = self.dir.join(pid_file::NAME);
        match self.running() {
            Some(Running { is_agent: true, is_here: true, .. }) => drop(self.reload()),
            Some(running) => Self::end(running.pid),
            None => {}
        }
        let _ = std::fs::remove_file(pid_file);
    }

    fn end(pid: Pid) {
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + Duration::from_secs(1);
        while is_alive(pid) {
            if Instant::now() > deadline {
                let _ = kill(pid, Signal::SIGKILL);
                break;
            }
            std::thread::sleep(POLL);
        }
    }

    fn command(&self) -> Command {
        let mut command = own_program(self.rootless);
        command.args(["aardvark-dns", "--config"]).arg(self.dir).arg("-p").arg(self.port.to_string()).arg("run");
        let level = tracing::level_filters::LevelFilter::current().to_string().to_lowercase();
        command.env("RUST_LOG", level);
        command
    }
}

/// A zombie is not.
fn is_alive(pid: Pid) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|cmdline| !cmdline.is_empty())
}

/// This binary, in a scope of its own under systemd: otherwise it would be in that of the first container, and be killed with it.
/// `user`: by the user's systemd.
pub fn own_program(user: bool) -> Command {
    let own = std::env::current_exe().ok().filter(|p| p.is_file());
    program(own.as_deref(), scope_runner().as_deref(), user)
}

fn program(own: Option<&Path>, runner: Option<&Path>, user: bool) -> Command {
    match (own, runner) {
        (Some(own), Some(runner)) => {
            let mut command = Command::new(runner);
            command.args(["-q", "--scope"]).args(user.then_some("--user")).arg("--").arg(own);
            command
        }
        (Some(own), None) => Command::new(own),
        // The binary was replaced. The runner would take this path for its own binary.
        (None, _) => Command::new("/proc/self/exe"),
    }
}

/// `systemd-run`, if systemd is the init system and the program is in PATH.
fn scope_runner() -> Option<PathBuf> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_of_another_process_is_not_the_servers() {
        let dir = std::env::temp_dir().join(format!("netpath-dns-{}-foreign", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        std::fs::write(dir.join(pid_file::NAME), std::process::id().to_string()).expect("a pid file");
        let p = Process { dir: &dir, port: 53, rootless: false };
        assert_eq!(None, p.running());
        assert!(!p.reload().expect("no server runs"));
        std::fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn a_replaced_binary_is_started_without_the_runner() {
        let runner = Path::new("/usr/bin/systemd-run");
        let all = |command: Command| {
            std::iter::once(command.get_program().to_owned()).chain(command.get_args().map(ToOwned::to_owned)).collect()
        };
        let words: Vec<_> = all(program(Some(Path::new("/bin/netpath")), Some(runner), true));
        assert_eq!(vec!["/usr/bin/systemd-run", "-q", "--scope", "--user", "--", "/bin/netpath"], words);
        let words: Vec<_> = all(program(None, Some(runner), false));
        assert_eq!(vec!["/proc/self/exe"], words);
    }
}
