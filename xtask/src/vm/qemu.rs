//! QEMU: found or unpacked, and a guest booted under it. The results come over the second serial port, so that kernel messages
//! on the first one cannot interrupt a line.

use super::apt_sources;
use crate::steps::{Steps, seconds, tail};
use crate::{apt, need, workspace};
use anyhow::{Context, Result, bail};
use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

const PROGRAM: &str = "qemu-system-x86_64";
const PACKAGE: &str = "qemu-system-x86";
/// Printed by the guest once its modules are loaded and its file systems mounted (tests/guest/main.rs).
pub(super) const READY: &str = "::ready ";
/// Disables what short-lived guests do not need and emulation makes slow: retpolines, double clearing of memory, the fifth
/// level of page tables.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off init_on_alloc=0 kfence.sample_interval=0 no5lvl audit=0";
/// Appended under TCG. TCG retranslates code for each address it runs at, so programs get equal addresses each time. It
/// executes x86 string instructions (`rep movsb`) per element, so the kernel copies with ordinary ones. It does not count
/// memory of cgroups. Parameters unknown to the kernel are passed to init: the tests multiply their timeouts by this factor.
const UNDER_TCG: &str = "norandmaps clearcpuid=rep_good cgroup_disable=memory NETPATH_PATIENCE=6";
const MEMORY_MIB: u32 = 2048;
/// Hardware addresses of the network cards of a guest that runs suites. Like the patience, init gets them from the kernel
/// (tests/guest/main.rs), and the tests get them from init (tests/support/topology.rs).
const CARDS: [&str; 2] = ["52:54:00:6e:70:01", "52:54:00:6e:70:02"];
/// Boot limit under KVM: on some machines /dev/kvm opens but guests hang.
const KVM_PATIENCE: Duration = Duration::from_secs(15);
/// Boot limit under TCG, sufficient on a busy machine with other guests.
const TCG_PATIENCE: Duration = Duration::from_secs(300);

/// The program, and its environment where it was unpacked and not installed.
pub(super) struct Qemu {
    program: PathBuf,
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// The machine's own QEMU, or one unpacked below `target/vm`: its installation could remove other packages, such as another
    /// version's qemu-utils.
    ///
    /// # Errors
    /// There is no apt, or apt-get fails.
    pub(super) fn get(steps: &mut Steps) -> Result<Self> {
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

    /// A machine without devices, which exits on reboot.
    pub(super) fn machine(&self, acceleration: Acceleration, memory_mib: u32) -> Command {
        let mut command = self.command();
        match acceleration {
            Acceleration::Kvm => command.args(["-accel", "kvm", "-cpu", "host", "-smp", "2"]),
            // One processor: with two, under emulation one sometimes hits the breakpoint that the other uses to patch a static
            // key, after its removal ("Oops: int3"), and the guest crashes.
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
        // Ends with this process, also on SIGKILL, where `Running` cannot end it.
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
    apt_sources::unpack_missing(&[PACKAGE], root, steps)
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(super) enum Acceleration {
    Kvm,
    Tcg,
}

impl Acceleration {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kvm => "KVM",
            Self::Tcg => "TCG",
        }
    }

    /// QEMU's arguments for the kernel's command line.
    pub(super) fn append(self) -> [String; 2] {
        let line = match self {
            Self::Kvm => COMMAND_LINE.to_owned(),
            Self::Tcg => format!("{COMMAND_LINE} {UNDER_TCG}"),
        };
        ["-append".to_owned(), line]
    }
}

/// Boots under KVM and, if that fails, under TCG; the result is stored until this machine reboots. The inner error of `boot`
/// says why its guest is not up within the given time.
///
/// # Errors
/// An error of `boot`, or no guest boots under KVM where only KVM is wanted.
pub(super) fn accelerated<T>(
    name: &str,
    wanted: Option<Acceleration>,
    mut boot: impl FnMut(Acceleration, Option<Duration>) -> Result<Result<T, String>>,
) -> Result<T> {
    let mut under_tcg = || boot(Acceleration::Tcg, None)?.map_err(anyhow::Error::msg);
    if wanted.or(remembered()) == Some(Acceleration::Tcg) {
        return under_tcg();
    }
    let is_there = Path::new("/dev/kvm").exists();
    let up =
        if is_there { boot(Acceleration::Kvm, Some(KVM_PATIENCE))? } else { Err("there is no /dev/kvm".to_owned()) };
    match up {
        Ok(up) => {
            remember(Acceleration::Kvm);
            Ok(up)
        }
        Err(why) if wanted.is_some() => bail!("no guest comes up under KVM: {why}\n  next: --acceleration tcg"),
        Err(why) => {
            println!(
                "{name}: under KVM {why}\n{name}: TCG from now on, until this machine boots; --acceleration kvm tries again"
            );
            remember(Acceleration::Tcg);
            boot(Acceleration::Tcg, None)?.map_err(anyhow::Error::msg)
        }
    }
}

/// Number of guests that may run in parallel: limited by processors and memory.
pub(super) fn room(acceleration: Option<Acceleration>) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let each = if acceleration == Some(Acceleration::Tcg) { 1 } else { 2 };
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let free = memory.lines().find_map(|l| l.strip_prefix("MemAvailable:")?.trim().strip_suffix(" kB")?.parse().ok());
    // A guest uses its memory, and QEMU some more.
    let fit = free.map_or(1, |kib: usize| kib / 1024 / (MEMORY_MIB as usize * 5 / 4));
    (processors / each).min(fit).max(1)
}

/// A guest to be booted.
pub(super) struct Guest<'a> {
    /// Shown to users, and part of the names of the logs.
    pub name: String,
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    pub longest: Duration,
}

