//! The programs that carry netpath's packets.
#![no_std]
#![no_main]

mod maps;

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::macros::{cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SockAddrContext, TcContext};

macro_rules! tc { ($($n:ident)*) => {$(
    #[classifier]
    pub fn $n(ctx: TcContext) -> i32 { let _ = ctx; touch(); TC_ACT_UNSPEC }
)*} }
tc!(np_uplink_in np_uplink_in_l3 np_uplink_out np_bridge_in np_lo_in);

#[inline(always)]
fn touch() {
    let _ = maps::CONFIG.get(0);
}

macro_rules! sock { ($($n:ident $at:ident)*) => {$(
    #[cgroup_sock_addr($at)]
    pub fn $n(ctx: SockAddrContext) -> i32 { let _ = ctx; 1 }
)*} }
sock!(np_connect4 connect4 np_connect6 connect6 np_sendmsg4 sendmsg4 np_sendmsg6 sendmsg6 np_recvmsg4 recvmsg4 np_recvmsg6 recvmsg6 np_getpeername4 getpeername4 np_getpeername6 getpeername6);

#[unsafe(no_mangle)]
pub static NP_FIB_SRC: u8 = 0;

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
