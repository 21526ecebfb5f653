//! Queries to the DNS server of a network reach the sockets of the agent, whatever their port is.
//!
//! The kernel prefers them to every socket that is not connected to the client: port 53 stays free for the host's own server
//! and for an engine that listens on a published one. An object of its own, which loads in a millisecond. Needs Linux 5.9.
#![no_std]
#![no_main]
#![allow(unused_crate_dependencies, reason = "the other program of the package uses them")]

mod sk_lookup;

use aya_ebpf::macros::{map, sk_lookup};
use aya_ebpf::maps::SockHash;
use aya_ebpf::programs::SkLookupContext;
use netpath_common::layout::{DNS_PORT, DNS_SOCKETS, DnsKey};

#[map(name = "np_dns")]
static DNS: SockHash<DnsKey> = SockHash::with_max_entries(DNS_SOCKETS, 0);

/// Returns SK_PASS; without such a socket the look-up goes on.
#[sk_lookup]
pub fn np_dns_query(ctx: SkLookupContext) -> u32 {
    let asked = sk_lookup::Asked::of(&ctx);
    if asked.port == DNS_PORT {
        let _ = DNS.redirect_sk_lookup(&ctx, DnsKey { server: asked.address(), proto: asked.proto }, 0);
    }
    1
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Unreachable: the verifier would reject the loop.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
