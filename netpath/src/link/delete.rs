//! Deletion of links, without waiting for the kernel to free them.
//!
//! The kernel unregisters a link and its peer under the RTNL lock, in about a millisecond. Then, still in the system call
//! but without the lock, it waits until no RCU reader can hold a reference, and frees the memory: 15 to 45 ms
//! (`net/core/dev.c, netdev_run_todo()`, `rcu_barrier()`). By then name, index, addresses and hooks are gone. Commands
//! therefore leave that wait to a child process.

use super::rtnl::Rtnl;
use crate::model::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use std::time::Duration;

/// Between two checks whether links are gone.
const PAUSE: Duration = Duration::from_micros(100);

impl Rtnl {
    /// Deletes links in one request, so that the kernel waits for readers once instead of once for each link
    /// (`net/core/rtnetlink.c, rtnl_group_dellink()`). Missing links are no error.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete(&self, indexes: &[u32]) -> Result<()> {
        let Some(message) = self.deletion(indexes)? else { return Ok(()) };
        match self.change(message, 0) {
            Err(e) if !e.is_missing() => Err(Error::new(what(indexes)).because(e)),
            _ => Ok(()),
        }
    }

    /// As [`Rtnl::delete`], in the namespace of the calling thread, but returns as soon as the links are unregistered: a
    /// child process makes the request and is not waited for. For short-lived commands only.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_and_leave(&self, indexes: &[u32]) -> Result<()> {
        let Some(message) = self.deletion(indexes)? else { return Ok(()) };
        let child = match in_child(message) {
            Ok(child) => child,
            Err(e) => {
                tracing::debug!(error = %e, "links are deleted without a child process");
                return self.delete(indexes);
            }
        };
        while self.any_exists(indexes)? {
            match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => std::thread::sleep(PAUSE),
                _ => break,
            }
        }
        // Deletes links that a failed child left, and reports the error. After a successful child all are missing; the
        // request still takes the RTNL lock, which the child held until the links were unregistered.
        indexes.iter().try_for_each(|index| self.delete(&[*index]))
    }

    fn any_exists(&self, indexes: &[u32]) -> Result<bool> {
        for index in indexes {
            if self.link_at(*index)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// One request for all links; `None` for an empty list.
    fn deletion(&self, indexes: &[u32]) -> Result<Option<RouteNetlinkMessage>> {
        let mut message = LinkMessage::default();
        match indexes {
            [] => return Ok(None),
            [index] => message.header.index = *index,
            _ => message.attributes.push(LinkAttribute::Group(self.group(indexes)?)),
        }
        Ok(Some(RouteNetlinkMessage::DelLink(message)))
    }

    /// Moves links into a random group. Odd, since 0 is the default group.
    fn group(&self, indexes: &[u32]) -> Result<u32> {
        let group = u32::from_ne_bytes(super::random()?) | 1;
        for &index in indexes {
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes.push(LinkAttribute::Group(group));
            match self.change(RouteNetlinkMessage::SetLink(message), 0) {
                Err(e) if !e.is_missing() => return Err(Error::new(what(&[index])).because(e)),
                _ => {}
            }
        }
        Ok(group)
    }
}

fn what(indexes: &[u32]) -> String {
    match indexes {
        [index] => format!("cannot delete interface {index}"),
        _ => format!("cannot delete interfaces {indexes:?}"),
    }
}

/// Sends the request from a child process.
fn in_child(message: RouteNetlinkMessage) -> Result<Pid> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    // SAFETY: the child makes only system calls, on memory allocated before the fork.
    match Errno::result(unsafe { libc::fork() }).context(|| "cannot create a child process".to_owned())? {
        // SAFETY: this is the child, which uses no descriptor of its parent.
        0 => unsafe {
            send(&bytes);
            libc::_exit(0)
        },
        child => Ok(Pid::from_raw(child)),
    }
}

/// In the child: closes all descriptors, since the engine waits until its pipes are closed, and sends the request over a
/// new socket. Sends nothing where close_range(2) fails (before 5.9). The parent checks the result.
///
/// # Safety
/// Closes every descriptor of the process.
unsafe fn send(request: &[u8]) {
    // SAFETY: the calls take numbers, and a buffer with its length.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 0_u32, u32::MAX, 0) != 0 {
            return;
        }
        let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        // The kernel handles the request within this call (`net/core/rtnetlink.c, rtnetlink_rcv()`).
        libc::send(socket, request.as_ptr().cast(), request.len(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::BridgeSpec;
    use nix::sched::{CloneFlags, unshare};

    /// Makes close_range(2) fail for the calling thread and its children, as before 5.9.
    fn disable_close_range() {
        const LOAD_NUMBER: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
        const IS_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
        const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
        let code = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
        let mut filter = [
            code(LOAD_NUMBER, 0, 0, 0),
            code(IS_EQUAL, 0, 1, libc::SYS_close_range as u32),
            code(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32),
            code(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
        ];
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program is read during the call, and `filter` lives until then.
        let set = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        assert_eq!(0, set, "{}", std::io::Error::last_os_error());
    }

    /// Whether the calling thread has a child.
    fn has_child(flags: WaitPidFlag) -> bool {
        waitpid(None, Some(flags | WaitPidFlag::__WNOTHREAD)) != Err(Errno::ECHILD)
    }

    #[test]
    #[ignore = "needs root"]
    fn a_child_that_cannot_close_descriptors_ends_at_once() {
        if !nix::unistd::geteuid().is_root() {
            println!("skip a_child_that_cannot_close_descriptors_ends_at_once: needs root");
            return;
        }
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
        let rtnl = Rtnl::here().expect("a netlink socket");
        let name = "br0".parse().expect("a name");
        let delete = || {
            rtnl.add_bridge(BridgeSpec::named(&name)).expect("a bridge");
            let index = rtnl.link_named(&name).expect("an answer").expect("the bridge").index;
            rtnl.delete_and_leave(&[index]).expect("deleted");
            assert!(rtnl.link_at(index).expect("an answer").is_none());
        };
        delete();
        assert!(has_child(WaitPidFlag::empty()), "a child that closed its descriptors waits for the kernel");
        disable_close_range();
        delete();
        assert!(!has_child(WaitPidFlag::WNOHANG));
    }
}
