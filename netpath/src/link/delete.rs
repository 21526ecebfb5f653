//! Deleting links, and who waits for the end of it.
//!
//! The kernel takes a link out of everything, its peer with it, while it holds the lock of all network configuration: about
//! a millisecond. Then, still in the call but without the lock, it waits until no reader can hold a reference to what belonged to it,
//! so that it may free the memory: 15 to 45 ms (`net/core/dev.c, netdev_run_todo()`, `rcu_barrier()`). By then name, index,
//! addresses and hooks are gone for everybody.

use super::rtnl::Rtnl;
use crate::model::error::{Context, Error, Result};
use nix::errno::Errno;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use std::time::Duration;

/// Between two looks whether links are gone.
const PAUSE: Duration = Duration::from_micros(100);

impl Rtnl {
    /// Deletes links together. The kernel waits for all readers of a link that it deletes, several times; in one
    /// request it waits once for all of them (`net/core/rtnetlink.c, rtnl_group_dellink()`). Missing ones are no error.
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

    /// The same, in the namespace of the calling thread, and back as soon as the links are gone: a child process has the
    /// kernel free their memory, and ends after that. For commands that end soon too; the child is not waited for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn delete_and_leave(&self, indexes: &[u32]) -> Result<()> {
        let Some(message) = self.deletion(indexes)? else { return Ok(()) };
        let child = match in_child(message) {
            Ok(child) => child,
            Err(e) => {
                tracing::debug!(error = %e, "no child process, so this one waits");
                return self.delete(indexes);
            }
        };
        while self.is_one_there(indexes)? {
            match waitpid(child, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) => std::thread::sleep(PAUSE),
                _ => break,
            }
        }
        // What the child has left, if it came to grief, and why it cannot be deleted. Else each is missing, and the lock that
        // this takes was the child's until it had taken the links out of everything.
        indexes.iter().try_for_each(|index| self.delete(&[*index]))
    }

    fn is_one_there(&self, indexes: &[u32]) -> Result<bool> {
        for index in indexes {
            if self.link_at(*index)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// One request for all; `None`: there are none.
    fn deletion(&self, indexes: &[u32]) -> Result<Option<RouteNetlinkMessage>> {
        let mut message = LinkMessage::default();
        match indexes {
            [] => return Ok(None),
            [index] => message.header.index = *index,
            _ => message.attributes.push(LinkAttribute::Group(self.gather(indexes)?)),
        }
        Ok(Some(RouteNetlinkMessage::DelLink(message)))
    }

    /// Puts links into an unused group; 0 is the default of all links.
    fn gather(&self, indexes: &[u32]) -> Result<u32> {
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

/// Has a child process ask the kernel, and wait for it.
fn in_child(message: RouteNetlinkMessage) -> Result<Pid> {
    let mut request = NetlinkMessage::from(message);
    request.header.flags = NLM_F_REQUEST;
    request.finalize();
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    // SAFETY: the child only makes system calls, on memory that is there already.
    match Errno::result(unsafe { libc::fork() }).context(|| "cannot make a child process".to_owned())? {
        // SAFETY: this is the child.
        0 => unsafe {
            ask(&bytes);
            libc::_exit(0)
        },
        child => Ok(Pid::from_raw(child)),
    }
}

/// In the child: gives back what the engine waits for the end of, and asks over a socket of its own; not where the first cannot
/// be done (close_range(2), 5.9), for then the engine would wait for the child. Its parent sees what comes of it.
///
/// # Safety
/// Every descriptor of the process is closed.
unsafe fn ask(request: &[u8]) {
    // SAFETY: numbers, and a buffer with its length.
    unsafe {
        if libc::syscall(libc::SYS_close_range, 0_u32, u32::MAX, 0) != 0 {
            return;
        }
        let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        // The call lasts for as long as the kernel needs (`net/core/rtnetlink.c, rtnetlink_rcv()`).
        libc::send(socket, request.as_ptr().cast(), request.len(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sched::{CloneFlags, unshare};

    /// The calling thread and its children are told what a kernel before 5.9 says.
    fn take_close_range() {
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

    /// Of the calling thread.
    fn has_child(flags: WaitPidFlag) -> bool {
        waitpid(None, Some(flags | WaitPidFlag::__WNOTHREAD)) != Err(Errno::ECHILD)
    }

    #[test]
    fn a_child_that_cannot_close_what_the_engine_waits_for_is_gone_with_the_call() {
        if !nix::unistd::geteuid().is_root() {
            println!("skip a_child_that_cannot_close_what_the_engine_waits_for_is_gone_with_the_call: needs root");
            return;
        }
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
        let rtnl = Rtnl::here().expect("a netlink socket");
        let name = "br0".parse().expect("a name");
        let delete = || {
            rtnl.add_bridge(&name, None).expect("a bridge");
            let index = rtnl.link_named(&name).expect("asked").expect("the bridge").index;
            rtnl.delete_and_leave(&[index]).expect("deleted");
            assert!(rtnl.link_at(index).expect("asked").is_none());
        };
        delete();
        assert!(has_child(WaitPidFlag::empty()), "one that has closed everything stays as long as the kernel needs");
        take_close_range();
        delete();
        assert!(!has_child(WaitPidFlag::WNOHANG));
    }
}
