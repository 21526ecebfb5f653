//! Look-up of the rule that serves a packet to a published port.

use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::programs::TcContext;
use netpath_common::addr::{Addr, Be16};
use netpath_common::family::Tuple;
use netpath_common::layout::{
    AllowKey, ENDPOINT_MOVED_SCTP, ENDPOINT_XDP, Endpoint, FORWARD_NEIGH, FORWARD_PEER, FORWARD_XDP, PROTO_SCTP,
    PROTO_TCP, PROTO_UDP, RULE_CHAIN, Rule,
};
use netpath_common::nat_plan::NextHop;
use netpath_common::rule::{container_port, covers, serves};

use crate::headers::Wire;
use crate::scratch::{Scratch, ScratchMut, Wanted};
use crate::subprog::subprog;
use crate::{kernel_lookup, maps};

/// Result of [`select_target`]: the client is not on the publish's allow list.
pub const REFUSED: u32 = u32::MAX;

/// The first rule of a port; 0: the port is not published.
#[inline(always)]
pub fn slot(proto: u8, port: u16) -> u32 {
    let table = match proto {
        PROTO_TCP => &maps::PORT_TCP,
        PROTO_UDP => &maps::PORT_UDP,
        PROTO_SCTP => &maps::PORT_SCTP,
        _ => return 0,
    };
    table.get(u32::from(port)).copied().unwrap_or(0)
}

/// The rule of the chain at `slot` that serves `host`:`port`, if that is the host's own address, and satisfies `serves`.
#[inline(always)]
pub fn find(slot: u32, host: &Addr, port: u16, proto: u8, serves: impl Fn(&Rule) -> bool) -> Option<&'static Rule> {
    let mut at = slot;
    for _ in 0..RULE_CHAIN {
        if at == 0 {
            return None;
        }
        let rule = maps::RULE.get(at)?;
        if covers(rule, host, port, proto) && serves(rule) {
            return Some(rule);
        }
        at = rule.next;
    }
    None
}

/// The rule of the chain at `slot` that serves a packet from outside; as [`find`].
#[inline(always)]
pub fn serving<F: Wire>(slot: u32, packet: &Tuple<F>, proto: u8) -> Option<&'static Rule> {
    find(slot, &F::mapped(packet.dst), packet.dport.value(), proto, |r| !F::is_unset(&F::target(r)))
}

/// Selects the container behind the published port of the packet in scratch as target of the pending flow: sets the
/// destination of `to`, and `there`. Returns the container's bridge; 0: no rule of the chain at `slot` serves the packet;
/// [`REFUSED`]: a rule does, but its allow list excludes the client. `local` = 1: the packet is the host's own, addressed
/// to itself.
// Inlined: stack frames of nested calls add up, and the limit is 512 bytes.
#[inline(always)]
pub fn select_target<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, slot: u32, local: u32) -> u32 {
    let chosen = choose(ctx, scratch, slot, local);
    if chosen != 0 && local == 0 && kernel_lookup::is_local(ctx, scratch) == 0 { 0 } else { chosen }
}

subprog! {
    /// [`select_target`] without the check of the address.
    fn choose(slot: u32, local: u32) -> u32 as np_choose4, np_choose6 = choose_target;

    /// The first rule of the chain at `slot` that serves `wanted` in scratch; 0: none.
    fn first_rule(slot: u32) -> u32 as np_rule4, np_rule6 = walk_chain;

    /// Sets `back` of the pending flow to the next hop to the sender of the packet in scratch. Returns the endpoint's
    /// traffic counter.
    pub fn hop_to_sender(bridge: u32) -> u32 as np_hop_to_sender4, np_hop_to_sender6 = home;

    /// Sets `there` to the next hop to the destination of the packet in scratch. Returns the endpoint's traffic counter.
    pub fn hop_to_destination(bridge: u32) -> u32 as np_hop_to_destination4, np_hop_to_destination6 = inward;

    /// 1 if the source port of the pending flow is published as itself at the source address after translation.
    pub fn is_published_by_sender() -> u32 as np_sender4, np_sender6 = is_sent_from_published;
}

