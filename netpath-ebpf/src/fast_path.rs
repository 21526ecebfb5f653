//! Fast path of a packet with a known flow and plain headers (no options, no fragment), TCP or UDP. All state is in
//! registers and on the stack, the packet is read and written in place, and the only helpers called are flow look-up,
//! clock, checksum and redirect. All other packets take the slow path (`packet.rs`, `flows.rs`).

use aya_ebpf::programs::TcContext;
use netpath_common::family::Tuple;
use netpath_common::flow;
use netpath_common::layout::{FORWARD_LINK, FORWARD_NEIGH, FORWARD_STACK, Next, PROTO_TCP, PROTO_UDP, is_outward};
use netpath_common::policy::fits;
use netpath_common::reason::Reason;
use netpath_common::tcp;

use crate::flows::{self, now};
use crate::half::Half;
use crate::headers::Wire;
use crate::packet::{self, ETHERNET, Tcp, Udp, View};
use crate::parsed::FastHeaders;
use crate::rewrite;
use crate::scratch::ScratchMut;
use crate::verdict::{self, Verdict};

impl<F: Wire> FastHeaders<F> {
    /// Reads the packet; false: it needs the slow path.
    #[inline(always)]
    pub fn read(&mut self, ctx: &impl View, side: u8) -> bool {
        const L3: usize = ETHERNET;
        let Some(len) = F::read_plain(ctx, L3, self) else { return false };
        let l4 = L3 + F::HEADER;
        let (sport, dport, headers) = match self.proto {
            PROTO_TCP => {
                let Some(h) = packet::at::<Tcp>(ctx, l4) else { return false };
                self.segment = h.segment();
                let headers = u32::from(h.offset >> 4) * 4;
                if headers < 20 {
                    return false;
                }
                (h.sport, h.dport, headers)
            }
            PROTO_UDP => {
                let Some(h) = packet::at::<Udp>(ctx, l4) else { return false };
                (h.sport, h.dport, 8)
            }
            _ => return false,
        };
        self.headers = headers + F::HEADER as u32;
        F::complete(&mut self.key, sport, dport, self.proto, side);
        // A truncated packet is not ours. (A longer frame is valid: short frames are padded.)
        self.headers <= len && len + L3 as u32 <= ctx.size()
    }
}

/// Forwards the packet by its flow. `None`: it has no live flow, or one that needs the slow path; then nothing was
/// changed.
#[inline(always)]
pub fn follow<F: Wire>(ctx: &TcContext, plain: &FastHeaders<F>) -> Option<Verdict> {
    follow_if::<F, true>(ctx, plain, |_| true)
}

/// As [`follow`], for hooks where flows rarely lead outward; an outward flow takes the slow path.
#[inline(always)]
pub fn follow_inward<F: Wire>(ctx: &TcContext, plain: &FastHeaders<F>) -> Option<Verdict> {
    follow_if::<F, false>(ctx, plain, |_| true)
}

/// The same for a flow whose next hop satisfies `is_fit`; `OUTWARD`: it may leave by an uplink.
#[inline(always)]
pub fn follow_if<F: Wire, const OUTWARD: bool>(
    ctx: &TcContext,
    plain: &FastHeaders<F>,
    is_fit: impl Fn(&Next) -> bool,
) -> Option<Verdict> {
    let half = Half::<F>::find(&plain.key)?;
    let next = &half.next();
    if !is_fit(next) {
        return None;
    }
    let len = ctx.len() - ETHERNET as u32;
    let fits =
        !verdict::is_limited::<F>(next.forward) || fits(len, packet::gso_size(ctx), plain.headers, u32::from(next.mtu));
    let is_elsewhere = next.forward == FORWARD_STACK || (!OUTWARD && next.forward == FORWARD_LINK);
    if plain.ttl <= 1 || !fits || is_elsewhere || tcp::reopens(next.state, plain.segment.flags) {
        return None;
    }
    // Before the refresh, so that the first packet uses the kernel's neighbour table.
    let (forward, addresses) = if OUTWARD { verdict::framed(next) } else { (next.forward, [0; 3]) };
    if !note::<F, OUTWARD>(plain, next) {
        return None;
    }
    half.acknowledge(&plain.segment);
    // Read again: a value kept across the call would be spilled to the stack.
    let next = &half.next();
    let addresses = if OUTWARD { addresses } else { verdict::addresses(&[next.match_dmac, next.next_hop_mac]) };
    if half.read(|flow| translate(ctx, plain, F::target_of(flow), forward, addresses)).is_none() {
        return Some(verdict::drop(Reason::DropRewrite));
    }
    verdict::traffic(ctx, next);
    Some(Verdict { action: verdict::redirect(ctx, next.ifindex, forward), reason: Reason::Redirected })
}

/// Records the packet in its flow; false: the flow has expired, or the slow path has to recreate its other entry or
/// look up its next hop.
#[inline(always)]
pub fn note<F: Wire, const OUTWARD: bool>(plain: &FastHeaders<F>, next: &Next) -> bool {
    let now = now();
    let state = tcp::seen(next.state, plain.segment.flags);
    let is_fresh = flow::is_fresh(next, now);
    if OUTWARD && is_outward(next.forward) && (flow::starts_window(next, now) || state & flow::STALE != 0) {
        return false;
    }
    if state == next.state && is_fresh {
        return true;
    }
    let known = if OUTWARD { flows::KNOWN } else { 0 };
    if flows::has_expired(plain.proto, next, now) {
        return false;
    }
    // SAFETY: the fast paths use no other scratch.
    let Some(mut scratch) = (unsafe { ScratchMut::<F>::take() }) else { return false };
    flows::refresh(&mut scratch, &plain.key, &plain.segment, u32::from(state) | known, now) != 0
}

/// The checksum is replaced first, since its helper invalidates packet pointers for the verifier.
#[inline(always)]
pub fn translate<F: Wire>(
    ctx: &TcContext,
    plain: &FastHeaders<F>,
    to: &Tuple<F>,
    forward: u8,
    addresses: [u32; 3],
) -> Option<()> {
    rewrite::replace_sums::<F>(ctx, plain.proto, ETHERNET + F::HEADER, plain.tuple(), to)?;
    F::write_plain(ctx, ETHERNET, plain, to)?;
    if forward != FORWARD_NEIGH {
        *packet::at_mut::<[u32; 3]>(ctx, 0)? = addresses;
    }
    Some(())
}
