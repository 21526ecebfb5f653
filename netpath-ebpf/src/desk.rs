//! What the functions of a program hand to each other. There are 512 bytes of stack, which does not hold a packet and a
//! flow in the making; so they lie in a per-processor map. Programs run with bottom halves off and do not nest, hence a
//! run has its processor's desk for itself.

use aya_ebpf::bindings::{bpf_fib_lookup, bpf_sock_tuple};
use netpath_common::family::Tuple;
use netpath_common::layout::Next;
use netpath_common::pair::Plan;

use crate::icmp::Quoted;
use crate::packet::Packet;
use crate::wire::Wire;

#[repr(C)]
pub struct Desk<F: Wire> {
    packet: Packet<F>,
    quoted: Quoted<F>,
    hop: Hop<F>,
    making: Making<F>,
    noted: F::Key,
    fib: bpf_fib_lookup,
    sock: bpf_sock_tuple,
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

macro_rules! part {
    ($($(#[$doc:meta])* $name:ident: $t:ty;)*) => { $(
        $(#[$doc])*
        #[inline(always)]
        pub fn $name<F: Wire>() -> Option<&'static mut $t> {
            // SAFETY: plain data, zeroed by the kernel and this run's alone. The parts do not overlap, and no function
            // holds one across the call of another that takes the same.
            F::desk().get_ptr_mut(0).map(|d| unsafe { &mut (*d).$name })
        }
    )* };
}

part! {
    /// The packet under way.
    packet: Packet<F>;
    /// What an ICMP error quotes.
    quoted: Quoted<F>;
    hop: Hop<F>;
    making: Making<F>;
    /// Argument of `flows::refresh`.
    noted: F::Key;
    /// Arguments of `bpf_fib_lookup`.
    fib: bpf_fib_lookup;
    /// Arguments of the socket look-ups.
    sock: bpf_sock_tuple;
}
