//! The flow table: look-up, update, creation and removal of flows.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns};
use aya_ebpf::programs::TcContext;
use netpath_common::addr::{Be16, Mac, is_known};
use netpath_common::family::{Ipv4, Ipv6, Tuple};
use netpath_common::layout::{
    FORWARD_EGRESS, FORWARD_INGRESS, FORWARD_LINK, FORWARD_NEIGH, FORWARD_STACK, Next, PROTO_ICMP, PROTO_ICMPV6,
    PROTO_TCP, PROTO_UDP, SIDE_BRIDGE, SIDE_EGRESS, SIDE_LO, SIDE_UPLINK, is_inward, is_outward,
};
use netpath_common::nat_plan::NextHop;
use netpath_common::policy::smaller_mtu;
use netpath_common::ports::{EVICT_TRIES, PORT_TRIES, candidate};
use netpath_common::reason::Reason;
use netpath_common::tcp::{self, Segment};
use netpath_common::{flow, nat_plan};

use crate::half::Half;
use crate::headers::Wire;
use crate::parsed::{Kind, Packet};
use crate::scratch::{PendingFlow, Scratch, ScratchMut};
use crate::subprog::subprog;
use crate::verdict::{self, Verdict};
use crate::{kernel_lookup, maps, packet, port_lookup};

/// CLOCK_MONOTONIC in units of [`flow::TICK_NS`], up to one kernel tick late.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: no arguments.
    (unsafe { bpf_ktime_get_coarse_ns() } >> flow::TICK_BITS) as u32
}

subprog! {
    /// 1 if the packet in scratch belongs to a live flow; its hop is then in scratch, and the flow's state records the
    /// packet. [`HALF`]: the same, but the other entry is missing. [`STALE`]: the same, but the next hop must be looked up
    /// again.
    fn look_up() -> u32 as np_look_up4, np_look_up6 = follow_flow;

    /// Recreates the other entry; 0: its slot belongs to another flow.
    fn recreate() -> u32 as np_recreate4, np_recreate6 = recreate_reverse;

    /// 1 if the kernel's route for the packet in scratch now uses another device than the flow, whose source address belongs
    /// to that device. [`ROUTED`]: it uses the same, and is in the pending flow.
    fn leaves_elsewhere() -> u32 as np_leaves_elsewhere4, np_leaves_elsewhere6 = has_other_route;

    /// Looks up the next hop of the hop in scratch, which leads out of an uplink, again; `routed` = 1: it is that of the
    /// pending flow.
    fn renew(routed: u32) -> u32 as np_renew4, np_renew6 = renew_flow;

    /// Writes the reverse entry of the pending flow; 1 if its slot was free.
    fn reserve() -> u32 as np_reserve4, np_reserve6 = reserve_reverse;

    /// Searches a source port for the pending flow, from try `from` on, [`TRIES_AT_ONCE`] of them; 1 if one was
    /// found.
    fn search(from: u32) -> u32 as np_search4, np_search6 = try_ports;

    /// Makes `port` the source port of the pending flow; 1 if a socket of the host to be spared would receive the
    /// replies.
    fn set_port(port: u32) -> u32 as np_set_port4, np_set_port6 = plan_port;

    /// 1 if the reverse entry of the pending flow exists, with the sender's own port.
    pub fn has_reverse() -> u32 as np_has_reverse4, np_has_reverse6 = find_reverse;

    /// Writes the first entry of the pending flow, whose reverse entry is reserved; 1 on success.
    fn write_first() -> u32 as np_write_first4, np_write_first6 = write_first_entry;

    /// Enters the flow that has just begun among those that are opening, in the place of the oldest; that ends unless it is
    /// established. Returns 0.
    fn enter_opening() -> u32 as np_enter_opening4, np_enter_opening6 = replace_opening;
}

const TRIES_AT_ONCE: u32 = 8;
const _: () = assert!(PORT_TRIES.is_multiple_of(TRIES_AT_ONCE));

const ROUTED: u32 = 2;

const HALF: u32 = 2;
const STALE: u32 = 3;
/// The packet leaves by another device than its flow, so that replies to the flow's address would not come back.
const ELSEWHERE: u32 = 4;

