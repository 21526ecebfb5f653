//! Denies bpf(2) to one child process, as a locked-down host or a container does.
//!
//! ```no_run
//! use support::refuse_bpf::RefuseBpf;
//! let mut netpath = std::process::Command::new("netpath");
//! netpath.arg("doctor").refuse_bpf();
//! let output = netpath.output();
//! ```
//! The child and its descendants get EPERM from bpf(2), for any command; the caller is not affected.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

#[cfg(target_arch = "x86_64")]
const ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCH: u32 = 0xc000_00b7;

/// Offsets in `struct seccomp_data` (include/uapi/linux/seccomp.h).
const NR: u32 = 0;
const ARCH_AT: u32 = 4;

pub trait RefuseBpf {
    /// Makes bpf(2) fail with EPERM in the process that this command starts.
    fn refuse_bpf(&mut self) -> &mut Self;
}

impl RefuseBpf for Command {
    fn refuse_bpf(&mut self) -> &mut Self {
        let filter = filter();
        // SAFETY: between fork and exec only two bare system calls are made, on memory that the closure owns.
        unsafe { self.pre_exec(move || install(&filter)) }
    }
}

fn op(code: u32, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt, jf, k }
}

fn filter() -> [libc::sock_filter; 6] {
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let give = libc::BPF_RET | libc::BPF_K;
    let (bpf, refused) = (libc::SYS_bpf as u32, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
    [
        op(load, 0, 0, ARCH_AT),
        op(equal, 0, 3, ARCH),
        op(load, 0, 0, NR),
        op(equal, 0, 1, bpf),
        op(give, 0, 0, refused),
        op(give, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn install(filter: &[libc::sock_filter; 6]) -> io::Result<()> {
    let program = libc::sock_fprog { len: 6, filter: filter.as_ptr().cast_mut() };
    // SAFETY: numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `program` points to the six instructions of `filter`, which outlive the call; the kernel copies them.
    if unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    /// Run as a child by the test below: prints the errno of bpf(2) with a command that the kernel does not have.
    #[test]
    fn child_asks_for_bpf() {
        if std::env::var_os("KIT_ASK_BPF").is_some() {
            // SAFETY: an unknown command with no attributes; the kernel reads nothing.
            unsafe { libc::syscall(libc::SYS_bpf, 10_000, 0, 0) };
            println!("errno={}", io::Error::last_os_error().raw_os_error().unwrap_or(0));
        }
    }

    fn errno_of_a_child(refuse: bool) -> String {
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        child.args(["--exact", "refuse_bpf::tests::child_asks_for_bpf", "--nocapture"]).env("KIT_ASK_BPF", "1");
        child.stdin(Stdio::null());
        if refuse {
            child.refuse_bpf();
        }
        let out = child.output().expect("the child runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.split("errno=").nth(1).and_then(|t| t.split_whitespace().next()).unwrap_or_default().to_owned()
    }

    #[test]
    fn a_child_gets_eperm_where_the_kernel_says_something_else() {
        assert_eq!(libc::EPERM.to_string(), errno_of_a_child(true));
        // An unprivileged caller gets EPERM from the kernel as well.
        if nix::unistd::geteuid().is_root() {
            assert_eq!(libc::EINVAL.to_string(), errno_of_a_child(false));
        }
    }
}
