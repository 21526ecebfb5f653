//! A real Podman on a host of its own: namespaces that look like a freshly booted machine with Podman installed, and a client
//! beyond a wire. Nothing is written on the real machine, and everything ends with the [`Machine`].
//!
//! ```text
//! client namespace                        host namespaces (net, mount, pid)
//!   eth0 192.0.2.2  2001:db8:1::2 ─ wire ─ eth0 192.0.2.1  2001:db8:1::1      podman, conmon, containers
//!   lo   203.0.113.9                       default route via the client
//! ```
//!
//! `NETPATH_TEST_PODMAN_ROOT=DIR` takes Podman from another root file system, `NETPATH_TEST_STORAGE=vfs` another storage driver
//! than overlay, `NETPATH_TEST_PODMAN_LOG=debug` sets the log level of Podman and its network backend, and `NETPATH_TC` is
//! passed to netpath.

pub mod image;
pub mod reach;
pub mod traces;

use crate::dhcp::DhcpServer;
use crate::harness::KEEP_LOADED;
use crate::holder::Holder;
use crate::host::Netns;
use crate::need::{self, Need};
use anyhow::{Context, Result, bail, ensure};
use std::cell::RefCell;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// An address of the client that the host reaches by its default route only.
pub const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
pub const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);

/// The program that Podman finds under the name `netavark`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backend {
    /// netpath, on the datapath that it chooses or on the given one.
    Netpath(Option<&'static str>),
    /// The distribution's netavark: shows that a test requires nothing beyond Podman's own network.
    Netavark,
}

/// Time limit of each command, sufficient on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

pub struct Machine {
    backend: Backend,
    dir: PathBuf,
    host: Holder,
    client: Holder,
    before: traces::Traces,
    kernel_objects: RefCell<traces::KernelObjects>,
}

/// Output and exit status of a command.
#[derive(Debug)]
pub struct Output {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Machine {
    /// Requirements of [`Machine::start`].
    ///
    /// # Errors
    /// The missing requirement.
    pub fn need(backend: Backend) -> Need {
        need::root()?;
        for program in ["podman", "crun", "conmon", "busybox", "unshare", "nsenter", "ip", "tar"] {
            find_program(program).ok_or_else(|| format!("the program {program}"))?;
        }
        if !Path::new("/etc/containers").is_dir() {
            return Err("/etc/containers (the distribution's podman package)".into());
        }
        match backend {
            Backend::Netpath(_) if crate::netavark::is_incumbent() => {
                Err("netpath as the program under test; on Netavark: NETPATH_PEER=1, netavark::".into())
            }
            Backend::Netpath(_) => crate::netavark::binary().map(drop).map_err(|e| format!("{e:#}")),
            Backend::Netavark => packaged_netavark().map(drop).ok_or_else(|| "the distribution's netavark".to_owned()),
        }
    }

