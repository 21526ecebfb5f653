//! The root of the cgroup2 tree, where programs see every socket of the machine.

use crate::model::error::{Context, Error, Result};
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// A descriptor of the root: of a mounted tree, otherwise of a private mount for this process (5.2), which ends with
/// it.
///
/// # Errors
/// The kernel has no cgroup2, or does not permit to mount it.
pub(super) fn root() -> Result<OwnedFd> {
    let mountinfo =
        fs::read_to_string("/proc/self/mountinfo").context(|| "cannot read /proc/self/mountinfo".to_owned())?;
    for place in mounted(&mountinfo) {
        match open(place.as_str(), OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(fd) => return Ok(fd),
            Err(e) => tracing::debug!(place, error = %e, "cannot open this cgroup2 mount"),
        }
    }
    detached().map_err(|e| {
        Error::new("cannot reach the cgroup2 tree")
            .because(e)
            .next("mount cgroup2, or use a kernel with CONFIG_CGROUP_BPF")
    })
}

/// Mounts of the whole tree: field 4 is the root within the tree, 5 the mount point, and the type follows the dash.
/// Source: `Documentation/filesystems/proc.rst`, 3.5.
fn mounted(mountinfo: &str) -> impl Iterator<Item = String> {
    mountinfo.lines().filter_map(|line| {
        let (mount, device) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let whole = fields.next()? == "/";
        let place = fields.next()?;
        let ours = device.split(' ').next()? == "cgroup2";
        (whole && ours).then(|| unescape(place))
    })
}

/// Blanks, tabs, line ends and backslashes are written as three octal digits.
fn unescape(place: &str) -> String {
    let mut out = String::new();
    let mut rest = place;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        if let Some(byte) = after.get(..3).and_then(|d| u8::from_str_radix(d, 8).ok()) {
            out.push(char::from(byte));
            rest = &after[3..];
        } else {
            out.push('\\');
            rest = after;
        }
    }
    out + rest
}

fn detached() -> io::Result<OwnedFd> {
    let context = open_context(c"cgroup2")?;
    const FSCONFIG_CMD_CREATE: libc::c_long = 6;
    let nothing = std::ptr::null::<libc::c_void>();
    let fd = libc::c_long::from(context.as_raw_fd());
    // SAFETY: this command takes neither key nor value.
    let done = unsafe { libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, nothing, nothing, 0_i64) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    const FSMOUNT_CLOEXEC: libc::c_long = 1;
    // SAFETY: takes numbers only.
    let mount = unsafe { libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0_i64) };
    if mount < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor without another owner.
    let mount = unsafe { OwnedFd::from_raw_fd(mount as i32) };
    // The mount's own descriptor is only a path (O_PATH); this one is open, and keeps the mount.
    Ok(openat(mount.as_fd(), ".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Starts to mount a file system (5.2), invisible until it is attached.
pub(super) fn open_context(filesystem: &std::ffi::CStr) -> io::Result<OwnedFd> {
    const FSOPEN_CLOEXEC: libc::c_long = 1;
    // SAFETY: the name ends with NUL and is only read.
    let fd = unsafe { libc::syscall(libc::SYS_fsopen, filesystem.as_ptr(), FSOPEN_CLOEXEC) };
    // SAFETY: on success a new descriptor without another owner.
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_of_the_whole_tree_is_taken() {
        let info = "\
25 30 0:23 / /sys rw,nosuid - sysfs sysfs rw
31 25 0:27 /user.slice /part rw shared:5 - cgroup2 cgroup2 rw
32 25 0:27 / /sys/fs/cgroup\\040two rw,nosuid shared:5 master:2 - cgroup2 cgroup2 rw
33 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu
garbage
";
        assert_eq!(vec!["/sys/fs/cgroup two".to_owned()], mounted(info).collect::<Vec<_>>());
    }
}