/// Not 0 if the packet in scratch belongs to a live flow. Both of its entries then exist, and its hop is in scratch.
// Inlined: stack frames of nested calls add up, and the limit is 512 bytes.
#[inline(always)]
pub fn follow<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let found = look_up(ctx, scratch);
    if found == HALF {
        // A socket of the host may have taken the port while the entry that reserves it was missing.
        if kernel_lookup::has_connection(ctx, scratch, kernel_lookup::RECEIVER) != 0 {
            return remove(ctx, scratch);
        }
        if recreate(ctx, scratch) == 0 {
            return remove(ctx, scratch);
        }
    } else if found == STALE {
        match leaves_elsewhere(ctx, scratch) {
            0 => renew(ctx, scratch, 0),
            ROUTED => renew(ctx, scratch, 1),
            _ => return remove(ctx, scratch),
        };
    } else if found == ELSEWHERE {
        return remove(ctx, scratch);
    }
    found
}

/// The hardware address of the next hop for replies to the packet in scratch through its uplink, zero if unknown, and the
/// forward kind. If the host's route uses another uplink, replies go to the hardware address that sent this packet, so
/// that they leave through the uplink of the request.
#[inline(always)]
pub fn hop_back<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, to: &Tuple<F>, ifindex: u32) -> (Mac, u8) {
    const UNKNOWN: (Mac, u8) = ([0; 6], FORWARD_NEIGH);
    scratch.hop.to = *to;
    match kernel_lookup::next_hop(ctx, scratch, ifindex) {
        1 => (scratch.fib.dmac, FORWARD_NEIGH),
        kernel_lookup::NO_ROUTE => {
            packet::at::<[Mac; 2]>(ctx, 0).map_or(UNKNOWN, |[_, sender]| (*sender, FORWARD_LINK))
        }
        _ => UNKNOWN,
    }
}

// Functions with many branches are separate, so that the verifier does not walk the rest once per branch.

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn np_timeout(proto: u32, state: u32) -> u32 {
    flow::ticks(flow::timeout_s(proto as u8, state as u8))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn np_seen(state: u32, tcp_flags: u32) -> u32 {
    u32::from(tcp::seen(state as u8, tcp_flags as u8))
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn np_candidate(own: u32, random: u32, i: u32) -> u32 {
    let Some(config) = maps::CONFIG.get(0) else { return own };
    u32::from(candidate(own as u16, config.port_min, config.port_max, random, i))
}

/// [`flow::has_expired`].
#[inline(always)]
pub fn has_expired(proto: u8, next: &Next, now: u32) -> bool {
    let idle = flow::idle(next, now);
    idle > flow::SHORTEST && idle > np_timeout(u32::from(proto), u32::from(next.state))
}

#[inline(always)]
fn follow_flow<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let Scratch { packet, hop, .. } = &mut **scratch;
    let proto = packet.ip.proto;
    let key = F::key(&packet.tuple, proto, packet.side);
    let Some(half) = Half::<F>::find(&key) else { return 0 };
    // Copied now, since the slot may belong to another flow later.
    hop.to = half.read(F::translated);
    hop.next = half.next();
    let now = now();
    let next = &hop.next;
    let is_reply = next.state & flow::REPLY_HALF != 0;
    // Request and reply have the same identifier, but a flow has a direction.
    let is_wrong_direction =
        matches!(packet.kind, Kind::EchoRequest) && is_reply || matches!(packet.kind, Kind::EchoReply) && !is_reply;
    if is_wrong_direction || has_expired(proto, next, now) {
        return 0;
    }
    if packet.side == SIDE_EGRESS && !is_reply && next.ifindex != packet::ifindex(ctx) {
        return ELSEWHERE;
    }
    let state = np_seen(u32::from(next.state), u32::from(packet.segment.flags)) as u8;
    if tcp::reopens(next.state, packet.segment.flags) {
        return 0;
    }
    let is_current = state & flow::STALE == 0 || !is_outward(next.forward);
    if is_current && state == next.state && flow::is_fresh(next, now) {
        half.acknowledge(&packet.segment);
        return 1;
    }
    let is_stale = is_outward(next.forward) && (flow::starts_window(next, now) || state & flow::STALE != 0);
    let segment = packet.segment;
    if refresh(scratch, &key, &segment, u32::from(state), now) == 0 {
        let hop = &scratch.hop;
        let reverse_key = F::key(&hop.to.reversed(), proto, hop.next.reverse_side);
        if let Some(reverse) = Half::<F>::find(&reverse_key) {
            if !reverse.leads_back(&key) {
                // The table has evicted the other entry, and another flow has its slot.
                let _ = F::flows().remove(&key);
                return 0;
            }
            // Another processor has just recreated it.
            return refresh(scratch, &key, &segment, u32::from(state), now);
        }
        // The next packet then looks up the next hop instead of this one. Nothing shows whether this one may change the state.
        let stale = if is_stale { flow::STALE } else { 0 };
        half.touch(scratch.hop.next.state | stale, now);
        return HALF;
    }
    if is_stale { STALE } else { 1 }
}

/// Only masqueraded packets of containers; replies leave through the uplink of the request.
#[inline(always)]
fn has_other_route<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let next = &scratch.hop.next;
    let masqueraded = next.origin == Reason::FlowMasqueraded as u8 && next.state & flow::REPLY_HALF == 0;
    if !masqueraded || scratch.packet.side != SIDE_BRIDGE {
        return 0;
    }
    let ifindex = next.ifindex;
    if kernel_lookup::route(ctx, scratch) != ifindex {
        return 1;
    }
    kernel_lookup::compare_via(ctx, scratch, ifindex);
    ROUTED
}

