//! The backend's command line as Podman uses it, and its documents.
//!
//! The program under test is `NETPATH_BIN`, else the `netpath` built beside the tests. It is called through a symbolic link
//! named `netavark`. A `NETPATH_BIN` whose file name is `netavark` is the incumbent: tests that only netpath can pass are then
//! skipped, and the others validate the tests themselves.

use crate::denied::{self, Denied};
pub use crate::document::{Document, Network, Shape};
use crate::host::{Netns, SOON, wait_for};
use crate::topology::{Container, Topology};
use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

/// The resolver that backends start for a network with DNS.
pub const AARDVARK: &str = "/usr/lib/podman/aardvark-dns";

/// The program under test.
///
/// # Errors
/// There is none.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("NETPATH_BIN") {
        return std::fs::canonicalize(&path).with_context(|| format!("NETPATH_BIN={}", Path::new(&path).display()));
    }
    let own = std::env::current_exe().context("cannot tell where the tests were built")?;
    // target/debug/deps/e2e-… or target/debug/demo
    let built = own.ancestors().skip(1).take(2).map(|dir| dir.join("netpath")).find(|path| path.is_file());
    built.ok_or_else(|| anyhow!("no netpath beside {}: cargo build -p netpath", own.display()))
}

/// Whether the program under test is Netavark itself.
pub fn is_incumbent() -> bool {
    binary().is_ok_and(|path| path.file_name().is_some_and(|name| name == "netavark"))
}

/// Writes a program that can be run at once: a child that another thread has just forked may hold the file open for writing
/// until it executes its own program (ETXTBSY).
///
/// # Errors
/// It cannot be written or run.
pub fn write_program(path: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(path, bytes)?;
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    wait_for("a program to be executable", SOON, || match Command::new(path).arg("--version").output() {
        Err(e) if e.kind() == std::io::ErrorKind::ExecutableFileBusy => None,
        other => Some(other),
    })??;
    Ok(())
}

/// A datapath and its attach type.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rung {
    Tcx,
    Clsact,
    Nftables,
    Iptables,
    /// On a host whose rules are in legacy tables ([`Rung::prepare`]).
    IptablesLegacy,
}

impl Rung {
    pub const ALL: [Rung; 4] = [Rung::Tcx, Rung::Clsact, Rung::Nftables, Rung::Iptables];

    /// The eBPF rung that netpath chooses on this kernel.
    pub fn best_hooks() -> Self {
        if crate::need::tcx().is_ok() { Self::Tcx } else { Self::Clsact }
    }

    pub fn is_ebpf(self) -> bool {
        matches!(self, Rung::Tcx | Rung::Clsact)
    }

    /// The environment that forces it.
    pub fn environment(self) -> Vec<(&'static str, &'static str)> {
        match self {
            // Not forced: the default, with filters at the veths.
            Rung::Tcx => vec![("NETPATH_DATAPATH", "ebpf"), ("NETPATH_TC", "")],
            Rung::Clsact => vec![("NETPATH_DATAPATH", "ebpf"), ("NETPATH_TC", "clsact")],
            Rung::Nftables => vec![("NETPATH_DATAPATH", "nftables")],
            Rung::Iptables | Rung::IptablesLegacy => vec![("NETPATH_DATAPATH", "iptables")],
        }
    }

    pub fn is_iptables(self) -> bool {
        matches!(self, Rung::Iptables | Rung::IptablesLegacy)
    }

    /// Gives the host what the rung is chosen by, before anything else is done on it.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn prepare(self, host: &Netns) -> Result<()> {
        if self == Rung::IptablesLegacy {
            for program in ["iptables-legacy", "ip6tables-legacy"] {
                // Without a target: it only counts.
                host.command(program, &["-w", "-A", "INPUT", "-p", "tcp", "--dport", "1"])?;
            }
        }
        Ok(())
    }
}

/// The result of a call.
#[derive(Debug)]
pub struct Answer {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Answer {
    /// The JSON of a call that succeeded.
    ///
    /// # Errors
    /// It failed, or printed no JSON.
    pub fn json(&self) -> Result<Value> {
        ensure!(self.status.success(), "{self}");
        serde_json::from_str(&self.stdout).with_context(|| format!("{self}"))
    }