#[inline(always)]
fn choose_target<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, slot: u32, local: u32) -> u32 {
    let Scratch { packet, wanted, .. } = &mut **scratch;
    let (host, port) = (packet.tuple.dst, packet.tuple.dport.value());
    wanted.set(F::mapped(host), &F::Addr::default(), port, packet.ip.proto);
    let found = first_rule(ctx, scratch, slot);
    if found == 0 {
        return 0;
    }
    let Scratch { packet, pending, .. } = &mut **scratch;
    let port = packet.tuple.dport.value();
    let Some(rule) = maps::RULE.get(found) else { return 0 };
    if local == 0 && refuses::<F>(rule, &packet.tuple.src) {
        return REFUSED;
    }
    let plan = &mut pending.plan;
    plan.to.dst = F::target(rule);
    plan.to.dport = Be16::new(container_port(rule, port));
    if packet.ip.proto == PROTO_SCTP && container_port(rule, port) != port {
        return 0;
    }
    plan.traffic = rule.traffic as u16;
    set_hop::<F>(&mut plan.there, &plan.to.dst, rule.bridge);
    rule.bridge
}

#[inline(always)]
fn is_sent_from_published<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let Scratch { pending, wanted, .. } = &mut **scratch;
    let plan = &pending.plan;
    let port = plan.from.sport.value();
    wanted.set(F::mapped(plan.to.src), &plan.from.src, port, plan.proto);
    let slot = slot(plan.proto, port);
    let found = first_rule(ctx, scratch, slot);
    // Rule 0 has no ports.
    u32::from(maps::RULE.get(found).is_some_and(|rule| found != 0 && container_port(rule, port) == port))
}

#[inline(always)]
fn walk_chain<F: Wire>(_ctx: &TcContext, scratch: &mut ScratchMut<F>, slot: u32) -> u32 {
    let mut at = slot;
    for _ in 0..RULE_CHAIN {
        if at == 0 {
            break;
        }
        let Some(rule) = maps::RULE.get(at) else { break };
        // Copies are read by words, references by bytes.
        let Wanted { host, target, port, proto } = scratch.wanted;
        if serves::<F>(rule, &host, port, proto, &target) {
            return at;
        }
        at = rule.next;
    }
    0
}

/// Whether netfilter translates SCTP ports of the container with this address.
#[inline(always)]
pub fn has_moved_sctp<F: Wire>(address: &F::Addr) -> bool {
    maps::find(&maps::ENDPOINT, F::mapped(*address)).is_some_and(|e| e.flags & ENDPOINT_MOVED_SCTP != 0)
}

/// Whether the rule has an allow list without `client`.
#[inline(always)]
pub fn refuses<F: Wire>(rule: &Rule, client: &F::Addr) -> bool {
    let key = || AllowKey { list: rule.allow.to_be_bytes(), client: F::mapped(*client) };
    rule.allow != 0 && maps::ALLOW.get(Key::new(32 + 128, key())).is_none()
}

#[inline(always)]
fn home<F: Wire>(_ctx: &TcContext, scratch: &mut ScratchMut<F>, bridge: u32) -> u32 {
    let Scratch { packet, pending, .. } = &mut **scratch;
    set_hop::<F>(&mut pending.plan.back, &packet.tuple.src, bridge)
}

#[inline(always)]
fn inward<F: Wire>(_ctx: &TcContext, scratch: &mut ScratchMut<F>, bridge: u32) -> u32 {
    let Scratch { packet, pending, .. } = &mut **scratch;
    set_hop::<F>(&mut pending.plan.there, &packet.tuple.dst, bridge)
}

/// The next hop to a container: directly into it, or through its bridge if the address has no endpoint.
#[inline(always)]
fn set_hop<F: Wire>(next_hop: &mut NextHop, address: &F::Addr, bridge: u32) -> u32 {
    match maps::find(&maps::ENDPOINT, F::mapped(*address)) {
        Some(&Endpoint { veth, mac, bridge_mac, mtu, flags, traffic, .. }) => {
            let forward = if flags & ENDPOINT_XDP == 0 { FORWARD_PEER } else { FORWARD_XDP };
            *next_hop = NextHop { ifindex: veth, match_dmac: mac, next_hop_mac: bridge_mac, forward, mtu };
            traffic
        }
        None => {
            *next_hop = NextHop { ifindex: bridge, forward: FORWARD_NEIGH, mtu: u16::MAX, ..NextHop::default() };
            0
        }
    }
}