/// Sends this packet through the kernel's neighbour table, which thereby marks the neighbour as used and probes it if it
/// does not reply (`net/core/neighbour.c`).
#[inline(always)]
fn renew_flow<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, routed: u32) -> u32 {
    let ifindex = scratch.hop.next.ifindex;
    let mut known = 0;
    if routed == 0 {
        known = kernel_lookup::next_hop(ctx, scratch, ifindex);
        let Scratch { pending: PendingFlow { plan, .. }, fib, .. } = &mut **scratch;
        (plan.there.next_hop_mac, plan.there.mtu) = (fib.dmac, kernel_lookup::mtu(fib));
    } else if maps::find(&maps::UPLINK, ifindex).is_some_and(|u| u.ethernet != 0) {
        known = u32::from(is_known(&scratch.pending.plan.there.next_hop_mac));
    }
    let Scratch { packet, hop, pending: PendingFlow { plan, .. }, via, .. } = &mut **scratch;
    // [`hop_back`]
    let keeps = known == kernel_lookup::NO_ROUTE && hop.next.forward == FORWARD_LINK;
    if !keeps {
        hop.next.forward = FORWARD_NEIGH;
    }
    let key = F::key(&packet.tuple, packet.ip.proto, packet.side);
    let Some(half) = Half::<F>::find(&key) else { return 0 };
    let uplink_mtu = maps::find(&maps::UPLINK, ifindex).map_or(hop.next.mtu, |u| u.mtu as u16);
    hop.next.mtu = smaller_mtu(uplink_mtu, plan.there.mtu);
    half.mtu().store(hop.next.mtu);
    if known == 1 {
        half.set_next_hop(plan.there.next_hop_mac);
        half.forward().store(FORWARD_LINK);
    } else if !keeps {
        half.forward().store(FORWARD_NEIGH);
        // Otherwise the next packet would use the old address ([`KNOWN`]).
        half.set_next_hop([0; 6]);
    }
    // Only this path gives the kernel a next hop.
    if known == 1 || !via.is_needed {
        half.state().store(half.state().load() & !flow::STALE);
    }
    known
}

