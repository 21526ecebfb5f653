//! Look-up of the host's listening sockets, for TCP clients of published ports that come by an interface without programs yet.
//!
//! An engine may listen on published ports itself. Until the programs are attached, a client would be connected to that socket,
//! which serves nothing. Its SYN goes to a socket that discards it, so that the client's next one finds the programs.

use aya_ebpf::programs::SkLookupContext;
use netpath_common::addr::Addr;
use netpath_common::family::{Family, Ipv4, Ipv6};
use netpath_common::layout::{PROTO_TCP, SINK4, SINK6};

use crate::{maps, port_lookup};

/// `include/linux/socket.h`.
const AF_INET: u32 = 2;

pub fn arrive(ctx: &SkLookupContext) {
    let lookup = ctx.lookup;
    // SAFETY: context fields, a word at a time as the verifier requires.
    let (proto, family, port, ifindex) = unsafe {
        (
            (&raw const (*lookup).protocol).read_volatile(),
            (&raw const (*lookup).family).read_volatile(),
            (&raw const (*lookup).local_port).read_volatile(),
            (&raw const (*lookup).ingress_ifindex).read_volatile(),
        )
    };
    if proto != u32::from(PROTO_TCP) {
        return;
    }
    let slot = port_lookup::slot(PROTO_TCP, port as u16);
    if slot == 0 || has_programs(ifindex) {
        return;
    }
    let is_v4 = family == AF_INET;
    let rule = port_lookup::find(slot, &local(ctx, is_v4), port as u16, PROTO_TCP, |rule| {
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

/// Reads the fields of both families, one of them zero: the verifier rejects a read at an offset that depends on the family.
#[inline(always)]
fn local(ctx: &SkLookupContext, is_v4: bool) -> Addr {
    let lookup = ctx.lookup;
    // SAFETY: context fields, a word at a time as the verifier requires.
    let (v4, v6) = unsafe {
        let at = (&raw const (*lookup).local_ip6).cast::<u32>();
        let v6 = [at.read_volatile(), at.add(1).read_volatile(), at.add(2).read_volatile(), at.add(3).read_volatile()];
        ((&raw const (*lookup).local_ip4).read_volatile(), v6)
    };
    if is_v4 {
        return Addr::v4(v4.to_ne_bytes());
    }
    let mut bytes = [0; 16];
    for (word, part) in v6.iter().zip(bytes.chunks_exact_mut(4)) {
        part.copy_from_slice(&word.to_ne_bytes());
    }
    Addr(bytes)
}
