//! What the functions of a program hand to each other. There are 512 bytes of stack, which does not hold a packet and a
//! flow in the making; so they lie in a per-processor map. Programs run with bottom halves off and do not nest, hence a
//! run has its processor's scratch for itself.

use core::ops::{Deref, DerefMut};

use aya_ebpf::bindings::{bpf_fib_lookup, bpf_sock_tuple};
use netpath_common::family::Tuple;
use netpath_common::layout::Next;
use netpath_common::nat_plan::NewFlow;

use crate::headers::Wire;
use crate::icmp::Quoted;
use crate::packet::Packet;

#[repr(C)]
pub struct Scratch<F: Wire> {
    /// The packet under way.
    pub packet: Packet<F>,
    /// What an ICMP error quotes.
    pub quoted: Quoted<F>,
    pub hop: Hop<F>,
    pub pending: PendingFlow<F>,
    /// Argument of `flows::refresh`.
    pub refresh_key: F::Key,
    /// Arguments of `bpf_fib_lookup`.
    pub fib: bpf_fib_lookup,
    /// Arguments of the socket look-ups.
    pub sock: bpf_sock_tuple,
}

/// Where the packet goes.
#[repr(C)]
pub struct Hop<F: Wire> {
    pub to: Tuple<F>,
    pub next: Next,
}

/// A flow in the making.
#[repr(C)]
pub struct PendingFlow<F: Wire> {
    pub plan: NewFlow<F>,
    /// Whether ports of the host's sockets are spared.
    pub spare_sockets: bool,
    /// Whether a flow that is spent or adrift gives its port.
    pub may_evict: bool,
    /// How often a source port is looked for, and what is drawn from.
    pub tries: u32,
    pub random: u32,
    pub now: u32,
    pub key: F::Key,
    pub flow: F::Flow,
    pub reverse_key: F::Key,
    pub reverse: F::Flow,
}

/// The scratch as one function of the machine has it. It is lent to what is compiled into that function and, as a whole, to the
/// global functions that it calls (`subprog.rs`): these have a `ScratchMut` of their own, and the caller has no part borrowed
/// meanwhile, or it would not compile.
pub struct ScratchMut<F: Wire>(*mut Scratch<F>);

impl<F: Wire> ScratchMut<F> {
    /// # Safety
    /// Once in a function of the machine, and its callers have no part of the scratch borrowed.
    #[inline(always)]
    pub unsafe fn take() -> Option<Self> {
        F::scratch().get_ptr_mut(0).map(Self)
    }
}

impl<F: Wire> Deref for ScratchMut<F> {
    type Target = Scratch<F>;

    #[inline(always)]
    fn deref(&self) -> &Scratch<F> {
        // SAFETY: a map value, zeroed by the kernel, which is a value of each field; no other reference to it is in use
        // (`take`).
        unsafe { &*self.0 }
    }
}

impl<F: Wire> DerefMut for ScratchMut<F> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Scratch<F> {
        // SAFETY: as above.
        unsafe { &mut *self.0 }
    }
}
