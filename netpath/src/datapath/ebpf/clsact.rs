//! Attachment through netlink, for kernels without TCX (4.5): filters of the clsact qdisc. They outlive their process
//! without pins, so marks among the pins record filters and qdiscs.
//!
//! netpath's filters have [`PRIORITY`] and [`HANDLE`]. Other filters are never changed, and a qdisc is removed only
//! if netpath made it and it is empty.

use crate::datapath::filter::own_tc::{HANDLE, PRIORITY, is_own};
use crate::model::error::{Context, Result};
use crate::netlink::Netlink;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// ETH_P_ALL in network byte order.
const ALL_PROTOCOLS: u32 = 3_u16.to_be() as u32;

/// One program at one interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Filter {
    pub name: String,
    pub prog_id: Option<u32>,
}

/// A netlink socket in the namespace of the calling thread.
pub(super) struct Tc(Netlink<RouteNetlinkMessage>);

impl Tc {
    pub(super) fn open() -> Result<Self> {
        Self::connect().context(|| "cannot open a netlink socket".to_owned())
    }

    fn connect() -> io::Result<Self> {
        Netlink::open(NETLINK_ROUTE).map(Self)
    }

    /// Creates the qdisc; false if there is one already.
    pub(super) fn add_qdisc(&mut self, ifindex: u32) -> io::Result<bool> {
        let mut message = qdisc(ifindex);
        message.attributes.push(TcAttribute::Kind("clsact".into()));
        match self.0.change(RouteNetlinkMessage::NewQueueDiscipline(message), NLM_F_CREATE | NLM_F_EXCL) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Whether the interface has a clsact qdisc.
    pub(super) fn has_qdisc(&mut self, ifindex: u32) -> io::Result<bool> {
        let all = self.0.dump(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(ifindex as i32)))?;
        let is_it = |m: &TcMessage| {
            m.header.index == ifindex as i32 && m.attributes.contains(&TcAttribute::Kind("clsact".into()))
        };
        Ok(all.iter().any(|m| matches!(m, RouteNetlinkMessage::NewQueueDiscipline(m) if is_it(m))))
    }

    /// Removes the qdisc if it has no filter.
    pub(super) fn remove_qdisc_if_empty(&mut self, ifindex: u32) -> io::Result<bool> {
        for egress in [false, true] {
            let (filters, unread) = self.filters(ifindex, egress)?;
            if !filters.is_empty() || unread > 0 {
                return Ok(false);
            }
        }
        let mut message = qdisc(ifindex);
        message.attributes.push(TcAttribute::Kind("clsact".into()));
        absent(self.0.change(RouteNetlinkMessage::DelQueueDiscipline(message), 0)).map(|()| true)
    }

    /// Sets the program, atomically if it replaces one of netpath.
    pub(super) fn set_filter(&mut self, ifindex: u32, egress: bool, prog: impl AsFd, name: &str) -> io::Result<()> {
        let mut message = filter(ifindex, egress);
        message.attributes.push(TcAttribute::Kind("bpf".into()));
        message.attributes.push(TcAttribute::Options(vec![
            TcOption::Bpf(TcFilterBpfOption::ProgFd(prog.as_fd().as_raw_fd() as u32)),
            TcOption::Bpf(TcFilterBpfOption::ProgName(name.into())),
            TcOption::Bpf(TcFilterBpfOption::Flags(TcBpfFlags::DirectAction)),
        ]));
        self.0.change(RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_CREATE)
    }

    /// netpath's program there, if any.
    pub(super) fn our_filter(&mut self, ifindex: u32, egress: bool) -> io::Result<Option<Filter>> {
        Ok(self.filters(ifindex, egress)?.0.iter().find(|m| is_own(m)).map(program))
    }

    pub(super) fn remove_filter(&mut self, ifindex: u32, egress: bool) -> io::Result<()> {
        let mut message = filter(ifindex, egress);
        message.attributes.push(TcAttribute::Kind("bpf".into()));
        absent(self.0.change(RouteNetlinkMessage::DelTrafficFilter(message), 0))
    }

    /// All filters of one direction, and the number of unreadable ones, which are not netpath's.
    fn filters(&mut self, ifindex: u32, egress: bool) -> io::Result<(Vec<TcMessage>, usize)> {
        let mut message = TcMessage::with_index(ifindex as i32);
        message.header.parent = parent(egress);
        let (all, unread) = match self.0.dump_counted(RouteNetlinkMessage::GetTrafficFilter(message)) {
            Err(e) if is_absent(&e) => return Ok((Vec::new(), 0)),
            other => other?,
        };
        let filter = |m| if let RouteNetlinkMessage::NewTrafficFilter(m) = m { Some(m) } else { None };
        Ok((all.into_iter().filter_map(filter).collect(), unread))
    }
}

/// Whether this interface supports classifiers by clsact; for an interface in a namespace made for the probe.
pub(super) fn probe(ifindex: u32, prog: impl AsFd) -> io::Result<()> {
    let mut tc = Tc::connect()?;
    tc.add_qdisc(ifindex).map_err(|e| without_module(e, "queue clsact", "sch_ingress (CONFIG_NET_SCH_INGRESS)"))?;
    let filter = tc.set_filter(ifindex, false, prog, "np_probe");
    filter.map_err(|e| without_module(e, "classifier bpf", "cls_bpf (CONFIG_NET_CLS_BPF)"))
}

/// The kernel returns ENOENT for a kind of qdisc or classifier that is neither built in nor available as a module.
fn without_module(error: io::Error, what: &str, module: &str) -> io::Error {
    let is_unknown = error.raw_os_error() == Some(libc::ENOENT);
    let why = if is_unknown { format!("the module {module} is not there") } else { error.to_string() };
    io::Error::new(error.kind(), format!("no {what}: {why}"))
}

fn program(message: &TcMessage) -> Filter {
    let mut found = Filter { name: String::new(), prog_id: None };
    for attribute in &message.attributes {
        let TcAttribute::Options(options) = attribute else { continue };
        for option in options {
            match option {
                TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => found.prog_id = Some(*id),
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => found.name.clone_from(name),
                _ => {}
            }
        }
    }
    found
}

fn qdisc(ifindex: u32) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex as i32);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message
}

fn filter(ifindex: u32, egress: bool) -> TcMessage {
    let mut message = TcMessage::with_index(ifindex as i32);
    message.header.parent = parent(egress);
    message.header.handle = TcHandle::from(HANDLE);
    message.header.info = u32::from(PRIORITY) << 16 | ALL_PROTOCOLS;
    message
}

fn parent(egress: bool) -> TcHandle {
    TcHandle { major: u16::MAX, minor: if egress { TcHandle::MIN_EGRESS } else { TcHandle::MIN_INGRESS } }
}

fn is_absent(e: &io::Error) -> bool {
    // EINVAL: no such qdisc (`net/sched/cls_api.c, __tcf_qdisc_find()`).
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL))
}

fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if is_absent(&e) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::tests::{INCONSISTENT, Peer, ends};

    /// A qdisc that is missed would be added a second time, and a filter with it.
    #[test]
    fn a_qdisc_that_a_change_has_hidden_from_a_dump_is_found() {
        let (netlink, mut peer) = Peer::new(nix::sys::time::TimeVal::new(5, 0));
        let answers = std::thread::spawn(move || peer.answer(INCONSISTENT, &[7]) && peer.answer(0, &[7, 8]));
        assert!(ends(move || Tc(netlink).has_qdisc(8)).expect("a dump"), "the first list was taken for the whole");
        assert!(answers.join().expect("no panic"));
    }
}
