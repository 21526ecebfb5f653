//! Access to the bytes and the context of a frame. Values are copied out before any write: no pointer into a packet
//! outlives a helper call.

use aya_ebpf::helpers::{bpf_l4_csum_replace, bpf_skb_store_bytes, bpf_skb_vlan_pop};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_ebpf::{EbpfContext, Global};
use netpath_common::addr::Be16;
use netpath_common::tcp::Segment;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `netpath_common::layout::global::CSUM_IPV6`.
#[unsafe(no_mangle)]
pub static NP_CSUM_IPV6: Global<u8> = Global::new(0);

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;

/// `__sk_buff::pkt_type`: addressed to this host (`include/uapi/linux/if_packet.h`).
const PACKET_HOST: u32 = 0;

/// A frame at a hook.
pub trait View {
    /// Start of the bytes that can be read in place.
    fn begin(&self) -> usize;
    fn end(&self) -> usize;
    /// Length of the whole frame, from `begin` on.
    fn size(&self) -> u32;
    /// Whether it stands for several segments.
    fn is_gso(&self) -> bool;

    /// Length of the IP packet at `l3` whose header says `len`, from where the family counts, `empty` behind `l3`. A GSO packet
    /// above 64 KiB says zero (BIG TCP: 5.19, IPv4 6.3).
    #[inline(always)]
    fn ip_len(&self, l3: usize, empty: usize, len: u16) -> u32 {
        if len == 0 && self.is_gso() { self.size() - l3 as u32 } else { empty as u32 + u32::from(len) }
    }
}

impl View for TcContext {
    #[inline(always)]
    fn begin(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }

    #[inline(always)]
    fn size(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        gso_size(self) != 0
    }
}

/// Single-buffer frames: programs that do not declare support for more buffers get no others (5.18).
impl View for XdpContext {
    #[inline(always)]
    fn begin(&self) -> usize {
        self.data()
    }

    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }

    #[inline(always)]
    fn size(&self) -> u32 {
        self.data_end().wrapping_sub(self.data()) as u32
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        false
    }
}

/// The `T` at `offset`, a compile-time constant, if the packet is that long; invalid after a helper that changes the
/// packet. `T` has an alignment of 4 at most: the stack aligns network headers so (`include/linux/skbuff.h,
/// NET_IP_ALIGN`), except on machines with cheap unaligned access.
#[inline(always)]
pub fn at<T: FromBytes + Immutable>(ctx: &impl View, offset: usize) -> Option<&T> {
    // SAFETY: between data and data_end, which the verifier checks again; any bytes are a T.
    place(ctx, offset, size_of::<T>()).map(|at| unsafe { &*(at as *const T) })
}

/// The same at an offset from the packet.
#[inline(always)]
pub fn behind<T: FromBytes + Immutable>(ctx: &TcContext, offset: usize) -> Option<&T> {
    // No loss: headers end before.
    if offset > OFFSETS {
        return None;
    }
    let mut bounded = offset;
    // A bound that the verifier sees in the register that is added. The comparison may have used another load of the
    // same stack slot, and kernels before 6.8 do not relate the two.
    // SAFETY: the register keeps its value, which is not above the mask.
    unsafe {
        core::arch::asm!("{0} &= 511", inout(reg) bounded, options(pure, nomem, nostack, preserves_flags));
    }
    at(ctx, bounded)
}

/// The mask in [`behind`].
const OFFSETS: usize = 511;

/// As [`at`], for writing. Private data of this run: for programs that write so, the verifier adds a prologue that
/// unshares a cloned packet's headers (`kernel/bpf/verifier.c, convert_ctx_accesses()`).
#[inline(always)]
#[expect(clippy::mut_from_ref, reason = "the packet is not part of the context")]
pub fn at_mut<T: FromBytes + IntoBytes>(ctx: &impl View, offset: usize) -> Option<&mut T> {
    // SAFETY: `place` has checked that the packet has that many bytes there, of which any are a value of T, whose alignment the target does
    // not require. No other reference into the packet is in use.
    place(ctx, offset, size_of::<T>()).map(|at| unsafe { &mut *(at as *mut T) })
}

#[inline(always)]
fn place(ctx: &impl View, offset: usize, size: usize) -> Option<usize> {
    let mut at = ctx.begin() + offset;
    // One register for the check and the access: computed twice, the sum would be two unrelated pointers to the
    // verifier. (Without an instruction the line table would have two lines at one place, which the kernel rejects.)
    // SAFETY: the register keeps its value.
    unsafe { core::arch::asm!("{0} = {0}", inout(reg) at, options(pure, nomem, nostack, preserves_flags)) };
    if at + size > ctx.end() { None } else { Some(at) }
}

