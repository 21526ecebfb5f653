//! Look-up of the host's listening sockets, for TCP clients of published ports that come by an interface without programs yet.
//!
//! An engine may listen on published ports itself. Until the programs are attached, a client would be connected to that socket,
//! which serves nothing. Its SYN goes to a socket that discards it, so that the client's next one finds the programs.

use aya_ebpf::programs::SkLookupContext;
use netpath_common::family::{Family, Ipv4, Ipv6};
use netpath_common::layout::{PROTO_TCP, SINK4, SINK6};

use crate::sk_lookup::Asked;
use crate::{maps, port_lookup};

pub fn arrive(ctx: &SkLookupContext) {
    let asked = Asked::of(ctx);
    // SAFETY: a context field.
    let ifindex = unsafe { (&raw const (*ctx.lookup).ingress_ifindex).read_volatile() };
    if asked.proto != u32::from(PROTO_TCP) {
        return;
    }
    let slot = port_lookup::slot(PROTO_TCP, asked.port);
    if slot == 0 || has_programs(ifindex) {
        return;
    }
    let is_v4 = asked.is_v4;
    let rule = port_lookup::find(slot, &asked.address(), asked.port, PROTO_TCP, |rule| {
        if is_v4 { !Ipv4::is_unset(&Ipv4::target(rule)) } else { !Ipv6::is_unset(&Ipv6::target(rule)) }
    });
    if rule.is_some() {
        // Without an agent there is no such socket, and the look-up goes on.
        let _ = maps::SINK.redirect_sk_lookup(ctx, if is_v4 { SINK4 } else { SINK6 }, 0);
    }
}

/// Whether programs see the packets of this interface; 0: a packet of the host itself.
#[inline(always)]
fn has_programs(ifindex: u32) -> bool {
    let is_lo = maps::CONFIG.get(0).is_none_or(|config| config.lo_ifindex == ifindex);
    ifindex == 0
        || is_lo
        || maps::find(&maps::UPLINK, ifindex).is_some()
        || maps::find(&maps::NETWORK, ifindex).is_some()
}
