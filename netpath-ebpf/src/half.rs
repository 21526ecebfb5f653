//! One entry (half) of a flow in the table, with concurrent readers and writers.

use core::mem::offset_of;

use netpath_common::addr::Mac;
use netpath_common::layout::Next;
use netpath_common::tcp::Segment;
use netpath_common::{flow, nat_plan};

use crate::headers::Wire;

/// A field of a flow that programs write while others read it. Each access is one instruction, with the effect of a
/// relaxed atomic access; the compiler's BPF target has no atomics below 64 bits.
pub struct Word<T>(*mut T);

impl<T: Copy> Word<T> {
    #[inline(always)]
    pub fn load(self) -> T {
        // SAFETY: only `Half` constructs a `Word`, from an aligned field of a map value whose type has no invalid values.
        unsafe { self.0.read_volatile() }
    }

    #[inline(always)]
    pub fn store(self, value: T) {
        // SAFETY: only `Half` constructs a `Word`, from an aligned field of a map value, and there is no reference to the field (`Half::read`).
        unsafe { self.0.write_volatile(value) }
    }
}

/// One entry of a flow in the table. Other processors may change its state and next hop while this one reads, and may
/// give its slot to another flow, since LRU elements are not kept for readers: then one packet is misdirected, with a
/// wrong checksum. So no reference to it is kept.
#[derive(Clone, Copy)]
pub struct Half<F: Wire>(*mut F::Flow);

impl<F: Wire> Half<F> {
    #[inline(always)]
    pub fn find(key: &F::Key) -> Option<Self> {
        F::flows().get_ptr_mut(key).map(Self)
    }

    /// Reads the entry in place. A field may change meanwhile; decisions that depend on it are checked again.
    #[inline(always)]
    pub fn read<T>(self, read: impl FnOnce(&F::Flow) -> T) -> T {
        // SAFETY: a map value, aligned to 8, valid until the program ends. `read` cannot keep the reference, and the
        // functions passed (`family.rs`, `nat_plan.rs`, `translate` of `fast_path.rs` and `xdp.rs`) write to no flow.
        read(unsafe { &*self.0 })
    }

    #[inline(always)]
    fn place(self) -> *mut Next {
        self.0.wrapping_byte_add(F::NEXT).cast()
    }

    #[inline(always)]
    pub fn last_seen(self) -> Word<u32> {
        Word(self.0.wrapping_byte_add(F::NEXT + offset_of!(Next, last_seen)).cast())
    }

    #[inline(always)]
    pub fn ack(self) -> Word<u32> {
        Word(self.0.wrapping_byte_add(F::NEXT + offset_of!(Next, ack)).cast())
    }

    #[inline(always)]
    pub fn serial(self) -> Word<u32> {
        Word(self.0.wrapping_byte_add(F::NEXT + offset_of!(Next, serial)).cast())
    }

    #[inline(always)]
    pub fn state(self) -> Word<u8> {
        Word(self.0.wrapping_byte_add(F::NEXT + offset_of!(Next, state)).cast())
    }

    #[inline(always)]
    pub fn mtu(self) -> Word<u16> {
        Word(self.0.wrapping_byte_add(F::NEXT + offset_of!(Next, mtu)).cast())
    }

    #[inline(always)]
    pub fn forward(self) -> Word<u8> {
        Word(self.0.wrapping_byte_add(F::NEXT + offset_of!(Next, forward)).cast())
    }

    /// A copy of the next hop and state.
    #[inline(always)]
    pub fn next(self) -> Next {
        // SAFETY: a part of a map value, plain numbers: half of a hardware address may be new, then one frame is lost.
        let mut next = unsafe { *self.place() };
        next.last_seen = self.last_seen().load();
        next.forward = self.forward().load();
        next.state = self.state().load();
        next
    }

    #[inline(always)]
    pub fn set_next_hop(self, mac: Mac) {
        // SAFETY: a field of a map value; a reader of half of it loses one frame.
        unsafe { (*self.place()).next_hop_mac = mac }
    }

    /// Whether it is the other entry of the flow at `key`.
    #[inline(always)]
    pub fn leads_back(self, key: &F::Key) -> bool {
        self.read(|half| nat_plan::leads_back::<F>(half, key))
    }

    #[inline(always)]
    pub fn touch(self, state: u8, now: u32) {
        self.last_seen().store(now);
        self.state().store(state);
    }

    /// Stores the acknowledgement of a segment in the entry's direction.
    #[inline(always)]
    pub fn acknowledge(self, segment: &Segment) {
        if segment.acknowledges() && self.ack().load() != segment.ack {
            self.ack().store(segment.ack);
        }
    }

    /// Releases a claim.
    #[inline(always)]
    pub fn release(self) {
        self.state().store(self.state().load() & !flow::CLAIMED);
    }

    /// Replaces the state `seen` by `state` if the entry still has it, belongs to the same flow and is not claimed (5.12).
    #[inline(always)]
    pub fn exchange(self, seen: u8, state: u8, of: &Next) -> bool {
        const WORD: usize = offset_of!(Next, state);
        const { assert!(WORD.is_multiple_of(4) && WORD + 4 == size_of::<Next>()) };
        let [traffic_0, traffic_1] = of.traffic.to_ne_bytes();
        let word = |state| u32::from_ne_bytes([state, of.origin, traffic_0, traffic_1]);
        let before = u64::from(word(seen & !flow::CLAIMED));
        let mut at_once = before;
        // SAFETY: a word of a map value; compared and exchanged in one instruction.
        unsafe {
            core::arch::asm!(
                "w0 = cmpxchg32_32(r1 + 0, w0, w2)",
                in("r1") self.place().wrapping_byte_add(WORD),
                in("r2") u64::from(word(state)),
                inlateout("r0") at_once,
                options(nostack)
            );
        }
        at_once == before
    }
}