#[inline(always)]
pub fn store<T: IntoBytes + Immutable>(ctx: &TcContext, offset: usize, value: &T, flags: u64) -> Result<(), ()> {
    // SAFETY: the helper checks offset and length against the packet.
    let ret = unsafe {
        bpf_skb_store_bytes(ctx.skb.skb, offset as u32, core::ptr::from_ref(value).cast(), size_of::<T>() as u32, flags)
    };
    if ret == 0 { Ok(()) } else { Err(()) }
}

/// Whether the frame is of no VLAN and addressed to this host. In promiscuous mode the hooks see frames to other hosts
/// too, and on the parent of a VLAN the frames of that VLAN.
#[inline(always)]
pub fn is_for_us(ctx: &TcContext) -> bool {
    // SAFETY: context fields, read-only.
    unsafe { (*ctx.skb.skb).pkt_type == PACKET_HOST && (!is_tagged(ctx) || (*ctx.skb.skb).vlan_tci & VLAN_ID == 0) }
}

/// `include/linux/if_vlan.h`, `VLAN_VID_MASK`: 0 is no VLAN, the tag has a priority only (IEEE 802.1Q §6.9.1).
const VLAN_ID: u32 = 0x0fff;

#[inline(always)]
pub fn is_tagged(ctx: &TcContext) -> bool {
    // SAFETY: a context field, read-only.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

/// Removes a priority tag, which is beside the frame's bytes, so that the frame leaves without one, as by the host's stack.
#[inline(always)]
pub fn untag(ctx: &TcContext) {
    if is_tagged(ctx) {
        // SAFETY: no pointers into the packet are kept.
        unsafe { bpf_skb_vlan_pop(ctx.skb.skb) };
    }
}

#[inline(always)]
pub fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: a context field, read-only.
    unsafe { (*ctx.skb.skb).ifindex }
}

/// `__sk_buff::tc_index` of a packet that a program has redirected, for the program at the egress of that device.
const SENT: u32 = 0x4e50;

#[inline(always)]
pub fn mark_sent(ctx: &TcContext) {
    // SAFETY: a context field that classifiers may write.
    unsafe { (*ctx.skb.skb).tc_index = SENT }
}

/// Whether the packet was marked; clears the mark.
#[inline(always)]
pub fn take_sent(ctx: &TcContext) -> bool {
    // SAFETY: a context field that classifiers may read and write.
    unsafe {
        let sent = (*ctx.skb.skb).tc_index == SENT;
        if sent {
            (*ctx.skb.skb).tc_index = 0;
        }
        sent
    }
}

#[inline(always)]
pub fn gso_size(ctx: &TcContext) -> u32 {
    // SAFETY: a context field, read-only.
    unsafe { (*ctx.skb.skb).gso_size }
}

#[inline(always)]
pub fn replace_checksum(ctx: &TcContext, at: usize, from: u64, to: u64, flags: u64) -> Result<(), ()> {
    // SAFETY: the helper checks the offset against the packet.
    if unsafe { bpf_l4_csum_replace(ctx.as_ptr().cast(), at as u32, from, to, flags) } == 0 { Ok(()) } else { Err(()) }
}

#[repr(C, align(4))]
#[derive(Clone, Copy, FromBytes, Immutable)]
pub struct Tcp {
    pub sport: Be16,
    pub dport: Be16,
    seq: u32,
    ack: u32,
    pub offset: u8,
    flags: u8,
    window: [u8; 2],
    check: [u8; 2],
    urgent: [u8; 2],
}

impl Tcp {
    #[inline(always)]
    pub fn segment(&self) -> Segment {
        Segment { seq: self.seq, ack: self.ack, flags: self.flags }
    }
}

#[repr(C, align(4))]
#[derive(Clone, Copy, FromBytes, Immutable)]
pub struct Udp {
    pub sport: Be16,
    pub dport: Be16,
    pub len: Be16,
    pub check: [u8; 2],
}

/// The common header (RFC 9260 §3.1).
#[repr(C, align(4))]
#[derive(Clone, Copy, FromBytes, Immutable)]
pub struct Sctp {
    pub sport: Be16,
    pub dport: Be16,
    tag: [u8; 4],
    check: [u8; 4],
}

#[repr(C, align(4))]
#[derive(Clone, Copy, FromBytes, Immutable)]
pub struct Echo {
    pub kind: u8,
    pub code: u8,
    pub check: [u8; 2],
    pub id: Be16,
    pub sequence: [u8; 2],
}
