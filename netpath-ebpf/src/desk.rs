//! What the functions of a program hand to each other. There are 512 bytes of stack, which does not hold a packet and a
//! flow in the making; so they lie in a per-processor map. Programs run with bottom halves off and do not nest, hence a
//! run has its processor's desk for itself.

use core::ops::{Deref, DerefMut};

use aya_ebpf::bindings::{bpf_fib_lookup, bpf_sock_tuple};
use netpath_common::family::Tuple;
use netpath_common::layout::Next;
use netpath_common::pair::Plan;

use crate::icmp::Quoted;
use crate::packet::Packet;
use crate::wire::Wire;

#[repr(C)]
pub struct Desk<F: Wire> {
    /// The packet under way.
    pub packet: Packet<F>,
    /// What an ICMP error quotes.
    pub quoted: Quoted<F>,
    pub hop: Hop<F>,
    pub making: Making<F>,
    /// Argument of `flows::refresh`.
    pub noted: F::Key,
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
pub struct Making<F: Wire> {
    pub plan: Plan<F>,
    /// Whether ports of the host's sockets are spared.
    pub spare_sockets: bool,
    /// Whether a flow that is spent or adrift gives its port.
    pub harder: bool,
    /// How often a source port is looked for, and what is drawn from.
    pub tries: u32,
    pub random: u32,
    pub now: u32,
    pub key: F::Key,
    pub flow: F::Flow,
    pub twin_key: F::Key,
    pub twin: F::Flow,
}

/// The desk as one function of the machine has it. It is lent to what is compiled into that function and, as a whole, to the
/// global functions that it calls (`global.rs`): these have a `Mine` of their own, and the caller has no part borrowed
/// meanwhile, or it would not compile.
pub struct Mine<F: Wire>(*mut Desk<F>);

impl<F: Wire> Mine<F> {
    /// # Safety
    /// Once in a function of the machine, and its callers have no part of the desk borrowed.
    #[inline(always)]
    pub unsafe fn take() -> Option<Self> {
        F::desk().get_ptr_mut(0).map(Self)
    }
}

impl<F: Wire> Deref for Mine<F> {
    type Target = Desk<F>;

    #[inline(always)]
    fn deref(&self) -> &Desk<F> {
        // SAFETY: a map value, zeroed by the kernel, which is a value of each field; no other reference to it is in use
        // (`take`).
        unsafe { &*self.0 }
    }
}

impl<F: Wire> DerefMut for Mine<F> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Desk<F> {
        // SAFETY: as above.
        unsafe { &mut *self.0 }
    }
}
