//! The programs of netpath's eBPF datapath: published ports, masquerade, hairpin, isolation, and the host's own sockets.
//!
//! The walk of a packet is: parse, decide, rewrite, forward. Decisions are in `netpath-common`, where they are tested
//! without a kernel. A packet that is not ours passes unchanged to the next program and the stack. Needs Linux 5.15 for
//! its helpers; the packet walks are in docs/architecture.md.
#![no_std]
#![no_main]
// `asm!` for the BPF machine (rust-lang/rust#93335): barriers (`packet.rs`, `subprog.rs`) and an atomic exchange
// (`half.rs`).
#![feature(asm_experimental_arch)]

mod bridge;
mod carry;
mod conclude;
mod entry;
mod fast_path;
mod flows;
mod fragment;
mod half;
mod headers;
mod icmp;
mod kernel_lookup;
mod loopback;
mod maps;
mod masquerade;
mod new_uplink;
mod packet;
mod parse;
mod parsed;
mod port_lookup;
mod rewrite;
mod scratch;
mod sk_lookup;
mod socket;
mod subprog;
mod uplink_egress;
mod uplink_ingress;
mod verdict;
mod veth;
mod xdp;

use aya_ebpf::macros::{cgroup_sock_addr, classifier, sk_lookup, xdp};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, TcContext, XdpContext};
use netpath_common::reason::Reason;

use socket::{Sock4, Sock6};

/// The walk of packets that are addressed to this host.
#[inline(always)]
fn ours<W: entry::Walk>(ctx: &TcContext) -> i32 {
    verdict::count(ctx, if packet::is_for_us(ctx) { entry::walk::<W>(ctx) } else { verdict::NOT_OURS })
}

/// Ingress of an uplink: packets to published ports, replies to masqueraded flows.
#[classifier]
pub fn np_uplink_in(ctx: TcContext) -> i32 {
    ours::<uplink_ingress::Ingress>(&ctx)
}

/// The same for an uplink without Ethernet.
#[classifier]
pub fn np_uplink_in_l3(ctx: TcContext) -> i32 {
    ours::<uplink_ingress::IngressL3>(&ctx)
}

/// XDP of an uplink, ahead of its ingress: early drops, and datagrams of known flows.
#[xdp]
pub fn np_xdp_in(ctx: XdpContext) -> u32 {
    xdp::arrive(&ctx)
}

/// Egress of an uplink: translates packets that took the host's stack, and drops untranslated packets of masqueraded
/// networks.
#[classifier]
pub fn np_uplink_out(ctx: TcContext) -> i32 {
    departing::<uplink_egress::Egress>(&ctx)
}

/// The same for an uplink without Ethernet.
#[classifier]
pub fn np_uplink_out_l3(ctx: TcContext) -> i32 {
    departing::<uplink_egress::EgressL3>(&ctx)
}

/// Packets that pass were counted at their ingress, if they had one.
#[inline(always)]
fn departing<W: entry::Walk>(ctx: &TcContext) -> i32 {
    let verdict = entry::walk::<W>(ctx);
    if verdict.reason as u32 == Reason::NotOurs as u32 { verdict.action } else { verdict::count(ctx, verdict) }
}

/// Ingress of a container's veth: packets of known flows. Packets that pass are counted at the bridge.
#[classifier]
pub fn np_veth_in(ctx: TcContext) -> i32 {
    if packet::is_tagged(&ctx) {
        return verdict::NOT_OURS.action;
    }
    entry::walk_short::<veth::Ingress>(&ctx).map_or(verdict::NOT_OURS.action, |v| verdict::count(&ctx, v))
}

/// Ingress of a bridge: packets of containers.
#[classifier]
pub fn np_bridge_in(ctx: TcContext) -> i32 {
    ours::<bridge::Ingress>(&ctx)
}

/// Ingress of an uplink on a host whose netfilter translates: counts packets until flows are carried.
#[classifier]
pub fn np_count_in(ctx: TcContext) -> i32 {
    if packet::is_for_us(&ctx) { carry::count::<false>(&ctx) } else { verdict::NOT_OURS.action }
}

/// The same for the ingress of a container's veth.
#[classifier]
pub fn np_count_out(ctx: TcContext) -> i32 {
    carry::count::<true>(&ctx)
}

/// Behind np_count_in while flows are carried: packets of promoted flows.
#[classifier]
pub fn np_carry_in(ctx: TcContext) -> i32 {
    if packet::is_for_us(&ctx) { carry::into_container(&ctx) } else { verdict::NOT_OURS.action }
}

/// The same behind np_count_out.
#[classifier]
pub fn np_carry_out(ctx: TcContext) -> i32 {
    carry::out_of_container(&ctx)
}

/// Ingress of `lo`: clients of the host that the programs below ignore.
#[classifier]
pub fn np_lo_in(ctx: TcContext) -> i32 {
    verdict::count(&ctx, entry::walk::<loopback::Ingress>(&ctx))
}

/// Returns 1: the call proceeds, with the address replaced or unchanged.
macro_rules! sock_addr {
    ($($(#[$doc:meta])* $hook:ident $name:ident = $walk:expr;)*) => { $(
        $(#[$doc])*
        #[cgroup_sock_addr($hook)]
        pub fn $name(ctx: SockAddrContext) -> i32 {
            $walk(&ctx);
            1
        }
    )* };
}

sock_addr! {
    connect4 np_connect4 = socket::connect::<Sock4>;
    connect6 np_connect6 = socket::connect::<Sock6>;
    sendmsg4 np_sendmsg4 = socket::sendmsg::<Sock4>;
    sendmsg6 np_sendmsg6 = socket::sendmsg::<Sock6>;
    recvmsg4 np_recvmsg4 = socket::return_dialled::<Sock4>;
    recvmsg6 np_recvmsg6 = socket::return_dialled::<Sock6>;
    getpeername4 np_getpeername4 = socket::return_dialled::<Sock4>;
    getpeername6 np_getpeername6 = socket::return_dialled::<Sock6>;
}

/// Sockets of the host that listen on published ports, as seen by clients on a new interface. Returns SK_PASS.
#[sk_lookup]
pub fn np_new_uplink(ctx: SkLookupContext) -> u32 {
    new_uplink::arrive(&ctx);
    1
}

/// `bpf_fib_lookup` and others are available to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Unreachable: the verifier would reject the loop.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