/// Recreates the other entry of the packet's flow, since a full table evicts single entries. The new entry leads to the
/// device from which the packet came.
#[inline(always)]
fn recreate_reverse<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let Scratch { packet, hop, pending, .. } = &mut **scratch;
    let next = &hop.next;
    let ifindex = packet::ifindex(ctx);
    let back = &mut pending.plan.back;
    *back = NextHop { ifindex, mtu: u16::MAX, ..NextHop::default() };
    if next.forward == FORWARD_STACK {
        back.forward = FORWARD_STACK;
    } else if packet.side == SIDE_LO {
        back.forward = FORWARD_INGRESS;
    } else if packet.side == SIDE_UPLINK {
        back.forward = FORWARD_NEIGH;
        back.match_dmac = next.next_hop_mac;
        back.mtu = maps::find(&maps::UPLINK, ifindex).map_or(u16::MAX, |u| u.mtu as u16);
    } else {
        port_lookup::hop_to_sender(ctx, scratch, ifindex);
    }
    let Scratch { packet, hop, pending, .. } = &mut **scratch;
    let next = &hop.next;
    let back = &mut pending.plan.back;
    // Packets from lo carry the host's route (`loopback.rs`).
    if next.reverse_side == SIDE_LO && is_inward(back.forward) {
        back.forward = FORWARD_EGRESS;
    }
    let reverse = Next {
        ifindex: back.ifindex,
        last_seen: now(),
        ack: 0,
        match_dmac: back.match_dmac,
        next_hop_mac: back.next_hop_mac,
        mtu: back.mtu,
        forward: back.forward,
        reverse_side: packet.side,
        state: (next.state ^ flow::REPLY_HALF) & !flow::CLAIMED,
        ..*next
    };
    pending.reverse_key = F::key(&hop.to.reversed(), packet.ip.proto, next.reverse_side);
    pending.reverse = F::flow(&packet.tuple.reversed(), reverse);
    pending.key = F::key(&packet.tuple, packet.ip.proto, packet.side);
    if F::flows().insert(&pending.reverse_key, &pending.reverse, u64::from(BPF_NOEXIST)).is_err()
        && let Some(there) = Half::<F>::find(&pending.reverse_key)
        && !there.leads_back(&pending.key)
    {
        // Another flow has taken the slot.
        return 0;
    }
    // As for a new flow: a look-up keeps the entry in a full table (`reserve_reverse`), and the mark makes the uplink expect
    // replies. A sweep may have cleared the mark while both entries were missing.
    if next.reverse_side == SIDE_UPLINK {
        let _ = F::flows().get_ptr(&pending.reverse_key);
        mark_port(packet.ip.proto, hop.to.sport.value());
    }
    1
}