/// The output of a guest.
pub(super) struct Ran {
    pub results: String,
    pub log: PathBuf,
    pub acceleration: Acceleration,
    pub took: Duration,
    /// Why the guest did not finish.
    pub broken: Option<String>,
}

impl Guest<'_> {
    /// Boots the guest and waits for its end.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub(super) fn run(&self, qemu: &Qemu, wanted: Option<Acceleration>) -> Result<Ran> {
        accelerated(&self.name, wanted, |acceleration, patience| {
            let ran = self.boot(qemu, acceleration, patience)?;
            let is_up = patience.is_none() || ran.results.contains(READY);
            Ok(if is_up { Ok(ran) } else { Err(ran.broken.unwrap_or_else(|| "it ended".to_owned())) })
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
        // The cards are connected to each other only.
        for (n, mac) in CARDS.iter().enumerate() {
            command.arg("-netdev").arg(format!("hubport,id=card{n},hubid=0"));
            command.arg("-device").arg(format!("virtio-net-pci,netdev=card{n},mac={mac},romfile="));
        }
        let [append, line] = acceleration.append();
        command.arg("-kernel").arg(self.kernel).arg("-initrd").arg(self.initramfs);
        command.arg(append).arg(format!("{line} NETPATH_CARDS={}", CARDS.join(",")));
        let words = File::create(log("qemu"))?;
        command.stdin(Stdio::null()).stdout(words.try_clone()?).stderr(words);
        let begun = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {}", qemu.program.display()))?;
        let broken = self.wait(Running::new(child), &results, patience, begun)?;
        let text = read(&results);
        let broken = broken.or_else(|| {
            (!text.contains("::done")).then(|| {
                let last = [&console, &log("qemu")].map(|f| tail(read(f).trim_end(), 12)).join("\n");
                format!("the guest ended before its tests did; the end of its output:\n{last}")
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
        let patience = patience.unwrap_or(TCG_PATIENCE);
        loop {
            if running.0.try_wait()?.is_some() {
                return Ok(None);
            }
            let so_far = read(results);
            if begun.elapsed() > patience && !so_far.contains(READY) {
                let said = tail(read(&workspace::logs().join(format!("{}-console.log", self.name))).trim_end(), 3);
                return Ok(Some(format!("it was not up after {}: {said}", seconds(begun.elapsed()))));
            }
            if begun.elapsed() > self.longest {
                return Ok(Some(format!("stopped after {}, in:\n{}", seconds(self.longest), tail(&so_far, 3))));
            }
            // Several guests would overwrite each other's line.
            if terminal && UP.load(Relaxed) == 1 {
                let doing = so_far.lines().rev().find_map(|l| l.strip_prefix("::begin ")).unwrap_or("booting");
                print!("\r{:<14} {doing:<12} … {} s ", self.name, begun.elapsed().as_secs());
                std::io::stdout().flush()?;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// Number of running guests.
static UP: AtomicUsize = AtomicUsize::new(0);

/// Ends the guest on every exit except SIGKILL.
pub(super) struct Running(pub Child);

impl Running {
    pub(super) fn new(child: Child) -> Self {
        UP.fetch_add(1, Relaxed);
        Self(child)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        UP.fetch_sub(1, Relaxed);
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A serial line ends with carriage return and line feed.
fn read(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).replace('\r', "")
}

/// The acceleration of the last guest, valid until this machine reboots.
pub(super) fn remembered() -> Option<Acceleration> {
    let text = fs::read_to_string(memory()).ok()?;
    let (boot, name) = text.trim().split_once(' ')?;
    let known = [Acceleration::Kvm, Acceleration::Tcg].into_iter().find(|a| a.name() == name);
    known.filter(|_| boot == boot_id())
}

fn remember(acceleration: Acceleration) {
    // A failure costs only time.
    let _ = fs::write(memory(), format!("{} {}\n", boot_id(), acceleration.name()));
}

fn memory() -> PathBuf {
    workspace::target().join("vm/acceleration")
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
