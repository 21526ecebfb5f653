//! QEMU: found or unpacked, and a guest booted under it. The results come over the second serial port, so that the
//! kernel's own words on the first one cannot fall into the middle of a line.

use super::apt_sources;
use crate::steps::{Steps, seconds, tail};
use crate::{apt, need, workspace};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// What the guest says when its modules are loaded and its file systems mounted (tests/guest/main.rs).
pub const READY: &str = "::ready ";
/// What a guest that lives for minutes does not need, and what makes emulation slow: retpolines, memory cleared twice, a
/// fifth level of page tables.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off init_on_alloc=0 kfence.sample_interval=0 no5lvl audit=0";
/// Behind it under TCG, which translates code anew for each address that it runs at, so that programs have the same ones each
/// time, and which runs the string instructions of x86 (`rep movsb`) an element at a time, so that the kernel copies with
/// ordinary ones; nor does it count the memory of groups. What the kernel does not know it gives to init: the tests wait as
/// many times as long.
const UNDER_TCG: &str = "norandmaps clearcpuid=rep_good cgroup_disable=memory NETPATH_PATIENCE=6";
const MEMORY_MIB: u32 = 2048;
/// A guest under KVM that has not got there by now hangs: on some machines /dev/kvm opens and guests stand still.
const KVM_PATIENCE: Duration = Duration::from_secs(15);

/// The program, and what it needs where it was not installed but unpacked.
pub struct Qemu {
    program: PathBuf,
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// The machine's own QEMU, or one unpacked below `target/vm`: installed as a package it may push out others, such as
    /// another version's qemu-utils.
    ///
    /// # Errors
    /// There is no apt, or what apt-get says.
    pub fn get(steps: &mut Steps) -> Result<Self> {
        if let Some(program) = need::program(PROGRAM) {
            return Ok(Self { program, unpacked: None });
        }
        let root = workspace::target().join("vm/qemu");
        if !root.exists() {
            unpack(&root, steps)?;
        }
        let program = root.join("usr/bin").join(PROGRAM);
        if !program.is_file() {
            bail!("{} is not there\n  next: rm -r {}, and again", program.display(), root.display());
        }
        Ok(Self { program, unpacked: Some(root) })
    }

    /// A machine without devices, which ends instead of booting again.
    pub fn machine(&self, acceleration: Acceleration, memory_mib: u32) -> Command {
        let mut command = self.command();
        match acceleration {
            Acceleration::Kvm => command.args(["-accel", "kvm", "-cpu", "host", "-smp", "2"]),
            // One processor: with two, emulation now and then has one run into the breakpoint behind which the other
            // patches a static key, after it is gone ("Oops: int3"), and the guest dies of it.
            Acceleration::Tcg => command.args(["-accel", "tcg", "-cpu", "max,-erms,-fsrm", "-smp", "1"]),
        };
        command.args([
            "-machine",
            "q35",
            "-m",
            &memory_mib.to_string(),
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
        ]);
        command.args(["-display", "none", "-vga", "none", "-monitor", "none"]);
        command
    }

    fn command(&self) -> Command {
        // Ends with us, also where we are killed and `Running` cannot end it.
        let mut command = match need::program("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        if let Some(root) = &self.unpacked {
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|d| root.join(d));
            command.env("LD_LIBRARY_PATH", std::env::join_paths(libraries).unwrap_or_default());
            for data in ["usr/share/qemu", "usr/share/seabios"] {
                command.arg("-L").arg(root.join(data));
            }
        }
        command
    }
}

fn unpack(root: &Path, steps: &mut Steps) -> Result<()> {
    if !apt::is_here() {
        bail!("this machine lacks {PROGRAM}\n  next: install QEMU for x86 with your distribution's package manager");
    }
    let debs = workspace::target().join("vm/debs");
    fs::create_dir_all(debs.join("partial")).with_context(|| format!("cannot create {}", debs.display()))?;
    let mut fetch = Command::new("apt-get");
    fetch.args(["install", "--download-only", "--yes", "--no-install-recommends", "-o", "Debug::NoLocking=true", "-o"]);
    fetch.arg(format!("Dir::Cache::archives={}", debs.display())).args(["-o", "APT::Sandbox::User="]).arg(PACKAGE);
    fetch.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    steps.one_more();
    let what = format!("fetch {PACKAGE} and its libraries");
    if steps.run(&what, &mut fetch).is_err() && apt::is_root() {
        // No list of packages yet, or one that names versions that the mirror no longer has.
        apt::update(steps)?;
        steps.one_more();
        steps.run(&what, &mut fetch)?;
    }
    apt_sources::unpack(&debs, root)?;
    fs::remove_dir_all(&debs).with_context(|| format!("cannot remove {}", debs.display()))
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Acceleration {
    Kvm,
    Tcg,
}

impl Acceleration {
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        }
    }

    /// QEMU's arguments for the kernel's command line.
    pub fn append(self) -> [String; 2] {
        let line = match self {
            Self::Kvm => COMMAND_LINE.to_owned(),
            Self::Tcg => format!("{COMMAND_LINE} {UNDER_TCG}"),
        };
        ["-append".to_owned(), line]
    }
}

