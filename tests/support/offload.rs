//! Offloads of an interface, as set by `ethtool -K`, and their effect on packets.

use crate::host::Netns;
use crate::packet_socket;
use anyhow::{Context, Result, ensure};
use nix::sys::socket::{MsgFlags, recv};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

/// `include/uapi/linux/sockios.h`, `include/uapi/linux/ethtool.h`.
const SIOCETHTOOL: u64 = 0x8946;
const GET_STRINGS: u32 = 0x1b;
const GET_SET_INFO: u32 = 0x37;
const SET_FEATURES: u32 = 0x3b;
const FEATURES: u32 = 4;
const STRING: usize = 32;

/// `struct ifreq` with a pointer in its union.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut u32,
    rest: [u64; 2],
}

/// `words`: an ethtool command with space for its answer.
fn call(interface: &str, words: &mut [u32]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    let mut request = Request { name: [0; libc::IFNAMSIZ], data: words.as_mut_ptr(), rest: [0; 2] };
    // The last byte stays NUL.
    for (to, from) in request.name[..libc::IFNAMSIZ - 1].iter_mut().zip(interface.bytes()) {
        *to = from;
    }
    // SAFETY: the command determines how much the kernel reads and writes, and callers provide as many words.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The number of a feature by its name in `ethtool -k`, such as `rx-gro-list`; and the number of features.
fn number(interface: &str, feature: &str) -> Result<(usize, usize)> {
    // The command, a reserved word, the mask of sets in two words, the length of each.
    let mut info = [GET_SET_INFO, 0, 1 << FEATURES, 0, 0];
    call(interface, &mut info).context("how many features there are")?;
    let mut words = vec![0; 3 + info[4] as usize * STRING / 4];
    (words[0], words[1], words[2]) = (GET_STRINGS, FEATURES, info[4]);
    call(interface, &mut words).context("the names of features")?;
    let bytes: Vec<u8> = words[3..].iter().flat_map(|w| w.to_ne_bytes()).collect();
    let is_it = |name: &[u8]| name.split(|b| *b == 0).next() == Some(feature.as_bytes());
    let at = bytes.chunks(STRING).position(is_it).with_context(|| format!("this kernel has no feature {feature}"))?;
    Ok((at, info[4] as usize))
}

/// # Errors
/// This kernel does not have the feature, or cannot change it.
pub fn switch(netns: &Netns, interface: &str, feature: &str, on: bool) -> Result<()> {
    netns.run(|| {
        let (n, all) = number(interface, feature)?;
        // The kernel requires all blocks.
        let blocks = all.div_ceil(32);
        let mut words = vec![0; 2 + 2 * blocks];
        (words[0], words[1]) = (SET_FEATURES, blocks as u32);
        // The mask of changed bits, and their values.
        let at = 2 + 2 * (n / 32);
        (words[at], words[at + 1]) = (1 << (n % 32), u32::from(on) << (n % 32));
        call(interface, &mut words).with_context(|| format!("switch {feature} of {interface}"))
    })
}

/// Packet lengths as seen by an interface's stack: merged packets (GRO, LRO) count as one.
pub struct Lengths(OwnedFd);

impl Lengths {
    /// For all interfaces of the namespace, from now on.
    ///
    /// # Errors
    /// Not root.
    pub fn of(netns: &Netns) -> Result<Self> {
        packet_socket::open(netns, None).map(Self)
    }

    /// As [`Lengths::of`], but at one interface.
    ///
    /// # Errors
    /// As [`Lengths::of`], or there is no such interface.
    pub fn at(netns: &Netns, interface: &str) -> Result<Self> {
        packet_socket::open(netns, Some(interface)).map(Self)
    }

    /// As [`Lengths::of`], but only for packets that come into the namespace and are longer than `bytes`: shorter ones cannot
    /// fill the buffer.
    ///
    /// # Errors
    /// As [`Lengths::of`], or the kernel rejects the filter.
    pub fn arriving_above(netns: &Netns, bytes: u32) -> Result<Self> {
        // include/uapi/linux/filter.h: BPF_LD | BPF_W | BPF_ABS, BPF_LD | BPF_W | BPF_LEN, BPF_JMP | BPF_JEQ,
        // BPF_JMP | BPF_JGT, BPF_RET; SKF_AD_OFF + SKF_AD_PKTTYPE; include/uapi/linux/if_packet.h, PACKET_OUTGOING.
        let step = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut steps = [
            step(0x20, 0, 0, (-0x1000_i32 + 4) as u32),
            step(0x15, 2, 0, 4),
            step(0x80, 0, 0, 0),
            step(0x25, 1, 0, bytes),
            step(0x06, 0, 0, 0),
            step(0x06, 0, 0, u32::MAX),
        ];
        let filter = libc::sock_fprog { len: steps.len() as u16, filter: steps.as_mut_ptr() };
        let lengths = Self::of(netns)?;
        let (fd, size) = (lengths.0.as_raw_fd(), size_of_val(&filter) as libc::socklen_t);
        // SAFETY: the kernel reads the filter and its instructions, which outlive the call.
        let set =
            unsafe { libc::setsockopt(fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, (&raw const filter).cast(), size) };
        ensure!(set == 0, "cannot attach a filter: {}", io::Error::last_os_error());
        // Discards earlier packets.
        lengths.longest();
        Ok(lengths)
    }

    /// The longest received so far.
    pub fn longest(&self) -> usize {
        let mut longest = 0;
        let deadline = Instant::now() + Duration::from_secs(1);
        while Instant::now() < deadline {
            match recv(self.0.as_raw_fd(), &mut [], MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC) {
                Ok(len) => longest = longest.max(len),
                Err(_) => break,
            }
        }
        longest
    }
}

/// # Errors
/// Nothing can be sent.
pub fn send_segments(socket: &std::net::UdpSocket, data: &[u8], each: u16) -> Result<()> {
    crate::traffic::set_option(socket, libc::SOL_UDP, libc::UDP_SEGMENT, &i32::from(each).to_ne_bytes())?;
    ensure!(socket.send(data).context("send in segments")? == data.len(), "a part was sent");
    Ok(())
}
