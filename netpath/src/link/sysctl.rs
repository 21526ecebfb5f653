//! Sysctls of the calling thread's network namespace, as paths below /proc/sys.

use crate::model::error::{Error, Result};
use std::io::ErrorKind;
use std::path::PathBuf;

/// Forwarding on all interfaces of the host, IPv4 and IPv6.
pub const FORWARDING: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// The sysctl `key` of an interface. Paths have slashes, so that a dot in an interface's name stays a dot.
pub fn of_interface(family: &str, interface: &str, key: &str) -> String {
    format!("net/{family}/conf/{interface}/{key}")
}

fn file(path: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(path)
}

/// The value without trailing white space; `None` if the kernel does not have the sysctl.
///
/// # Errors
/// The sysctl exists and cannot be read.
pub fn read(path: &str) -> Result<Option<String>> {
    match std::fs::read_to_string(file(path)) {
        Ok(text) => Ok(Some(text.trim_end().to_owned())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::new(format!("cannot read sysctl {path}")).because(e)),
    }
}

/// The words in the middle are netavark's.
fn refused(path: &str, value: &str, e: &std::io::Error) -> Error {
    Error::new(format!("cannot set sysctl {path}")).because(format!("IO error: {e}, for the value {value}"))
}

/// Sets a sysctl and returns its former value if that was different. A correct value is not written, since /proc/sys may
/// be read-only where netpath runs inside a container.
///
/// # Errors
/// The kernel does not have the sysctl, or refuses the value.
pub fn ensure(path: &str, value: &str) -> Result<Option<String>> {
    let before = read(path)?.ok_or_else(|| {
        let e = Error::new(format!("cannot set sysctl {path}={value}")).because("this kernel does not have it");
        if path.starts_with("net/ipv6") { e.next("enable IPv6 in the kernel, or use networks without it") } else { e }
    })?;
    if before == value {
        return Ok(None);
    }
    write(path, value)?;
    Ok(Some(before))
}

/// As [`ensure`], for an optional setting: a kernel without the sysctl, or a read-only /proc/sys, is no error.
///
/// # Errors
/// The kernel refuses the value.
pub fn ensure_if_possible(path: &str, value: &str) -> Result<()> {
    match std::fs::read_to_string(file(path)) {
        Ok(now) if now.trim_end() == value => return Ok(()),
        Ok(_) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::new(format!("cannot read sysctl {path}")).because(e)),
    }
    match std::fs::write(file(path), value) {
        Err(e) if !matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EROFS)) => Err(refused(path, value, &e)),
        _ => Ok(()),
    }
}

/// # Errors
/// The kernel does not have the sysctl, or refuses the value.
pub fn write(path: &str, value: &str) -> Result<()> {
    std::fs::write(file(path), value).map_err(|e| {
        let read_only = e.raw_os_error() == Some(libc::EROFS);
        let e = refused(path, value, &e);
        if read_only { e.next("set it on the host, or mount /proc/sys writable") } else { e }
    })
}
