//! Traffic control that carried packets would not meet.

use crate::datapath::filter::own_tc;
use crate::netlink::Netlink;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use std::io;

/// The first queue or filter of others that packets carried between `uplink` and the container would bypass: at the ingress
/// of `uplink`, at its `bridge`, or at the `port` of the bridge to the container. What `uplink` has at egress is not bypassed.
/// An interface that does not exist has none.
///
/// # Errors
/// The kernel's.
pub fn shapers(uplink: &str, bridge: &str, port: Option<&str>) -> io::Result<Option<String>> {
    let mut netlink = Netlink::open(NETLINK_ROUTE)?;
    for (name, leaves_by_it) in [(uplink, true), (bridge, false)].into_iter().chain(port.map(|p| (p, false))) {
        let Ok(index) = if_nametoindex(name) else { continue };
        let question = TcMessage::with_index(index as i32);
        for answer in netlink.dump(RouteNetlinkMessage::GetQueueDiscipline(question))? {
            let RouteNetlinkMessage::NewQueueDiscipline(qdisc) = answer else { continue };
            if qdisc.header.index != index as i32 {
                continue;
            }
            let kind = kind(&qdisc);
            if kind == "clsact" || kind == "ingress" {
                let all = [(TcHandle::MIN_INGRESS, "ingress"), (TcHandle::MIN_EGRESS, "egress")];
                let bypassed = all.into_iter().filter(|(_, at)| !(leaves_by_it && *at == "egress"));
                for (minor, at) in bypassed {
                    if let Some(filter) = filter(&mut netlink, index, minor)? {
                        return Ok(Some(format!("the filter {filter} at the {at} of {name} (tc filter show)")));
                    }
                }
            } else if qdisc.header.handle.major != 0 && !leaves_by_it {
                // Those that the kernel makes by default have no handle.
                return Ok(Some(format!("the queue {kind} of {name} (tc qdisc show)")));
            }
        }
    }
    Ok(None)
}

fn kind(message: &TcMessage) -> String {
    let kind = |a: &TcAttribute| if let TcAttribute::Kind(kind) = a { Some(kind.clone()) } else { None };
    message.attributes.iter().find_map(kind).unwrap_or_default()
}

/// The kind of the first filter of others.
fn filter(netlink: &mut Netlink<RouteNetlinkMessage>, index: u32, minor: u16) -> io::Result<Option<String>> {
    let mut question = TcMessage::with_index(index as i32);
    question.header.parent = TcHandle { major: u16::MAX, minor };
    let (all, unread) = netlink.dump_counted(RouteNetlinkMessage::GetTrafficFilter(question))?;
    let foreign = |m: &RouteNetlinkMessage| match m {
        // The kernel lists the kind and priority of filters too, without a handle.
        RouteNetlinkMessage::NewTrafficFilter(m) if u32::from(m.header.handle) != 0 && !own_tc::is_own(m) => {
            Some(kind(m))
        }
        _ => None,
    };
    Ok(all.iter().find_map(foreign).or_else(|| (unread > 0).then(|| "that cannot be read".to_owned())))
}
