//! Data that the functions of a program share. The stack of 512 bytes cannot hold a packet and a pending flow, so a
//! per-CPU map does. Programs run with bottom halves disabled and do not nest, hence a run has its processor's
//! scratch to itself.

use core::ops::{Deref, DerefMut};

use aya_ebpf::bindings::{bpf_fib_lookup, bpf_redir_neigh, bpf_sock_tuple};
use aya_ebpf::maps::PerCpuArray;
use netpath_common::addr::Addr;
use netpath_common::family::{Family, Tuple};
use netpath_common::layout::Next;
use netpath_common::nat_plan::NewFlow;
use netpath_common::tcp::Segment;

use crate::parsed::{Packet, Quoted};

/// A family, and its scratch.
pub trait HasScratch: Family {
    fn scratch() -> &'static PerCpuArray<Scratch<Self>>;
}

#[repr(C)]
pub struct Scratch<F: Family> {
    /// The current packet.
    pub packet: Packet<F>,
    /// The quotation of an ICMP error.
    pub quoted: Quoted<F>,
    pub hop: Hop<F>,
    pub pending: PendingFlow<F>,
    /// Argument of `port_lookup::first_rule`.
    pub wanted: Wanted<F>,
    /// Arguments of `flows::refresh`.
    pub refresh_key: F::Key,
    pub refresh_segment: Segment,
    /// Arguments of `bpf_fib_lookup`.
    pub fib: bpf_fib_lookup,
    pub via: Via,
    /// Arguments of the socket look-ups.
    pub sock: bpf_sock_tuple,
}

/// The next hop of the packet's route.
#[repr(C)]
pub struct Via {
    pub next_hop: bpf_redir_neigh,
    /// Whether `bpf_redirect_neigh` would choose another one by itself: it knows neither the rules by which the packet was
    /// routed nor its ports.
    pub is_needed: bool,
}

/// The translated tuple of the packet and its next hop.
#[repr(C)]
pub struct Hop<F: Family> {
    pub to: Tuple<F>,
    pub next: Next,
}

/// What a rule has to serve: `port` of `host`, and the container `target`, unset = any. Aligned, so that programs compare
/// words.
#[repr(C, align(4))]
pub struct Wanted<F: Family> {
    pub host: Addr,
    pub target: F::Addr,
    pub port: u16,
    pub proto: u8,
}

impl<F: Family> Wanted<F> {
    /// Field by field, without a copy on the stack.
    #[inline(always)]
    pub fn set(&mut self, host: Addr, target: &F::Addr, port: u16, proto: u8) {
        self.host = host;
        self.target = *target;
        self.port = port;
        self.proto = proto;
    }
}

/// A flow that is about to be written.
#[repr(C)]
pub struct PendingFlow<F: Family> {
    pub plan: NewFlow<F>,
    /// Whether ports of the host's sockets are avoided.
    pub spare_sockets: bool,
    /// Of [`crate::kernel_lookup::socket`], the least that keeps the flow from the sender's own port.
    pub spared_for_own: u32,
    /// Whether the port of a closed or orphaned flow may be reused.
    pub may_evict: bool,
    /// Number of tries for a source port, and the seed of the search.
    pub tries: u32,
    pub random: u32,
    pub now: u32,
    pub key: F::Key,
    pub flow: F::Flow,
    pub reverse_key: F::Key,
    pub reverse: F::Flow,
}

/// The scratch of one BPF function. It is lent to code inlined into that function and, as a whole, to the global
/// functions that it calls (`subprog.rs`): these take a `ScratchMut` of their own, while the borrow checker ensures
/// that the caller holds no reference into its own.
pub struct ScratchMut<F: HasScratch>(*mut Scratch<F>);

impl<F: HasScratch> ScratchMut<F> {
    /// # Safety
    /// At most once per BPF function; its callers hold no reference into the scratch.
    #[inline(always)]
    pub unsafe fn take() -> Option<Self> {
        F::scratch().get_ptr_mut(0).map(Self)
    }
}

impl<F: HasScratch> Deref for ScratchMut<F> {
    type Target = Scratch<F>;

    #[inline(always)]
    fn deref(&self) -> &Scratch<F> {
        // SAFETY: a map value, zeroed by the kernel, which is a value of each field; no other reference to it is in use
        // (`take`).
        unsafe { &*self.0 }
    }
}

impl<F: HasScratch> DerefMut for ScratchMut<F> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Scratch<F> {
        // SAFETY: a map value, zeroed by the kernel, which is a value of each field; `self` is borrowed for as long, and is the one owner (`take`).
        unsafe { &mut *self.0 }
    }
}