/// Flag beside the state in [`refresh`]: the flow uses its known next hop from now on.
pub const KNOWN: u32 = 0x100;

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn np_refresh4(state: u32, now: u32) -> u32 {
    refresh_flow::<Ipv4>(state, now)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn np_refresh6(state: u32, now: u32) -> u32 {
    refresh_flow::<Ipv6>(state, now)
}

/// Records a packet in both entries of its flow, of which one is at `key`; 0: the other entry is missing, and nothing is
/// written. A global function that looks the entry up again: inlined, it was most of the verifier's work on the fast path,
/// once per state.
#[inline(always)]
pub fn refresh<F: Wire>(scratch: &mut ScratchMut<F>, key: &F::Key, segment: &Segment, state: u32, now: u32) -> u32 {
    scratch.refresh_key = *key;
    scratch.refresh_segment = *segment;
    if F::IS_V4 { np_refresh4(state, now) } else { np_refresh6(state, now) }
}

#[inline(always)]
fn refresh_flow<F: Wire>(state: u32, now: u32) -> u32 {
    // SAFETY: the only call in this function; `refresh` borrows the caller's scratch.
    let Some(scratch) = (unsafe { ScratchMut::<F>::take() }) else { return 0 };
    let key = &scratch.refresh_key;
    let Some(half) = Half::<F>::find(key) else { return 0 };
    let reverse_key = half.read(|half| nat_plan::other_key::<F>(half, F::protocol_of(key)));
    let Some(reverse) = Half::<F>::find(&reverse_key) else { return 0 };
    if !reverse.leads_back(key) {
        return 0;
    }
    // The other entry must look up its next hop again too: it may see no packet for a long time, but lives as long as this
    // one.
    let stale = if flow::starts_window(&half.next(), now) { flow::STALE } else { 0 };
    let (segment, old) = (&scratch.refresh_segment, half.state().load());
    let new = tcp::allowed(old, state as u8, segment, half.ack().load(), reverse.ack().load());
    if new & flow::REPLY_HALF != 0 && new & flow::ESTABLISHED == 0 && segment.flags & tcp::TCP_SYN != 0 {
        reverse.ack().store(segment.after_syn());
    }
    // This cancels a claim: the claiming processor checks the time again.
    let clear = if tcp::establishes(old, new) { flow::CLAIMED | flow::RESET } else { flow::CLAIMED };
    half.touch(new & !clear, now);
    if state & KNOWN != 0 {
        let next = half.next();
        if next.forward == FORWARD_NEIGH && is_known(&next.next_hop_mac) {
            half.forward().store(FORWARD_LINK);
        }
    }
    let other = reverse.state().load();
    reverse.touch((other | new & !(flow::REPLY_HALF | flow::STALE) | stale) & !clear, now);
    half.acknowledge(segment);
    1
}

subprog! {
    /// Removes the flow of the packet in scratch, if there is one. Returns 0.
    pub fn remove() -> u32 as np_remove4, np_remove6 = remove_flow;
}

#[inline(always)]
fn remove_flow<F: Wire>(_ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let Scratch { packet, pending, .. } = &mut **scratch;
    let proto = packet.ip.proto;
    pending.key = F::key(&packet.tuple, proto, packet.side);
    let Some(half) = Half::<F>::find(&pending.key) else { return 0 };
    pending.reverse_key = half.read(|half| nat_plan::other_key::<F>(half, proto));
    if let Some(reverse) = Half::<F>::find(&pending.reverse_key)
        && reverse.leads_back(&pending.key)
    {
        let _ = F::flows().remove(&pending.reverse_key);
    }
    let _ = F::flows().remove(&pending.key);
    0
}

/// Whether replies to a packet of the host would match a container's flow. Not if the host's own flow got this port at
/// another device: the same packet passes both devices (VLAN or macvlan on an uplink).
#[inline(always)]
pub fn is_taken<F: Wire>(ctx: &TcContext, packet: &Packet<F>) -> bool {
    let key = F::key(&packet.tuple.reversed(), packet.ip.proto, SIDE_UPLINK);
    let Some(half) = Half::<F>::find(&key) else { return false };
    let next = half.next();
    let passes_again = next.origin == Reason::FlowHost as u8 && next.ifindex != packet::ifindex(ctx);
    !passes_again && !has_expired(packet.ip.proto, &next, now())
}

/// Writes both entries of the plan in scratch, and the packet's hop to scratch. Searches another source port if the planned
/// one is used by a flow or (`spare_sockets`) by a socket of the host.
#[inline(always)]
pub fn begin<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, spare_sockets: bool, reason: Reason) -> Verdict {
    let pending = &mut scratch.pending;
    pending.spare_sockets = spare_sockets;
    pending.now = now();
    // SAFETY: no arguments.
    pending.random = unsafe { bpf_get_prandom_u32() };
    pending.plan.serial = pending.random;
    pending.reverse = pending.plan.reverse(pending.now);
    pending.tries = if has_free_port::<F>(pending.plan.proto) && !pending.plan.keeps_source() { PORT_TRIES } else { 1 };
    // The engine keeps a socket bound to each published port, whose packets go to the container.
    let published = port_lookup::is_published_by_sender(ctx, scratch);
    scratch.pending.spared_for_own = kernel_lookup::BOUND + published;
    let mut from = 0;
    // In batches: the verifier checks the function once for all of them.
    while from < PORT_TRIES {
        if search(ctx, scratch, from) != 0 {
            if scratch.pending.plan.proto == PROTO_TCP {
                enter_opening(ctx, scratch);
            }
            return verdict::begun(reason);
        }
        from += TRIES_AT_ONCE;
    }
    verdict::drop(Reason::DropPortsExhausted)
}

#[inline(always)]
fn try_ports<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, from: u32) -> u32 {
    let own = u32::from(scratch.pending.plan.from.sport.value());
    for n in 0..TRIES_AT_ONCE {
        let (i, pending) = (from + n, &mut scratch.pending);
        if i >= pending.tries {
            break;
        }
        pending.may_evict = i >= PORT_TRIES - EVICT_TRIES;
        // The reverse entry is written first, since it reserves the port. The calls are not nested, to save stack.
        let port = np_candidate(own, pending.random, i);
        let is_free = set_port(ctx, scratch, port) == 0;
        if is_free && reserve(ctx, scratch) != 0 && write_first(ctx, scratch) != 0 {
            return 1;
        }
    }
    0
}

/// Whether the source port can be changed.
#[inline(always)]
fn has_free_port<F: Wire>(proto: u8) -> bool {
    proto == PROTO_TCP || proto == PROTO_UDP || proto == F::ICMP
}

