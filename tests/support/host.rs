//! A network namespace made by a test: threads and commands inside it, its settings, its removal.
//!
//! A bind mount under a private path keeps the namespace, so that `netavark setup <path>` can open it. When its [`Netns`] is
//! dropped, it is removed with every process left in it.

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Time limit for events expected at once, on a busy machine.
pub const SOON: Duration = Duration::from_secs(5);

/// Factor on [`SOON`] and other time limits on this machine: `NETPATH_PATIENCE`, set only in guests under emulation
/// (xtask/src/vm/qemu.rs).
pub fn patience() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| std::env::var("NETPATH_PATIENCE").ok().and_then(|v| v.parse().ok()).unwrap_or(1))
}

/// `deadline` multiplied by [`patience`].
pub fn patient(deadline: Duration) -> Duration {
    deadline * patience()
}

/// Calls `probe` until it returns a value, at first a millisecond apart and later 20 ms; not longer than the deadline
/// multiplied by [`patience`].
///
/// # Errors
/// The deadline has passed; the text names `what`.
pub fn wait_for<T>(what: &str, deadline: Duration, mut probe: impl FnMut() -> Option<T>) -> Result<T> {
    let (begun, deadline) = (Instant::now(), patient(deadline));
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = probe() {
            return Ok(answer);
        }
        ensure!(begun.elapsed() < deadline, "{what}: not so after {} ms", deadline.as_millis());
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Runs `work` on all `items`, `width` at a time, and returns the first error after all have ended.
///
/// # Errors
/// Those of `work`.
pub fn at_once<T: Sync>(width: usize, items: &[T], work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let some = || -> Result<()> {
        let mut first = Ok(());
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            first = first.and(work(item));
        }
        first
    };
    thread::scope(|scope| {
        let start = |_| thread::Builder::new().name(test_name()).spawn_scoped(scope, some);
        let threads = (0..width).map(start).collect::<std::io::Result<Vec<_>>>()?;
        let ends = threads.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
        ends.fold(Ok(()), Result::and)
    })
}

/// A network namespace of the test's own.
pub struct Netns {
    /// False: an existing namespace, which outlives this value.
    made: bool,
    path: PathBuf,
    file: File,
    inode: u64,
    cookie: u64,
}

impl Netns {
    /// Makes a namespace and mounts it on `path`, which must not exist yet.
    ///
    /// # Errors
    /// Not root, or the path cannot be mounted on.
    pub fn create(path: &Path) -> Result<Self> {
        File::create_new(path).with_context(|| format!("cannot create {}", path.display()))?;
        let made = thread::scope(|scope| {
            let inside = || -> Result<u64> {
                unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
                mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
                    .with_context(|| format!("cannot mount a namespace on {}", path.display()))?;
                own_cookie()
            };
            scope.spawn(inside).join().map_err(|_| anyhow!("the thread that makes a namespace panicked"))?
        });
        let cookie = match made {
            Ok(cookie) => cookie,
            Err(e) => {
                let _ = umount2(path, MntFlags::MNT_DETACH);
                let _ = fs::remove_file(path);
                return Err(e);
            }
        };
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let inode = file.metadata()?.ino();
        Ok(Self { made: true, path: path.to_owned(), file, inode, cookie })
    }

    /// The namespace of this process, which stays with its processes.
    ///
    /// # Errors
    /// There is no /proc.
    pub fn own() -> Result<Self> {
        Self::at(Path::new(&format!("/proc/{}/ns/net", std::process::id())))
    }

