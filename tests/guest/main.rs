//! The first process of a virtual machine of `cargo xtask vm`: sets up a small host, runs the suites that the plan in its
//! initramfs names, and powers off. Its output and that of the suites go to the second serial port; lines that begin with `::`
//! are parsed by xtask/src/vm/results.rs. A controlled suite also reads that port (tests/vm_node).

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::wait::{WaitStatus, waitpid};
use serde_json::Value;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::process::{Command, Stdio};
use std::time::Instant;

const RESULTS: &str = "/dev/ttyS1";
/// Kernel parameters passed to the tests: the factor of their time-outs (tests/support/host.rs), and the network cards that
/// they may use (tests/support/topology.rs).
const TOLD: [&str; 2] = ["NETPATH_PATIENCE", "NETPATH_CARDS"];
/// Kind and place.
const MOUNTS: [(&str, &str); 7] = [
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

/// Links that devtmpfs does not create; nft reads `/dev/stdin`.
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

fn main() {
    if std::process::id() != 1 {
        eprintln!("this is the init of a virtual machine: cargo xtask vm test boots one");
        return;
    }
    if let Err(error) = run() {
        println!("::broken {error:#}");
        let _ = fs::write(RESULTS, format!("::broken {error:#}\n"));
    }
    // SAFETY: numbers only.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    println!("cannot turn the machine off: {}", std::io::Error::last_os_error());
}

fn run() -> Result<()> {
    for (kind, place) in MOUNTS {
        // The checkout, and files that the tests read, may be below it; the initramfs is memory as well.
        if kind == "tmpfs" && fs::read_dir(place).is_ok_and(|mut entries| entries.next().is_some()) {
            continue;
        }
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("cannot mount {kind} on {place}"))?;
    }
    for (link, target) in LINKS {
        symlink(target, link).with_context(|| format!("cannot link {link}"))?;
    }
    let mut results = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(RESULTS)
        .with_context(|| format!("cannot open {RESULTS}"))?;
    let text = fs::read_to_string("/plan.json").context("cannot read /plan.json")?;
    let plan: Value = serde_json::from_str(&text).context("/plan.json is no JSON")?;
    for name in strings(&plan["modules"]) {
        if let Err(error) = load_module(name) {
            writeln!(results, "::module {name} {error:#}")?;
        }
    }
    let up = Command::new("/usr/bin/ip").args(["link", "set", "lo", "up"]).status().context("cannot run ip")?;
    if !up.success() {
        bail!("cannot bring lo up: ip ended with {up}");
    }
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    writeln!(results, "::ready {}", release.trim())?;
    let is_conducted = |suite: &Value| suite["conducted"].as_bool().unwrap_or_default();
    if !plan["suites"].as_array().into_iter().flatten().any(is_conducted)
        && let Some(report) = doctor()
    {
        writeln!(results, "::doctor {report}")?;
    }
    for suite in plan["suites"].as_array().into_iter().flatten() {
        run_suite(suite, &plan, &mut results)?;
    }
    writeln!(results, "::done")?;
    // SAFETY: the file is open. Waits until the last byte is sent; otherwise some are lost.
    unsafe { libc::tcdrain(results.as_raw_fd()) };
    Ok(())
}

/// The output of `netpath doctor` on this kernel, in one line.
fn doctor() -> Option<Value> {
    let out = Command::new("/usr/bin/netpath").args(["doctor", "--json"]).env_clear().env("PATH", "/usr/bin").output();
    serde_json::from_slice(&out.ok()?.stdout).ok()
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn load_module(name: &str) -> Result<()> {
    let path = format!("/modules/{name}");
    let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
    let none = CString::default();
    // SAFETY: the file is open and the parameters are a string with its end; the kernel keeps neither.
    let failed = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), none.as_ptr(), 0) };
    if failed != 0 {
        bail!("cannot be loaded: {}", std::io::Error::last_os_error());
    }
    // The kernel holds it in memory now; the initramfs is memory too.
    fs::remove_file(&path).with_context(|| format!("cannot remove {path}"))
}

fn run_suite(suite: &Value, plan: &Value, results: &mut File) -> Result<()> {
    let name = suite["name"].as_str().unwrap_or_default();
    let program = suite["program"].as_str().with_context(|| format!("suite {name} names no program"))?;
    writeln!(results, "::begin {name}")?;
    let begun = Instant::now();
    let mut command = Command::new(program);
    command.args(strings(&suite["arguments"])).stdout(results.try_clone()?);
    let is_conducted = suite["conducted"].as_bool().unwrap_or_default();
    if is_conducted {
        // Its error output stays apart from its answers.
        command.stdin(results.try_clone()?).stderr(Stdio::inherit());
    } else {
        command.stdin(Stdio::null()).stderr(results.try_clone()?);
    }
    command.env_clear().envs([
        ("PATH", "/usr/bin"),
        ("HOME", "/root"),
        ("NETPATH_BIN", "/usr/bin/netpath"),
        ("RUST_BACKTRACE", "0"),
    ]);
    // Variables that the caller of xtask has set for the tests.
    command.envs(plan["environment"].as_object().into_iter().flatten().filter_map(|(k, v)| Some((k, v.as_str()?))));
    // From the kernel's command line. The controller of a suite has time-outs of its own.
    if !is_conducted {
        command.envs(TOLD.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?))));
    }
    command.current_dir(plan["directory"].as_str().unwrap_or("/"));
    let child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    // The first process inherits every orphan and has to wait for them too.
    let code = loop {
        match waitpid(None, None).context("cannot wait for a suite")? {
            WaitStatus::Exited(pid, code) if pid.as_raw() as u32 == child.id() => break code.to_string(),
            WaitStatus::Signaled(pid, signal, _) if pid.as_raw() as u32 == child.id() => break signal.to_string(),
            _ => {}
        }
    };
    writeln!(results, "\n::end {name} {code} {}", begun.elapsed().as_millis())?;
    Ok(())
}
