//! Settings of a link's device that need SIOCETHTOOL.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

/// include/uapi/linux/sockios.h, include/uapi/linux/ethtool.h
const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_SGRO: u32 = 0x2c;

/// `struct ethtool_value`
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Switches generic receive offload (GRO).
///
/// # Errors
/// There is no such link, or its device has no GRO.
pub(crate) fn set_gro(link: &str, on: bool) -> io::Result<()> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut value = EthtoolValue { command: ETHTOOL_SGRO, data: on.into() };
    // SAFETY: a structure of numbers and pointers, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays NUL.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the socket is open, and the request and its value live until the call returns.
    let failed = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &mut request) };
    if failed != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
