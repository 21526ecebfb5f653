//! Other software that filters or translates on a host: firewalld, ufw, Docker, libvirt's rules. Each runs in a host namespace
//! of a test, in a mount namespace of its own, and ends on drop; its changes to netfilter stay with the host namespace.
//!
//! The packages are unpacked by `cargo xtask setup` below `target/neighbours` (xtask/src/neighbours.rs).

mod docker;
mod firewalld;
pub mod libvirt;
mod ufw;

pub use docker::Docker;
pub use firewalld::Firewalld;
pub use ufw::Ufw;

use crate::holder::Holder;
use crate::host::Netns;
use crate::need::{self, Need};
use crate::podman::finish;
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const TREES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/neighbours");
/// The machine's own release.
const OWN: &str = "own";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn tree(name: &str) -> PathBuf {
    Path::new(TREES).join(name)
}

/// Whether `program` (`usr/sbin/ufw`) is in `trees` or installed.
fn unpacked(program: &str, trees: &[&str]) -> Need {
    need::root()?;
    for tool in ["unshare", "nsenter"] {
        need::program(tool)?;
    }
    let there = trees.iter().map(|name| tree(name)).chain([PathBuf::from("/")]).any(|d| d.join(program).exists());
    let name = program.rsplit('/').next().unwrap_or(program);
    if there { Ok(()) } else { Err(format!("{name}, which cargo xtask setup unpacks where there is Debian's apt")) }
}

/// The PID namespace of a neighbour.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pids {
    /// The machine's: other processes look its pids up over the bus.
    Shared,
    /// A private one: containers end with it.
    Own,
}

/// The namespaces of one neighbour.
pub struct Place {
    holder: Holder,
    /// The same path inside and outside.
    dir: PathBuf,
    /// Name of its cgroup2 group, removed at the end.
    cgroup: String,
}

impl Place {
    /// In the network namespace `host`; `dir` is an empty directory, or one that is made.
    fn new(host: &Netns, dir: &Path, trees: &[&str], pids: Pids) -> Result<Self> {
        std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let trees: Vec<String> =
            trees.iter().map(|t| tree(t)).filter(|t| t.exists()).map(|t| t.display().to_string()).collect();
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", host.path().display()));
        command.args(["unshare", "--mount"]);
        if pids == Pids::Own {
            command.args(["--pid", "--fork", "--mount-proc", "--kill-child"]);
        }
        command.args(["sh", "-c", include_str!("place.sh")]).env("BASE", dir).env("TREES", trees.join(" "));
        let cgroup = format!("netpath-test-{:x}", host.cookie());
        command.env("CGROUP", &cgroup);
        let holder = Holder::start(command).context("cannot make a neighbour's namespaces")?;
        Ok(Self { holder, dir: dir.to_owned(), cgroup })
    }

    /// `program` with `args`, to be started inside.
    pub fn command(&self, program: &str, args: &[&str]) -> Command {
        let mut command = self.holder.enter(&["mnt", "net", "pid"]);
        command.env_clear().env("PATH", PATH).env("HOME", "/root").env("LC_ALL", "C").arg(program).args(args);
        command
    }

    /// Runs `program` inside and returns its output.
    ///
    /// # Errors
    /// It failed; the error holds its output.
    pub fn run(&self, program: &str, args: &[&str]) -> Result<String> {
        self.finish(self.command(program, args), None)
    }

    fn finish(&self, command: Command, input: Option<&'static [u8]>) -> Result<String> {
        let words: Vec<_> = command.get_args().skip(3).map(|w| w.to_string_lossy().into_owned()).collect();
        let output = finish(command, input)?;
        ensure!(output.code == Some(0), "{}: {}{}", words.join(" "), output.err, output.out);
        Ok(output.out)
    }

    /// Starts a daemon; its output is in the [`Place::log`] of that name.
    fn daemon(&self, name: &str, line: &str) -> Result<()> {
        let log = self.dir.join(format!("{name}.log"));
        self.run("sh", &["-c", &format!("exec </dev/null >{} 2>&1; {line} &", log.display())]).map(drop)
    }

    /// The end of the output of the daemon `name`.
    fn log(&self, name: &str) -> String {
        let text = std::fs::read_to_string(self.dir.join(format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// `path` inside, as seen by this process.
    fn root(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.pid()))
    }
}

/// Kinds of software that a host can have beside netpath.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Firewalld,
    Ufw,
    Docker,
}

/// A running one.
pub enum Neighbour {
    Firewalld(Firewalld),
    Ufw(Ufw),
    Docker(Docker),
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Firewalld, Kind::Ufw, Kind::Docker];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Firewalld => "firewalld",
            Kind::Ufw => "ufw",
            Kind::Docker => "docker",
        }
    }

    pub fn need(self) -> Need {
        match self {
            Kind::Firewalld => Firewalld::need(),
            Kind::Ufw => Ufw::need(),
            Kind::Docker => Docker::need(),
        }
    }

    /// Starts it in `host` with default settings; its files are in `dir`.
    ///
    /// # Errors
    /// It does not run.
    pub fn start(self, host: &Netns, dir: &Path) -> Result<Neighbour> {
        Ok(match self {
            Kind::Firewalld => Neighbour::Firewalld(Firewalld::start(host, dir)?),
            Kind::Ufw => Neighbour::Ufw(Ufw::start(host, dir)?),
            Kind::Docker => Neighbour::Docker(Docker::start(host, dir)?),
        })
    }
}

impl Neighbour {
    /// The environment by which a network backend finds it.
    pub fn environment(&self) -> Vec<(&'static str, &str)> {
        match self {
            Neighbour::Firewalld(firewalld) => vec![firewalld.bus()],
            Neighbour::Ufw(_) | Neighbour::Docker(_) => Vec::new(),
        }
    }
}