    /// A host with a client, and the image `bb` in its store; `peer` becomes a program of that image.
    ///
    /// # Errors
    /// A part cannot be made; nothing is left then.
    pub fn start(backend: Backend, peer: Option<&Path>) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let serial = COUNT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("netpath-engine-{}-{serial}", std::process::id()));
        std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let mut machine = Self::boot(backend, dir.clone()).inspect_err(|_| {
            let _ = std::fs::remove_dir(&dir);
        })?;
        machine.wire()?;
        let archive = image::archive(peer)?;
        let import = machine.engine(&["import", "-", "bb"]);
        let imported = finish(import, Some(archive))?;
        ensure!(imported.code == Some(0), "podman import: {}", imported.err);
        machine.before = machine.traces()?;
        Ok(machine)
    }

    fn boot(backend: Backend, dir: PathBuf) -> Result<Self> {
        let ours = match backend {
            Backend::Netpath(_) => crate::netavark::binary()?,
            Backend::Netavark => PathBuf::new(),
        };
        let driver = std::env::var("NETPATH_TEST_STORAGE").unwrap_or_else(|_| "overlay".into());
        let mut host = Command::new("unshare");
        host.args(["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]);
        host.args(["sh", "-c", include_str!("podman/machine.sh")]);
        host.env("BASE", &dir).env("OURS", ours).env("DRIVER", driver);
        host.env("ROOT", other_root().unwrap_or_default());
        let host = Holder::start(host).context("cannot make the host's namespaces")?;
        let mut client = Command::new("unshare");
        client.args(["--net", "sh", "-c", "echo ready; exec cat >/dev/null"]);
        let client = Holder::start(client).context("cannot make the client's namespace")?;
        let kernel_objects = RefCell::default();
        Ok(Self { backend, dir, host, client, before: traces::Traces::default(), kernel_objects })
    }

    /// The wire between host and client, with documentation addresses (RFC 5737, RFC 3849).
    fn wire(&self) -> Result<()> {
        let client = self.client.pid().to_string();
        self.ip(true, &["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &client])?;
        for (on_host, addresses) in [(true, [HOST.into(), HOST6.into()]), (false, [CLIENT.into(), CLIENT6.into()])] {
            self.ip(on_host, &["link", "set", "lo", "up"])?;
            // Explicit link-local addresses: automatic ones appear a second later and would look like leftovers.
            self.ip(on_host, &["link", "set", "eth0", "addrgenmode", "none", "up"])?;
            let local: IpAddr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, if on_host { 1 } else { 2 }).into();
            for address in addresses.into_iter().chain([local]) {
                let (length, nodad): (u8, &[&str]) = if address.is_ipv4() { (24, &[]) } else { (64, &["nodad"]) };
                let with_length = format!("{address}/{length}");
                self.ip(on_host, &[&["address", "add", &with_length, "dev", "eth0"], nodad].concat())?;
            }
        }
        self.ip(false, &["address", "add", &format!("{FAR}/32"), "dev", "lo"])?;
        self.ip(true, &["route", "add", "default", "via", &CLIENT.to_string()])?;
        self.ip(true, &["route", "add", "default", "via", &CLIENT6.to_string()])
    }

    fn ip(&self, on_host: bool, args: &[&str]) -> Result<()> {
        let mut ip = if on_host { &self.host } else { &self.client }.enter(&["net"]);
        ip.arg("ip").args(args);
        success(ip).map(drop)
    }

    /// Runs `podman` with `args` on the host.
    ///
    /// # Errors
    /// It failed; the error holds its standard error.
    pub fn podman(&self, args: &[&str]) -> Result<String> {
        let output = self.try_podman(args)?;
        ensure!(output.code == Some(0), "podman {}: {}{}", args.join(" "), output.err, output.out);
        Ok(output.out.trim_end().to_owned())
    }

    /// As [`Self::podman`], where a failure is a valid result.
    ///
    /// # Errors
    /// It did not end in time, or a child of it kept its output open.
    pub fn try_podman(&self, args: &[&str]) -> Result<Output> {
        let output = finish(self.engine(args), None)?;
        self.kernel_objects.borrow_mut().note(&self.root("/sys/fs/bpf"));
        Ok(output)
    }

    /// `podman` with `args`, to be started on the host.
    pub fn engine(&self, args: &[&str]) -> Command {
        let mut podman = self.on_host("podman", &[]);
        if let Ok(level) = std::env::var("NETPATH_TEST_PODMAN_LOG") {
            podman.arg(format!("--log-level={level}"));
        }
        podman.args(args);
        podman
    }

    /// `program` with `args`, to be started in the host's namespaces, in an environment as at boot.
    pub fn on_host(&self, program: &str, args: &[&str]) -> Command {
        let mut command = self.host.enter(&["mnt", "net", "pid"]);
        command.env_clear().env("PATH", PATH).env("HOME", self.dir.join("home")).env(KEEP_LOADED, "0");
        if let Backend::Netpath(Some(rung)) = self.backend {
            command.env("NETPATH_DATAPATH", rung);
        }
        if let Some(tc) = std::env::var_os("NETPATH_TC") {
            command.env("NETPATH_TC", tc);
        }
        command.arg(program).args(args);
        command
    }

    /// Runs `program` on the host and returns its output.
    ///
    /// # Errors
    /// It failed; the error holds its standard error.
    pub fn run_on_host(&self, program: &str, args: &[&str]) -> Result<String> {
        success(self.on_host(program, args))
    }

    /// `f` in the host's network namespace, on a thread of its own.
    pub fn host<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        within(&self.host.namespace("net")?, f)
    }

    /// `f` in the client's network namespace, on a thread of its own.
    pub fn client<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        within(&self.client.namespace("net")?, f)
    }

    /// `path` of the host, as seen by this process.
    pub fn root(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.host.pid()))
    }

    /// A DHCP server for the addresses `range` beside the client. Its files end with it.
    ///
    /// # Errors
    /// It does not start.
    pub fn dhcp(&self, dir: &Path, range: &str, options: &[&str]) -> Result<DhcpServer> {
        let client = Netns::at(Path::new(&format!("/proc/{}/ns/net", self.client.pid())))?;
        DhcpServer::start(&client, dir, "eth0", range, options)
    }

    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// The program that Podman runs under `name`, as a path on the host.
    pub fn helper(&self, name: &str) -> String {
        self.dir.join("helpers").join(name).display().to_string()
    }

    /// A command that opens a shell on the host.
    pub fn shell(&self) -> String {
        format!("nsenter -a -t {} sh", self.host.init().unwrap_or(self.host.pid()))
    }

    /// The address of `container` on `network`.
    ///
    /// # Errors
    /// Podman knows none.
    pub fn address(&self, container: &str, network: &str) -> Result<IpAddr> {
        let format = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
        let text = self.podman(&["inspect", "--format", &format, container])?;
        text.parse().with_context(|| format!("{container} on {network}: {text:?}"))
    }
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn other_root() -> Option<PathBuf> {
    std::env::var_os("NETPATH_TEST_PODMAN_ROOT").map(PathBuf::from)
}