    /// Expects success.
    ///
    /// # Errors
    /// It failed.
    pub fn done(&self) -> Result<()> {
        ensure!(self.status.success(), "{self}");
        Ok(())
    }

    /// The text of an error as Podman decodes it: exit 1, one line of JSON with the key `error` only.
    ///
    /// # Errors
    /// The call succeeded, or its error has another format.
    pub fn error(&self) -> Result<String> {
        ensure!(self.status.code() == Some(1), "expected exit 1: {self}");
        ensure!(self.stdout.trim_end().lines().count() == 1, "expected one line on stdout: {self}");
        let value: Map<String, Value> = serde_json::from_str(&self.stdout).with_context(|| format!("{self}"))?;
        ensure!(value.len() == 1, "expected the key error alone: {self}");
        match value.get("error") {
            Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
            _ => bail!("expected the key error with a text: {self}"),
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (out, err) = (self.stdout.trim_end(), self.stderr.trim_end());
        write!(f, "{} after {} ms\n  stdout: {out}\n  stderr: {err}", self.status, self.took.as_millis())
    }
}

/// The backend, called in the host namespace of a topology.
pub struct Netavark<'t> {
    pub topology: &'t Topology,
    link: PathBuf,
    environment: Vec<(String, String)>,
    denied: Vec<Denied>,
    hidden: &'static [&'static str],
    dropped: Option<libc::c_ulong>,
}

impl<'t> Netavark<'t> {
    /// On `rung`, with a copy of the program whose object has another digest than `digest`: objects in the kernel then count as
    /// an older version's.
    ///
    /// # Errors
    /// The program cannot be copied, or does not know its object by that digest.
    pub fn newer(topology: &'t Topology, rung: Rung, digest: &str) -> Result<Self> {
        let mut bytes = std::fs::read(binary()?)?;
        let mut found = 0;
        // Printed as sixteen digits; another last digit makes another digest.
        let other = format!("{}{}", &digest[..digest.len() - 1], if digest.ends_with('0') { 1 } else { 0 });
        for at in 0..bytes.len() - digest.len() {
            if bytes[at..].starts_with(digest.as_bytes()) {
                bytes[at..at + digest.len()].copy_from_slice(other.as_bytes());
                found += 1;
            }
        }
        ensure!(found > 0, "the program does not hold the digest {digest}");
        let mut newer = Self::on(topology, rung)?;
        let dir = topology.dir().join("newer");
        std::fs::create_dir_all(&dir)?;
        newer.link = dir.join("netavark");
        write_program(&newer.link, &bytes)?;
        Ok(newer)
    }

    /// With the rung that `environment` selects; empty = netpath's own choice.
    ///
    /// # Errors
    /// There is no program under test.
    pub fn with(topology: &'t Topology, environment: &[(&str, &str)]) -> Result<Self> {
        let link = topology.dir().join("netavark");
        if !link.exists() {
            std::os::unix::fs::symlink(binary()?, &link)?;
        }
        let environment = environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Ok(Self { topology, link, environment, denied: Vec::new(), hidden: &[], dropped: None })
    }

    /// Another program in its place: a real Netavark.
    ///
    /// # Errors
    /// There is a file in the way.
    pub fn of(topology: &'t Topology, program: &Path) -> Result<Self> {
        let dir = topology.dir().join("other");
        std::fs::create_dir_all(&dir)?;
        let link = dir.join("netavark");
        std::os::unix::fs::symlink(program, &link)?;
        Ok(Self { topology, link, environment: Vec::new(), denied: Vec::new(), hidden: &[], dropped: None })
    }

    /// On `rung`.
    ///
    /// # Errors
    /// There is no program under test.
    pub fn on(topology: &'t Topology, rung: Rung) -> Result<Self> {
        Self::with(topology, &rung.environment())
    }

    /// From now on bpf(2) is denied to it.
    #[must_use]
    pub fn without_bpf(self) -> Self {
        self.without(denied::BPF)
    }

    /// From now on this system call is denied to it.
    #[must_use]
    pub fn without(mut self, denied: Denied) -> Self {
        self.denied.push(denied);
        self
    }

    /// From now on it finds no iptables: a mount namespace hides the system programs.
    #[must_use]
    pub fn without_iptables(mut self) -> Self {
        self.hidden = &["/usr/local/sbin", "/usr/sbin"];
        self
    }