#[inline(always)]
fn plan_port<F: Wire>(ctx: &TcContext, scratch: &mut ScratchMut<F>, port: u32) -> u32 {
    let Scratch { pending, sock, .. } = &mut **scratch;
    let plan = &mut pending.plan;
    plan.to = plan.to.from_port(plan.proto, Be16::new(port as u16));
    pending.reverse_key = plan.reverse_key();
    if !pending.spare_sockets {
        return 0;
    }
    let spared = if port as u16 == plan.from.sport.value() { pending.spared_for_own } else { kernel_lookup::BOUND };
    u32::from(kernel_lookup::socket(ctx, sock, &plan.to.reversed(), plan.proto) >= spared)
}

/// On failure the reverse entry is removed too.
#[inline(always)]
fn write_first_entry<F: Wire>(_ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let Scratch { pending, hop, via, .. } = &mut **scratch;
    pending.key = pending.plan.key();
    pending.flow = pending.plan.flow(pending.now);
    if via.is_needed {
        F::next_mut(&mut pending.flow).state |= flow::STALE;
    }
    let fresh = F::next(&pending.flow);
    let is_written = match Half::<F>::find(&pending.key) {
        Some(half) if half.read(|half| pending.plan.displaces(half)) && reuse_slot(half, fresh) => {
            // The reverse entry's acknowledgement counts only once its first segment has replaced it.
            half.ack().store(0);
            half.serial().store(fresh.serial);
            true
        }
        _ => false,
    };
    if !is_written && F::flows().insert(&pending.key, &pending.flow, u64::from(BPF_ANY)).is_err() {
        let _ = F::flows().remove(&pending.reverse_key);
        return 0;
    }
    if pending.plan.reverse_side == SIDE_UPLINK {
        mark_port(pending.plan.proto, pending.plan.to.sport.value());
    }
    hop.to = pending.plan.to;
    hop.next = *F::next(&pending.flow);
    if hop.next.forward == FORWARD_LINK {
        hop.next.forward = FORWARD_NEIGH;
    }
    1
}

#[inline(always)]
fn find_reverse<F: Wire>(_ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let pending = &mut scratch.pending;
    pending.reverse_key = pending.plan.reverse_key();
    let Some(reverse) = Half::<F>::find(&pending.reverse_key) else { return 0 };
    u32::from(
        reverse.read(|reverse| pending.plan.owns(reverse)) && !has_expired(pending.plan.proto, &reverse.next(), now()),
    )
}

#[inline(always)]
fn reserve_reverse<F: Wire>(_ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let pending = &mut scratch.pending;
    // Look-up first: even a failed insertion costs the table an element.
    let Some(there) = Half::<F>::find(&pending.reverse_key) else {
        if F::flows().insert(&pending.reverse_key, &pending.reverse, u64::from(BPF_NOEXIST)).is_err() {
            return 0;
        }
        // If all of a full table was looked up recently (port searches look up entries of other flows), the kernel
        // evicts elements that were not, and these are the newest (`kernel/bpf/bpf_lru_list.c`): the expected reply
        // would find no entry. Flows that outside clients begin count as used only from their reply on, so that a
        // flood of them evicts its own entries first.
        if pending.plan.reverse_side == SIDE_UPLINK {
            let _ = F::flows().get_ptr(&pending.reverse_key);
        }
        return 1;
    };
    if there.read(|there| pending.plan.owns(there)) {
        if reuse_slot(there, F::next(&pending.reverse)) {
            return 1;
        }
        if there.state().load() & flow::CLAIMED != 0 {
            return 0;
        }
    } else if !claim_slot(pending, there) {
        return 0;
    }
    if F::flows().insert(&pending.reverse_key, &pending.reverse, u64::from(BPF_ANY)).is_err() {
        there.release();
        return 0;
    }
    1
}