/// Directories in which distributions install Podman's helpers.
fn packaged_netavark() -> Option<PathBuf> {
    let root = other_root().unwrap_or_else(|| "/".into());
    let dirs = ["usr/libexec/podman", "usr/lib/podman"];
    dirs.iter().map(|dir| root.join(dir).join("netavark")).find(|file| file.is_file())
}

fn find_program(name: &str) -> Option<PathBuf> {
    PATH.split(':').map(|d| Path::new(d).join(name)).find(|f| f.is_file())
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The host's mounts go with its last process, and then the directory is empty.
        self.host.end();
        let _ = std::fs::remove_dir(&self.dir);
    }
}

pub(crate) fn success(command: Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = finish(command, None).with_context(|| shown.clone())?;
    ensure!(output.code == Some(0), "{shown}: {}{}", output.err, output.out);
    Ok(output.out)
}

/// Runs `command` to its end. Processes that it leaves running must not hold its output: an engine would wait for them for
/// ever.
///
/// # Errors
/// It took longer than [`DEADLINE`], or its output stayed open after its end.
pub fn finish(mut command: Command, input: Option<&'static [u8]>) -> Result<Output> {
    let shown = format!("{command:?}");
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().with_context(|| shown.clone())?;
    if let (Some(mut stdin), Some(bytes)) = (child.stdin.take(), input) {
        std::thread::spawn(move || std::io::Write::write_all(&mut stdin, bytes));
    }
    let (out, err) = (drain(child.stdout.take()), drain(child.stderr.take()));
    let deadline = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            let _ = child.kill();
            let _ = child.wait();
            bail!("{shown} did not end within {} s", DEADLINE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let grace = Duration::from_secs(5);
    let text = |r: mpsc::Receiver<Vec<u8>>, name: &str| {
        let bytes =
            r.recv_timeout(grace).map_err(|_| anyhow::anyhow!("{shown} ended, but its {name} is still open"))?;
        anyhow::Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Output { code: status.code(), out: text(out, "standard output")?, err: text(err, "standard error")? })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            let _ = pipe.read_to_end(&mut bytes);
        }
        let _ = send.send(bytes);
    });
    receive
}

/// `f` on a thread that has entered the network namespace `net`.
fn within<T: Send>(net: &File, f: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::setns(net, nix::sched::CloneFlags::CLONE_NEWNET)?;
            anyhow::Ok(f())
        });
        thread.join().map_err(|panic| std::panic::resume_unwind(panic)).and_then(|r: Result<T>| r)
    })
}