    /// From now on it finds no bpffs, neither its own nor that of PID 1, and no place to mount one.
    #[must_use]
    pub fn without_bpffs(mut self) -> Self {
        self.hidden = &["/sys/fs", "/proc/1"];
        self
    }

    /// From now on it is in a mount namespace of its own, which does not show the host's bpffs.
    #[must_use]
    pub fn apart(mut self) -> Self {
        self.hidden = &["/sys/fs/bpf"];
        self
    }

    /// From now on it lacks this capability.
    #[must_use]
    pub fn without_capability(mut self, capability: libc::c_ulong) -> Self {
        self.dropped = Some(capability);
        self
    }

    /// The command as Podman runs it, to be started in the host namespace.
    pub fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(&self.link);
        command.args(["--config".as_ref(), self.topology.config_dir().as_os_str()]);
        command.args(["--rootless=false", &format!("--aardvark-binary={AARDVARK}")]);
        command.args(verb);
        for name in ["NETPATH_DATAPATH", "NETPATH_TC", "NETAVARK_FW", "NETPATH_BIN", "RUST_LOG"] {
            command.env_remove(name);
        }
        // Podman's own default level.
        command.env("RUST_LOG", std::env::var_os("NETPATH_TEST_LOG").unwrap_or("netavark=warn".into()));
        // Never the machine's own.
        command.env("NETAVARK_PROXY_RUN_DIR_ENV", crate::dhcp::proxy_dir(self.topology));
        command.envs(self.environment.iter().map(|(k, v)| (k, v)));
        // A filter may deny what hiding programs needs.
        if !self.hidden.is_empty() {
            hide(&mut command, self.hidden);
        }
        if let Some(capability) = self.dropped {
            drop_capability(&mut command, capability);
        }
        self.denied.iter().for_each(|denied| denied.to(&mut command));
        command
    }

    /// Runs `verb` with `input`.
    ///
    /// # Errors
    /// The program cannot be started. A failure of the program is no error.
    pub fn call(&self, verb: &[&str], input: &[u8]) -> Result<Answer> {
        let command = self.command(verb);
        let begun = Instant::now();
        let out = self.topology.host.output(command, input)?;
        Ok(Answer {
            took: begun.elapsed(),
            status: out.status,
            stdout: String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
        })
    }

    /// Setup, which must succeed; returns the status blocks.
    ///
    /// # Errors
    /// It failed.
    pub fn setup(&self, container: &Container, document: &Document) -> Result<Value> {
        self.try_setup(container, &document.json(container))?.json().context("setup")
    }

    /// Teardown, which must succeed.
    ///
    /// # Errors
    /// It failed.
    pub fn teardown(&self, container: &Container, document: &Document) -> Result<()> {
        self.try_teardown(container, &document.json(container))?.done().context("teardown")
    }

    /// # Errors
    /// The program cannot be started.
    pub fn try_setup(&self, container: &Netns, document: &Value) -> Result<Answer> {
        self.call(&["setup", &container.path().to_string_lossy()], document.to_string().as_bytes())
    }

    /// # Errors
    /// The program cannot be started.
    pub fn try_teardown(&self, container: &Netns, document: &Value) -> Result<Answer> {
        self.call(&["teardown", &container.path().to_string_lossy()], document.to_string().as_bytes())
    }
}

/// The directories, besides PATH, in which netpath looks for iptables.
fn hide(command: &mut Command, dirs: &'static [&'static str]) {
    use nix::mount::{MsFlags, mount};
    use std::os::unix::process::CommandExt;
    let hide = move || {
        let nothing: Option<&str> = None;
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)?;
        mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
        for dir in dirs {
            mount(Some("netpath-test"), *dir, Some("tmpfs"), MsFlags::empty(), nothing)?;
        }
        Ok(())
    };
    command.env("PATH", "/usr/bin:/bin");
    // SAFETY: between fork and exec only bare system calls are made, on strings owned by the program.
    unsafe { command.pre_exec(hide) };
}

/// What root gets by exec is limited by the bounding set.
fn drop_capability(command: &mut Command, capability: libc::c_ulong) {
    use std::os::unix::process::CommandExt;
    let limit = move || {
        // SAFETY: numbers only.
        match unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: one bare system call between fork and exec.
    unsafe { command.pre_exec(limit) };
}
