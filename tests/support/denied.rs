//! Denies a system call to one child process, as a locked-down host, a container or a kernel without a feature does.
//!
//! ```no_run
//! let mut netpath = std::process::Command::new("netpath");
//! support::denied::BPF.to(netpath.arg("doctor"));
//! let output = netpath.output();
//! ```
//! The child and its descendants get the error; the caller is not affected.

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
const ARGUMENTS: u32 = 16;

/// A system call that fails.
#[derive(Clone, Copy, Debug)]
pub struct Denied {
    call: libc::c_long,
    /// Only with this value, of 32 bits, of this argument.
    argument: Option<(u32, u32)>,
    errno: i32,
}

/// bpf(2), with any command.
pub const BPF: Denied = Denied { call: libc::SYS_bpf, argument: None, errno: libc::EPERM };
/// BPF_LINK_CREATE, as for an attach type that the kernel does not know. Links of cgroups fail too.
pub const BPF_LINKS: Denied = Denied { call: libc::SYS_bpf, argument: Some((0, 28)), errno: libc::EINVAL };
/// Sockets of NETLINK_NETFILTER, by which rules in nf_tables are read and written.
pub const NF_TABLES: Denied = Denied { call: libc::SYS_socket, argument: Some((2, 12)), errno: libc::EPROTONOSUPPORT };

impl Denied {
    /// Denies it to the process that this command starts.
    pub fn to(self, command: &mut Command) {
        let filter = self.filter();
        // SAFETY: between fork and exec only two bare system calls are made, on memory that the closure owns.
        unsafe { command.pre_exec(move || install(&filter)) };
    }

    fn filter(self) -> Vec<libc::sock_filter> {
        let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        let equal = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
        let give = libc::BPF_RET | libc::BPF_K;
        let mut filter = vec![(load, ARCH_AT), (equal, ARCH), (load, NR), (equal, self.call as u32)];
        if let Some((at, value)) = self.argument {
            // The lower half of 64 bits, on machines with the lower byte first.
            filter.extend([(load, ARGUMENTS + 8 * at), (equal, value)]);
        }
        filter.push((give, libc::SECCOMP_RET_ERRNO | self.errno as u32));
        let last = filter.len() as u8;
        filter.push((give, libc::SECCOMP_RET_ALLOW));
        // A value that differs leads to the last instruction.
        let op = |(at, (code, k)): (usize, (u32, u32))| {
            let jf = if code == equal { last - at as u8 - 1 } else { 0 };
            libc::sock_filter { code: code as u16, jt: 0, jf, k }
        };
        filter.into_iter().enumerate().map(op).collect()
    }
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: numbers only.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `program` points to the instructions of `filter`, which outlive the call; the kernel copies them.
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

    fn errno_of_a_child(denied: Option<Denied>) -> String {
        let mut child = Command::new(std::env::current_exe().expect("this program"));
        child.args(["--exact", "denied::tests::child_asks_for_bpf", "--nocapture"]).env("KIT_ASK_BPF", "1");
        child.stdin(Stdio::null());
        if let Some(denied) = denied {
            denied.to(&mut child);
        }
        let out = child.output().expect("the child runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        text.split("errno=").nth(1).and_then(|t| t.split_whitespace().next()).unwrap_or_default().to_owned()
    }

    #[test]
    fn a_child_gets_eperm_where_the_kernel_says_something_else() {
        assert_eq!(libc::EPERM.to_string(), errno_of_a_child(Some(BPF)));
        // An unprivileged caller gets EPERM from the kernel as well.
        if nix::unistd::geteuid().is_root() {
            assert_eq!(libc::EINVAL.to_string(), errno_of_a_child(None));
            // Another command.
            assert_eq!(libc::EINVAL.to_string(), errno_of_a_child(Some(Denied { errno: libc::EIO, ..BPF_LINKS })));
        }
    }
}
