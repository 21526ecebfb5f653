//! Offloads of an interface in the calling thread's network namespace (`include/uapi/linux/ethtool.h`).

use crate::model::IfName;
use crate::model::error::{Context, Error, Result};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixDatagram;

const GET_GRO: u32 = 0x2b;
const SET_GRO: u32 = 0x2c;

/// `struct ethtool_value`
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

/// `struct ifreq` with a pointer in its union.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut Value,
    rest: [u64; 2],
}

/// Enables generic receive offload. It gives a veth NAPI, without which the veth drops frames that XDP redirects to its
/// peer (5.13).
///
/// # Errors
/// There is no such interface, or the kernel does not change the setting.
pub fn switch_on_gro(interface: &IfName) -> Result<()> {
    call(interface, SET_GRO, 1)?;
    match call(interface, GET_GRO, 0)? {
        0 => Err(Error::new(what(interface)).because("the kernel leaves it off")),
        _ => Ok(()),
    }
}

fn what(interface: &IfName) -> String {
    format!("cannot enable GRO on {interface}")
}

fn call(interface: &IfName, command: u32, data: u32) -> Result<u32> {
    // The ioctl works on any socket; this kind needs neither address nor port.
    let socket = UnixDatagram::unbound().context(|| what(interface))?;
    let mut value = Value { command, data };
    let mut request = Request { name: [0; libc::IFNAMSIZ], data: &raw mut value, rest: [0; 2] };
    // An `IfName` is shorter than IFNAMSIZ, so a NUL follows it.
    for (to, from) in request.name.iter_mut().zip(interface.as_str().bytes()) {
        *to = from;
    }
    // SAFETY: the kernel reads the request and reads and writes the value; both outlive the call.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL.into(), &raw mut request) } {
        0 => Ok(value.data),
        _ => Err(std::io::Error::last_os_error()).context(|| what(interface)),
    }
}

/// `include/uapi/linux/sockios.h`
const SIOCETHTOOL: u32 = 0x8946;