/// The kernel's LRU counts a connection as used from its first answer on, so answered SYNs of a flood would displace idle
/// connections: they displace each other here.
#[inline(always)]
fn replace_opening<F: Wire>(_ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let pending = &mut scratch.pending;
    let Some(opened) = maps::OPENED_COUNT.get_ptr_mut(if F::IS_V4 { 0 } else { 1 }) else { return 0 };
    let mut number = 1_u64;
    // SAFETY: a map value of eight bytes; read and increased in one instruction (5.12).
    unsafe {
        core::arch::asm!("r2 = atomic_fetch_add((u64 *)(r1 + 0), r2)", in("r1") opened, inlateout("r2") number, options(nostack));
    }
    let Some(place) = F::openings().get_ptr_mut(number as u32 % F::OPENINGS) else { return 0 };
    // SAFETY: a map value. Another processor writes the same place only after all others were taken.
    let oldest = unsafe { &mut *place };
    let serial = oldest.serial;
    (pending.reverse_key, oldest.key, oldest.serial) = (oldest.key, pending.key, pending.plan.serial);
    pending.key = pending.reverse_key;
    let Some(half) = Half::<F>::find(&pending.key) else { return 0 };
    if half.serial().load() != serial || half.state().load() & flow::ESTABLISHED != 0 {
        return 0;
    }
    pending.reverse_key = half.read(|half| nat_plan::other_key::<F>(half, PROTO_TCP));
    if let Some(reverse) = Half::<F>::find(&pending.reverse_key)
        && reverse.leads_back(&pending.key)
    {
        let _ = F::flows().remove(&pending.reverse_key);
    }
    let _ = F::flows().remove(&pending.key);
    0
}

/// Turns an entry of an ended flow into one of a new flow, `fresh`, if both have the same next hop. It keeps its slot
/// in the table: otherwise a client with few ports would replace two elements per connection.
#[inline(always)]
fn reuse_slot<F: Wire>(half: Half<F>, fresh: &Next) -> bool {
    let seen = half.state().load();
    if seen & flow::CLAIMED != 0 || !half.read(|half| F::next(half).is_same_hop(fresh)) {
        return false;
    }
    // The time first, then the state: another processor that claims this slot checks the time again afterwards
    // ([`claim_slot`]).
    half.last_seen().store(fresh.last_seen);
    if !half.exchange(seen, fresh.state, fresh) {
        return false;
    }
    if half.forward().load() != fresh.forward {
        half.forward().store(fresh.forward);
    }
    true
}

/// Claims the slot of `there` for the pending reverse entry, if its flow has ended or is orphaned. After success only this
/// processor owns the slot, and no entry of the old flow leads there.
#[inline(always)]
fn claim_slot<F: Wire>(pending: &mut PendingFlow<F>, there: Half<F>) -> bool {
    let proto = pending.plan.proto;
    // The claim succeeds only on the state that this decision is based on.
    let seen = there.next();
    let is_over =
        has_expired(proto, &seen, pending.now) || (pending.may_evict && flow::is_closed(proto, &seen, pending.now));
    if !(is_over || pending.may_evict && flow::may_be_orphaned(proto, &seen, pending.now)) {
        return false;
    }
    pending.key = there.read(|there| nat_plan::other_key::<F>(there, proto));
    let is_whole = match Half::<F>::find(&pending.key) {
        Some(first) => first.read(|first| pending.plan.displaces(first)),
        None => false,
    };
    if (is_whole && !is_over) || !there.exchange(seen.state, seen.state | flow::CLAIMED, &seen) {
        return false;
    }
    if there.last_seen().load() != seen.last_seen {
        // The flow is in use again.
        there.release();
        return false;
    }
    if is_whole {
        let _ = F::flows().remove(&pending.key);
    }
    true
}

/// Marks `port` as a destination of replies.
#[inline(always)]
fn mark_port(proto: u8, port: u16) {
    let Some(marks) = maps::NAT_PORT.get_ptr_mut(u32::from(port)) else { return };
    // SAFETY: a map value; single bytes, only ever set.
    unsafe {
        match proto {
            PROTO_TCP => (*marks).tcp = 1,
            PROTO_UDP => (*marks).udp = 1,
            PROTO_ICMP => (*marks).icmp = 1,
            PROTO_ICMPV6 => (*marks).icmp6 = 1,
            // Other protocols are too rare for a mark.
            _ => {}
        }
    }
}

/// Whether a reply to a masqueraded flow may be addressed to `port`.
#[inline(always)]
pub fn is_marked(proto: u8, port: u16) -> bool {
    let Some(marks) = maps::NAT_PORT.get(u32::from(port)) else { return false };
    let mark = match proto {
        PROTO_TCP => marks.tcp,
        PROTO_UDP => marks.udp,
        PROTO_ICMP => marks.icmp,
        PROTO_ICMPV6 => marks.icmp6,
        _ => 1,
    };
    mark != 0
}