    /// A namespace that another program has made; it outlives this value.
    ///
    /// # Errors
    /// There is none at `path`.
    pub fn at(path: &Path) -> Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let inode = file.metadata()?.ino();
        let mut found = Self { made: false, path: path.to_owned(), file, inode, cookie: 0 };
        found.cookie = found.run(own_cookie)?;
        Ok(found)
    }

    /// The path given to `netavark setup`.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn inode(&self) -> u64 {
        self.inode
    }

    /// SO_NETNS_COOKIE of this namespace.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Runs `work` on a thread inside, and waits for it. A panic is resumed in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = || {
                self.enter();
                work()
            };
            match thread::Builder::new().name(test_name()).spawn_scoped(scope, inside) {
                Ok(worker) => worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(e) => panic!("cannot start a thread: {e}"),
            }
        })
    }

    /// Runs `work` on a thread inside, concurrently with the caller.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>> {
        let file = self.file.try_clone()?;
        let inside = move || {
            enter(&file);
            work()
        };
        thread::Builder::new().name(test_name()).spawn(inside).context("cannot start a thread")
    }

    fn enter(&self) {
        enter(&self.file);
    }

    /// Runs a program inside and returns its output.
    ///
    /// # Errors
    /// It cannot be started, or does not end with 0.
    pub fn command(&self, program: &str, args: &[&str]) -> Result<String> {
        self.feed(program, args, "")
    }

    /// As [`Netns::command`], with `input` on its standard input.
    ///
    /// # Errors
    /// As [`Netns::command`].
    pub fn feed(&self, program: &str, args: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(program);
        command.args(args);
        let out = self.output(command, input.as_bytes())?;
        ensure!(
            out.status.success(),
            "{program} {}: {}: {}",
            args.join(" "),
            out.status,
            String::from_utf8_lossy(&out.stderr).trim()
        );
        Ok(String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Runs `command` inside with `input`, whatever its exit code.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn output(&self, mut command: Command, input: &[u8]) -> Result<Output> {
        let program = command.get_program().to_string_lossy().into_owned();
        self.run(move || {
            let stdin = if input.is_empty() { Stdio::null() } else { Stdio::piped() };
            command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
            let pipe = child.stdin.take();
            thread::scope(|scope| {
                // Written concurrently, as a program may answer before it has read everything.
                scope.spawn(move || pipe.map(|mut p| p.write_all(input)));
                child.wait_with_output().with_context(|| format!("cannot wait for {program}"))
            })
        })
    }

    /// Runs lines of `ip -batch`.
    ///
    /// # Errors
    /// A line fails.
    pub fn ip(&self, lines: &str) -> Result<()> {
        self.feed("ip", &["-batch", "-"], lines).map(drop)
    }

    /// The output of `ip -json …`.
    ///
    /// # Errors
    /// `ip` fails, or prints no JSON.
    pub fn ip_json(&self, args: &[&str]) -> Result<serde_json::Value> {
        let all = [&["-json", "-details"], args].concat();
        let text = self.command("ip", &all)?;
        if text.trim().is_empty() {
            return Ok(serde_json::Value::Array(Vec::new()));
        }
        serde_json::from_str(&text).with_context(|| format!("ip {}: no JSON", all.join(" ")))
    }

    /// The names of the programs at the TCX ingress of a link, in order.
    ///
    /// # Errors
    /// The kernel has no TCX, or no such link.
    pub fn tcx_ingress(&self, link: &str) -> Result<Vec<String>> {
        use aya::programs::{SchedClassifier, TcAttachType};
        let (_, programs) = self
            .run(|| SchedClassifier::query_tcx(link, TcAttachType::Ingress))
            .with_context(|| format!("cannot ask for the programs of {link}"))?;
        Ok(programs.iter().map(|p| p.name_as_str().unwrap_or_default().to_owned()).collect())
    }

    /// The id of the XDP program of a link.
    ///
    /// # Errors
    /// There is no such link.
    pub fn xdp(&self, link: &str) -> Result<Option<u64>> {
        Ok(self.ip_json(&["link", "show", "dev", link])?[0]["xdp"]["prog"]["id"].as_u64())
    }

    /// Disables transmit checksum offload: packets then have complete checksums, as over a wire.
    ///
    /// # Errors
    /// There is no such link.
    pub fn complete_checksums(&self, link: &str) -> Result<()> {
        // include/uapi/linux/ethtool.h, ETHTOOL_STXCSUM and struct ethtool_value; sockios.h, SIOCETHTOOL; struct ifreq.
        let mut value = [0x17_u32, 0];
        let mut request = [0_u64; 5];
        let mut name = [0_u8; 16];
        name[..link.len()].copy_from_slice(link.as_bytes());
        for (word, bytes) in request.iter_mut().zip(name.chunks(8)) {
            *word = bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        request[2] = value.as_mut_ptr() as u64;
        self.run(|| {
            let socket = std::os::unix::net::UnixDatagram::unbound()?;
            // SAFETY: the kernel reads the request and the value it points to, which outlive the call.
            match unsafe { libc::ioctl(socket.as_raw_fd(), 0x8946, request.as_mut_ptr()) } {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        })
        .with_context(|| format!("cannot switch off tx checksums of {link}"))
    }

    /// A value below /proc/sys: `net/ipv4/ip_forward`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn sysctl(&self, path: &str) -> Result<String> {
        self.run(|| fs::read_to_string(format!("/proc/sys/{path}")))
            .map(|v| v.trim().to_owned())
            .with_context(|| format!("cannot read sysctl {path}"))
    }

    /// # Errors
    /// It cannot be written.
    pub fn set_sysctl(&self, path: &str, value: &str) -> Result<()> {
        self.run(|| fs::write(format!("/proc/sys/{path}"), value)).with_context(|| format!("cannot set sysctl {path}"))
    }

    /// Processes in this namespace, except for the test itself.
    pub fn processes(&self) -> Vec<(i32, String)> {
        let own = std::process::id().to_string();
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries
            .filter_map(|entry| {
                let pid = entry.file_name().into_string().ok()?;
                if pid == own || !pid.bytes().all(|b| b.is_ascii_digit()) {
                    return None;
                }
                let inode = fs::metadata(entry.path().join("ns/net")).ok()?.ino();
                let name = fs::read_to_string(entry.path().join("comm")).ok()?;
                // It ends by itself, shortly after a command (`netpath/src/netlink/later.rs`).
                let ends = name.trim() == "netpath-closing";
                (inode == self.inode && !ends).then_some((pid.parse().ok()?, name.trim().to_owned()))
            })
            .collect()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if !self.made {
            return;
        }
        // Only processes that this test started can be in its namespace.
        for (pid, _) in self.processes() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(&self.path);
    }
}

fn enter(file: &File) {
    if let Err(e) = setns(file, CloneFlags::CLONE_NEWNET) {
        panic!("cannot enter a network namespace: {e}");
    }
}

/// Libtest names a test's thread after it; its threads inherit the name.
fn test_name() -> String {
    thread::current().name().unwrap_or("main").to_owned()
}

/// SO_NETNS_COOKIE (5.14) of the namespace of the calling thread.
fn own_cookie() -> Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").context("cannot open a socket")?;
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the socket is open, and value and length point to writable memory.
    let failed = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &mut len,
        )
    };
    if failed != 0 {
        bail!("cannot read SO_NETNS_COOKIE: {}", std::io::Error::last_os_error());
    }
    Ok(cookie)
}
