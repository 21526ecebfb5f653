//! Requirements of a test. A test that cannot run is ignored, with the reason: `needs …`.

use crate::netavark::{Rung, is_incumbent};
use nix::sched::{CloneFlags, unshare};
use std::io::Write;
use std::process::{Command, Stdio};

/// Ends the test as ignored unless every requirement is met.
#[macro_export]
macro_rules! need {
    ($($need:expr),+ $(,)?) => {
        $(if let Err(what) = $need {
            return Err($crate::harness::Skipped(what).into());
        })+
    };
}

/// Whether the run is to be as thorough as possible: `NETPATH_SOAK=full`.
pub fn is_full() -> bool {
    std::env::var("NETPATH_SOAK").is_ok_and(|v| v == "full")
}

/// `Err` holds the missing requirement.
pub type Need = Result<(), String>;

/// A line shown in a passing run, such as a measured figure.
pub fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// # Errors
/// Not root.
pub fn root() -> Need {
    if nix::unistd::geteuid().is_root() { Ok(()) } else { Err("root".to_owned()) }
}

/// # Errors
/// The program under test is Netavark.
pub fn netpath() -> Need {
    if is_incumbent() { Err("netpath as the program under test (it is Netavark)".to_owned()) } else { Ok(()) }
}

/// Cases on the packaged peer validate the cases, not netpath, and double the time: they run only on request.
///
/// # Errors
/// `NETPATH_PEER=1` is not set.
pub fn peer() -> Need {
    if std::env::var("NETPATH_PEER").is_ok_and(|v| v == "1") {
        return Ok(());
    }
    Err("NETPATH_PEER=1: on the distribution's netavark it proves the case itself, not netpath".to_owned())
}

/// # Errors
/// A program is missing from PATH, or from the given path.
pub fn program(name: &str) -> Need {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(name).is_file());
    if found { Ok(()) } else { Err(format!("the program {name}")) }
}

/// # Errors
/// This machine or the program under test does not support that rung.
pub fn rung(rung: Rung) -> Need {
    root()?;
    match rung {
        Rung::Nftables => netpath(),
        Rung::Iptables => program("iptables"),
        Rung::IptablesLegacy => {
            let of = |name| program(name).and_then(|()| accepted(name, "-w -t nat -L"));
            netpath().and_then(|()| of("iptables-legacy")).and_then(|()| of("ip6tables-legacy"))
        }
        Rung::Clsact => netpath().and_then(|()| bpf()),
        Rung::Tcx => netpath().and_then(|()| bpf()).and_then(|()| tcx()),
    }
}

/// # Errors
/// That rung has no programs.
pub fn programs(rung: Rung) -> Need {
    if rung.is_ebpf() { Ok(()) } else { Err("programs: this rung has none".to_owned()) }
}

/// # Errors
/// The programs cannot query a route's source: BPF_FIB_LOOKUP_SRC came with 6.7.
pub fn route_source(rung: Rung) -> Need {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map_while(|n| n.parse::<u32>().ok());
    let known = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 7);
    if known || !rung.is_ebpf() { Ok(()) } else { Err("BPF_FIB_LOOKUP_SRC (since 6.7)".to_owned()) }
}

/// # Errors
/// bpf() is denied.
pub fn bpf() -> Need {
    const BPF_PROG_GET_NEXT_ID: libc::c_long = 11;
    // start_id, next_id, open_flags: the smallest request that needs privileges.
    match bpf_call(BPF_PROG_GET_NEXT_ID, &mut [0_u32; 32]) {
        Some(libc::EPERM | libc::ENOSYS) => Err("bpf(): this process may not use it".to_owned()),
        _ => Ok(()),
    }
}

/// # Errors
/// The kernel has no TCX (since 6.6).
pub fn tcx() -> Need {
    const BPF_PROG_QUERY: libc::c_long = 16;
    const BPF_TCX_INGRESS: u32 = 46;
    let mut attr = [0_u32; 32];
    attr[0] = 1; // lo
    attr[1] = BPF_TCX_INGRESS;
    match bpf_call(BPF_PROG_QUERY, &mut attr) {
        // Nothing attached to `lo`, or something: both show support.
        None | Some(libc::ENOENT) => Ok(()),
        Some(errno) => Err(format!("tcx: BPF_PROG_QUERY gave errno {errno} (since 6.6)")),
    }
}

/// clsact runs the same programs as TCX, at another hook: where a kernel has both, every fourth test of a group takes clsact.
///
/// # Errors
/// Another test of the group takes it.
pub fn turn(rung: Rung, test: &str, group: &[&str]) -> Need {
    let place = group.iter().position(|name| *name == test).unwrap_or_default();
    if rung != Rung::Clsact || place.is_multiple_of(4) || is_full() || tcx().is_err() {
        return Ok(());
    }
    Err("NETPATH_SOAK=full: other tests of this group take this way".to_owned())
}

/// As [`turn`], for load: of two hooks of the same programs one is enough.
///
/// # Errors
/// The rung is clsact and the kernel has TCX.
pub fn best_hooks(rung: Rung) -> Need {
    if rung != Rung::Clsact || is_full() || tcx().is_err() {
        return Ok(());
    }
    Err("NETPATH_SOAK=full: on TCX the same programs bear the load".to_owned())
}

/// # Errors
/// The kernel has no tun devices, or denies them to this process.
pub fn tun() -> Need {
    let opened = std::fs::File::options().read(true).write(true).open(crate::tun::DEVICE);
    opened.map(drop).map_err(|e| format!("tun: {}: {e}", crate::tun::DEVICE))
}

/// # Errors
/// The tests have no network cards.
pub fn cards() -> Need {
    let given = crate::topology::cards();
    given.map(drop).ok_or_else(|| "two network cards that tests may take: cargo xtask vm test gives them".to_owned())
}

/// Whether `ip` or `tc` accepts this in a namespace with nothing but a pair of veths, `v0` and `v1`.
///
/// # Errors
/// The program's error, such as an unsupported device or queue.
pub fn accepted(program: &str, words: &str) -> Need {
    root()?;
    let run = |program: &str, words: &str| {
        let out = Command::new(program).args(words.split(' ')).stdin(Stdio::null()).output();
        let out = out.map_err(|e| format!("the program {program}: {e}"))?;
        let said = String::from_utf8_lossy(&out.stderr).trim().replace('\n', ", ");
        if out.status.success() { Ok(()) } else { Err(format!("{program} {words}: {said}")) }
    };
    let inside = || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|e| format!("a network namespace: {e}"))?;
        run("ip", "link add v0 type veth peer name v1")?;
        run(program, words)
    };
    std::thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|_| Err("a thread that lives".to_owned()))
}

/// The errno of a bpf() call, or `None` for success.
fn bpf_call(command: libc::c_long, attr: &mut [u32; 32]) -> Option<i32> {
    // SAFETY: attr is a writable block of the size given; the kernel accesses no more.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_mut_ptr(), size_of_val(attr)) };
    if answer < 0 { std::io::Error::last_os_error().raw_os_error() } else { None }
}
