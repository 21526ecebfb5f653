//! Receives and sends UDP messages many at a time: one system call for up to [`SIZE`] of them.

use super::udp::{HEADERS, Udp};
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Messages that are received at once.
pub(super) const SIZE: usize = 32;
/// Bytes of a query. Of a longer one the rest is cut off, and it is malformed then.
const LONGEST: usize = 2048;

pub(super) struct Batch {
    input: Box<[[u8; LONGEST]; SIZE]>,
    lengths: [usize; SIZE],
    addresses: Box<[libc::sockaddr_storage; SIZE]>,
    address_lengths: [libc::socklen_t; SIZE],
    /// Answers, one after the other.
    pub output: Vec<u8>,
    /// For each answer where it ends in `output`, and whose it is.
    answers: Vec<(usize, usize)>,
}

impl Batch {
    pub(super) fn new() -> Self {
        Self {
            input: Box::new([[0; LONGEST]; SIZE]),
            lengths: [0; SIZE],
            // SAFETY: zeros are a valid address of no family.
            addresses: Box::new(unsafe { zeroed() }),
            address_lengths: [0; SIZE],
            output: Vec::with_capacity(SIZE * 256),
            answers: Vec::with_capacity(SIZE),
        }
    }

    /// Receives what has arrived, without waiting; returns the number of messages.
    ///
    /// # Errors
    /// The kernel's; `WouldBlock`: nothing has arrived.
    pub(super) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        self.output.clear();
        self.answers.clear();
        let mut parts: [libc::iovec; SIZE] =
            std::array::from_fn(|at| libc::iovec { iov_base: self.input[at].as_mut_ptr().cast(), iov_len: LONGEST });
        // SAFETY: zeros are a valid header: no address, no part, no control data.
        let mut headers: [libc::mmsghdr; SIZE] = unsafe { zeroed() };
        for ((header, part), address) in headers.iter_mut().zip(&mut parts).zip(self.addresses.iter_mut()) {
            header.msg_hdr.msg_name = std::ptr::from_mut(address).cast();
            header.msg_hdr.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_hdr.msg_iov = part;
            header.msg_hdr.msg_iovlen = 1;
        }
        // SAFETY: every header points to a part and an address of the sizes given, which live until the call has ended.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                headers.as_mut_ptr(),
                SIZE as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        let received = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
        for (at, header) in headers[..received].iter().enumerate() {
            self.lengths[at] = header.msg_len as usize;
            self.address_lengths[at] = header.msg_hdr.msg_namelen;
        }
        Ok(received)
    }

    /// The message, and the memory for its answer.
    pub(super) fn message(&mut self, at: usize) -> (&[u8], &mut Vec<u8>) {
        (&self.input[at][..self.lengths[at]], &mut self.output)
    }

    pub(super) fn sender(&self, at: usize) -> Option<SocketAddr> {
        let address = std::ptr::from_ref(&self.addresses[at]).cast();
        // SAFETY: there is memory for any address, and the kernel has written one of this length, or it is all zeros.
        let address = unsafe { SockaddrStorage::from_raw(address, Some(self.address_lengths[at])) }?;
        let v4 = address.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())))
    }

    /// What was added to `output` since the last call is the answer to this message.
    pub(super) fn answered(&mut self, at: usize) {
        self.answers.push((self.output.len(), at));
    }

    /// Sends the answers. Those that the kernel does not take are lost, as on any way.
    pub(super) fn send(&mut self, udp: &Udp) {
        let (mut begin, count) = (0, self.answers.len().min(SIZE));
        let mut fronts = [[0; HEADERS]; SIZE];
        let mut parts = [[libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 2]; SIZE];
        let mut clients = [const { None }; SIZE];
        // SAFETY: zeros are a valid header: no address, no part, no control data.
        let mut headers: [libc::mmsghdr; SIZE] = unsafe { zeroed() };
        for (n, (end, at)) in self.answers.iter().take(count).enumerate() {
            let answer = &self.output[begin..*end];
            clients[n] = self.sender(*at).map(|client| (client, begin..*end));
            let length = clients[n].as_ref().map_or(0, |(client, _)| udp.headers(answer, *client, &mut fronts[n]));
            parts[n] = [
                libc::iovec { iov_base: fronts[n].as_mut_ptr().cast(), iov_len: length },
                libc::iovec { iov_base: answer.as_ptr().cast_mut().cast(), iov_len: answer.len() },
            ];
            let address = &raw mut self.addresses[*at];
            if udp.needs_headers() {
                // SAFETY: there is memory for any address, and both families have the port at the same place.
                unsafe { (*address.cast::<libc::sockaddr_in>()).sin_port = 0 };
            }
            let header = &mut headers[n].msg_hdr;
            header.msg_name = address.cast();
            header.msg_namelen = self.address_lengths[*at];
            header.msg_iov = parts[n].as_mut_ptr();
            header.msg_iovlen = 2;
            begin = *end;
        }
        let mut rest = &mut headers[..count];
        while !rest.is_empty() {
            // SAFETY: every header points to parts and an address of the sizes given, which live until the call has ended.
            let sent = unsafe {
                libc::sendmmsg(
                    udp.way_out().as_raw_fd(),
                    rest.as_mut_ptr(),
                    rest.len() as u32,
                    libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                )
            };
            let skipped = match usize::try_from(sent).map_err(|_| io::Error::last_os_error()) {
                Ok(sent) => sent.max(1),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
                // The first one cannot be sent.
                Err(e) => {
                    if let Some((client, answer)) = clients[count - rest.len()].clone()
                        && e.raw_os_error() == Some(libc::EMSGSIZE)
                    {
                        udp.send_cut(&self.output[answer], client);
                    }
                    1
                }
            };
            rest = &mut rest[skipped..];
        }
    }
}