/// Boots under KVM and, where that does not come up, under TCG; what it was is kept until this machine boots again.
/// `boot` gives nothing if its guest is not up within the patience that it is given.
///
/// # Errors
/// Those of `boot`.
pub fn accelerated<T>(
    name: &str,
    wanted: Option<Acceleration>,
    mut boot: impl FnMut(Acceleration, Option<Duration>) -> Result<Option<T>>,
) -> Result<T> {
    let first = wanted.unwrap_or_else(|| remembered().unwrap_or(Acceleration::Kvm));
    if wanted.is_some() || first == Acceleration::Tcg {
        return boot(first, None)?.context("a guest without an end");
    }
    if Path::new("/dev/kvm").exists() {
        if let Some(up) = boot(Acceleration::Kvm, Some(KVM_PATIENCE))? {
            remember(Acceleration::Kvm);
            return Ok(up);
        }
        println!("{name:<14} no guest comes up under KVM within {}: TCG", seconds(KVM_PATIENCE));
    }
    remember(Acceleration::Tcg);
    boot(Acceleration::Tcg, None)?.context("a guest without an end")
}

/// A guest to be booted.
pub struct Guest<'a> {
    /// For people, and for the names of the logs.
    pub name: String,
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    pub longest: Duration,
}

/// What a guest has written.
pub struct Ran {
    pub results: String,
    pub log: PathBuf,
    pub acceleration: Acceleration,
    pub took: Duration,
    /// Why it did not come to its end.
    pub broken: Option<String>,
}

impl Guest<'_> {
    /// Boots it and waits for its end.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub fn run(&self, qemu: &Qemu, wanted: Option<Acceleration>) -> Result<Ran> {
        accelerated(&self.name, wanted, |acceleration, patience| {
            let ran = self.boot(qemu, acceleration, patience)?;
            Ok((patience.is_none() || ran.results.contains(READY)).then_some(ran))
        })
    }

    fn boot(&self, qemu: &Qemu, acceleration: Acceleration, patience: Option<Duration>) -> Result<Ran> {
        let log = |part: &str| workspace::logs().join(format!("{}-{part}.log", self.name));
        fs::create_dir_all(workspace::logs()).context("cannot create the directory of logs")?;
        let (console, results) = (log("console"), log("results"));
        for file in [&console, &results] {
            fs::write(file, "").with_context(|| format!("cannot write {}", file.display()))?;
        }
        let mut command = qemu.machine(acceleration, MEMORY_MIB);
        for file in [&console, &results] {
            command.arg("-serial").arg(format!("file:{}", file.display()));
        }
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initramfs).args(acceleration.append());
        let words = File::create(log("qemu"))?;
        command.stdin(Stdio::null()).stdout(words.try_clone()?).stderr(words);
        let begun = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {}", qemu.program.display()))?;
        let broken = self.wait(Running(child), &results, patience, begun)?;
        let text = read(&results);
        let broken = broken.or_else(|| {
            (!text.contains("::done")).then(|| {
                let last = [&console, &log("qemu")].map(|f| tail(read(f).trim_end(), 12)).join("\n");
                format!("the guest ended before its tests did; its last words:\n{last}")
            })
        });
        Ok(Ran { results: text, log: results, acceleration, took: begun.elapsed(), broken })
    }

    fn wait(
        &self,
        mut running: Running,
        results: &Path,
        patience: Option<Duration>,
        begun: Instant,
    ) -> Result<Option<String>> {
        let terminal = std::io::stdout().is_terminal();
        loop {
            if running.0.try_wait()?.is_some() {
                return Ok(None);
            }
            let so_far = read(results);
            if patience.is_some_and(|p| begun.elapsed() > p) && !so_far.contains(READY) {
                return Ok(Some(format!("not up after {}", seconds(begun.elapsed()))));
            }
            if begun.elapsed() > self.longest {
                return Ok(Some(format!("stopped after {}, in:\n{}", seconds(self.longest), tail(&so_far, 3))));
            }
            if terminal {
                let doing = so_far.lines().rev().find_map(|l| l.strip_prefix("::begin ")).unwrap_or("booting");
                print!("\r{:<14} {doing:<12} … {} s ", self.name, begun.elapsed().as_secs());
                std::io::stdout().flush()?;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Ends the guest whatever becomes of us, short of SIGKILL.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A serial line ends with carriage return and line feed.
fn read(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).replace('\r', "")
}

/// How the last guest came up, for as long as this machine is not booted again.
fn remembered() -> Option<Acceleration> {
    let text = fs::read_to_string(memory()).ok()?;
    let (boot, name) = text.trim().split_once(' ')?;
    let known = [Acceleration::Kvm, Acceleration::Tcg].into_iter().find(|a| a.name() == name);
    known.filter(|_| boot == boot_id())
}

fn remember(acceleration: Acceleration) {
    // Nothing is lost without it but time.
    let _ = fs::write(memory(), format!("{} {}\n", boot_id(), acceleration.name()));
}

fn memory() -> PathBuf {
    workspace::target().join("vm/acceleration")
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
