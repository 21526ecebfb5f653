//! The short way of a packet whose flow is known: plain headers (no options, no fragment), TCP or UDP. Everything is in
//! registers and on the stack, the packet is read and written in place, and the only helpers called are the look-up of
//! the flow, the clock, the checksum and the redirect. Any other packet takes the long way (`packet.rs`, `flows.rs`).

use aya_ebpf::programs::TcContext;
use netpath_common::family::Tuple;
use netpath_common::flow;
use netpath_common::layout::{FORWARD_LINK, FORWARD_NEIGH, FORWARD_STACK, Next, PROTO_TCP, PROTO_UDP, is_outward};
use netpath_common::policy::fits;
use netpath_common::reason::Reason;

use crate::flows::{self, now};
use crate::half::Half;
use crate::headers::Wire;
use crate::packet::{self, ETHERNET, Tcp, Udp, View};
use crate::scratch::ScratchMut;
use crate::verdict::{self, Verdict};

/// Headers as they are read in one go. Filled in place and handed on by reference: the families' walks have little stack.
pub struct FastHeaders<F: Wire> {
    /// With the hook's side: what the flow table is asked for.
    pub key: F::Key,
    pub proto: u8,
    pub ttl: u8,
    /// IPv4: the header's checksum.
    pub sum: [u8; 2],
    tcp_flags: u8,
    /// Bytes of the network and transport headers.
    headers: u32,
}

impl<F: Wire> FastHeaders<F> {
    #[inline(always)]
    pub fn new() -> Self {
        Self { key: F::Key::default(), proto: 0, ttl: 0, sum: [0; 2], tcp_flags: 0, headers: 0 }
    }

    #[inline(always)]
    pub fn tuple(&self) -> &Tuple<F> {
        F::tuple(&self.key)
    }

    /// Reads the packet; false: it has to take the long way.
    #[inline(always)]
    pub fn read(&mut self, ctx: &impl View, side: u8) -> bool {
        const L3: usize = ETHERNET;
        let Some(len) = F::read_plain(ctx, L3, self) else { return false };
        let l4 = L3 + F::HEADER;
        let (sport, dport, headers) = match self.proto {
            PROTO_TCP => {
                let Some(h) = packet::at::<Tcp>(ctx, l4) else { return false };
                self.tcp_flags = h.flags;
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
        // A packet that is cut short is not ours. (Longer is right: short frames are padded.)
        self.headers <= len && len + L3 as u32 <= ctx.size()
    }
}

/// Sends the packet on by its flow. `None`: it has none that is alive, or one that the long way has to deal with; then
/// nothing was changed.
#[inline(always)]
pub fn follow<F: Wire>(ctx: &TcContext, plain: &FastHeaders<F>) -> Option<Verdict> {
    follow_if::<F, true>(ctx, plain, |_| true)
}

/// The same where hardly a flow leads outward; one that does takes the long way.
#[inline(always)]
pub fn follow_inward<F: Wire>(ctx: &TcContext, plain: &FastHeaders<F>) -> Option<Verdict> {
    follow_if::<F, false>(ctx, plain, |_| true)
}

/// The same for a flow that goes on in a way that `is_fit`; `OUTWARD`: that may be out of an uplink.
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
    let lives = plain.ttl > 1 || next.forward == FORWARD_STACK;
    let is_elsewhere = !OUTWARD && next.forward == FORWARD_LINK;
    if !lives || !fits || is_elsewhere || flow::begins_anew(next.state, plain.tcp_flags) {
        return None;
    }
    // Before it is refresh_key: the first packet goes by the kernel's neighbour table.
    let (forward, addresses) = if OUTWARD { verdict::framed(next) } else { (next.forward, [0; 3]) };
    if !note::<F, OUTWARD>(plain, next) {
        return None;
    }
    // Read once more: what is kept over the call has to be put on the stack.
    let next = &half.next();
    let addresses = if OUTWARD { addresses } else { verdict::addresses(&[next.match_dmac, next.next_hop_mac]) };
    if half.read(|flow| translate(ctx, plain, F::target_of(flow), forward, addresses)).is_none() {
        return Some(verdict::drop(Reason::DropRewrite));
    }
    verdict::traffic(ctx, next);
    if forward == FORWARD_STACK {
        return Some(verdict::stack(Reason::Translated));
    }
    Some(Verdict { action: verdict::redirect(ctx, next.ifindex, forward), reason: Reason::Redirected })
}

/// Writes down what the packet adds to its flow; false: that has expired, or the long way has to mend it, or to ask for its
/// next hop again.
#[inline(always)]
pub fn note<F: Wire, const OUTWARD: bool>(plain: &FastHeaders<F>, next: &Next) -> bool {
    let now = now();
    let state = flow::seen(next.state, plain.tcp_flags);
    let is_fresh = flow::is_fresh(next, now);
    if OUTWARD && is_outward(next.forward) && (flow::is_late(next, now) || state & flow::STALE != 0) {
        return false;
    }
    if state == next.state && is_fresh {
        return true;
    }
    let known = if OUTWARD { flows::KNOWN } else { 0 };
    if flows::has_expired(plain.proto, next, now) {
        return false;
    }
    // SAFETY: the short ways know of no scratch but this.
    let Some(mut scratch) = (unsafe { ScratchMut::<F>::take() }) else { return false };
    flows::refresh(&mut scratch, &plain.key, u32::from(state) | known, now) != 0
}

/// The checksum first: its helper ends what the verifier knows of the packet.
#[inline(always)]
fn translate<F: Wire>(
    ctx: &TcContext,
    plain: &FastHeaders<F>,
    to: &Tuple<F>,
    forward: u8,
    addresses: [u32; 3],
) -> Option<()> {
    packet::replace_sums::<F>(ctx, plain.proto, ETHERNET + F::HEADER, plain.tuple(), to)?;
    F::write_plain(ctx, ETHERNET, plain, u8::from(forward != FORWARD_STACK), to)?;
    if forward != FORWARD_NEIGH && forward != FORWARD_STACK {
        *packet::at_mut::<[u32; 3]>(ctx, 0)? = addresses;
    }
    Some(())
}
