//! Connects sockets of the host directly to the container behind a published port, so that no packet is translated.
//!
//! Only sockets in the namespace that the maps serve, and only those without a bound source address. A socket bound to a
//! loopback address could not reach a container; `loopback.rs` serves it.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_ANY, bpf_sock_addr};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::SockAddrContext;
use netpath_common::addr::{Addr, Be16, V4};
use netpath_common::family::{Family, Ipv4, Ipv6, Kind};
use netpath_common::layout::{PROTO_TCP, PROTO_UDP, RULE_V4_ONLY, SockKey, SockOrigin};
use netpath_common::reason::Reason;
use netpath_common::rule::container_port;

use crate::entry::is_v4_only;
use crate::{maps, port_lookup};

/// The address in the context, read and written in words as the verifier requires.
pub trait Family4Or6 {
    fn read(sa: *const bpf_sock_addr) -> Addr;
    fn write(sa: *mut bpf_sock_addr, to: Addr);
    /// Whether the socket has bound a source address.
    fn is_bound(sa: *const bpf_sock_addr) -> bool;
}

pub struct Sock4;
pub struct Sock6;

impl Family4Or6 for Sock4 {
    #[inline(always)]
    fn read(sa: *const bpf_sock_addr) -> Addr {
        // SAFETY: a context field.
        Addr::v4(unsafe { (*sa).user_ip4 }.to_ne_bytes())
    }

    #[inline(always)]
    fn write(sa: *mut bpf_sock_addr, to: Addr) {
        // SAFETY: a context field that this program type may write.
        unsafe { (*sa).user_ip4 = u32::from_ne_bytes(tail(&to)) }
    }

    #[inline(always)]
    fn is_bound(sa: *const bpf_sock_addr) -> bool {
        // SAFETY: the context's socket, never null in these hooks.
        unsafe {
            let sk = (*sa).__bindgen_anon_1.sk;
            !sk.is_null() && (*sk).src_ip4 != 0
        }
    }
}

impl Family4Or6 for Sock6 {
    #[inline(always)]
    fn read(sa: *const bpf_sock_addr) -> Addr {
        // SAFETY: context fields, a word at a time.
        unsafe {
            let at = (&raw const (*sa).user_ip6).cast::<u32>();
            join([at.read_volatile(), at.add(1).read_volatile(), at.add(2).read_volatile(), at.add(3).read_volatile()])
        }
    }

    #[inline(always)]
    fn write(sa: *mut bpf_sock_addr, to: Addr) {
        let w = split(&to);
        // SAFETY: context fields that this program type may write, a word at a time.
        unsafe {
            let at = (&raw mut (*sa).user_ip6).cast::<u32>();
            at.write_volatile(w[0]);
            at.add(1).write_volatile(w[1]);
            at.add(2).write_volatile(w[2]);
            at.add(3).write_volatile(w[3]);
        }
    }

    #[inline(always)]
    fn is_bound(sa: *const bpf_sock_addr) -> bool {
        // SAFETY: the context's socket, never null in these hooks; a word at a time.
        unsafe {
            let sk = (*sa).__bindgen_anon_1.sk;
            if sk.is_null() {
                return false;
            }
            let at = (&raw const (*sk).src_ip6).cast::<u32>();
            at.read_volatile() | at.add(1).read_volatile() | at.add(2).read_volatile() | at.add(3).read_volatile() != 0
        }
    }
}

#[inline(always)]
fn join(w: [u32; 4]) -> Addr {
    zerocopy::transmute!(w)
}

#[inline(always)]
fn split(a: &Addr) -> [u32; 4] {
    zerocopy::transmute!(*a)
}

#[inline(always)]
fn tail(a: &Addr) -> V4 {
    split(a)[3].to_ne_bytes()
}

#[inline(always)]
fn port(sa: *const bpf_sock_addr) -> Be16 {
    // SAFETY: a context field; the port is in its first two bytes.
    let b = unsafe { (*sa).user_port }.to_ne_bytes();
    Be16([b[0], b[1]])
}

#[inline(always)]
fn set_port(sa: *mut bpf_sock_addr, port: Be16) {
    // SAFETY: a context field that these program types may write.
    unsafe { (*sa).user_port = u32::from_ne_bytes([port.0[0], port.0[1], 0, 0]) }
}

/// connect(2): TCP, and UDP with a fixed peer.
#[inline(always)]
pub fn connect<S: Family4Or6>(ctx: &SockAddrContext) {
    let _ = dial::<S>(ctx, true);
}

/// sendmsg(2) and sendto(2) with an address.
#[inline(always)]
pub fn sendmsg<S: Family4Or6>(ctx: &SockAddrContext) {
    let _ = dial::<S>(ctx, false);
}

#[inline(always)]
fn dial<S: Family4Or6>(ctx: &SockAddrContext, may_change_family: bool) -> Option<()> {
    let sa = ctx.sock_addr;
    // SAFETY: a context field.
    let proto = match unsafe { (*sa).protocol } {
        6 => PROTO_TCP,
        17 => PROTO_UDP,
        _ => return None,
    };
    let dialled_port = port(sa);
    let slot = port_lookup::slot(proto, dialled_port.value());
    if slot == 0 {
        return None;
    }
    let config = maps::CONFIG.get(0)?;
    // SAFETY: the helper takes the context.
    if unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } != config.netns_cookie || S::is_bound(sa) {
        return None;
    }
    let dialled = S::read(sa);
    let number = dialled_port.value();
    let to = if dialled.is_v4() {
        let host = tail(&dialled);
        let rule = port_lookup::find(slot, &dialled, number, proto, |r| !Ipv4::is_unset(&r.to4))?;
        if !is_own(&dialled, Ipv4::kind(&host), Ipv4::is_unset(&host)) {
            return None;
        }
        (Addr::v4(rule.to4), container_port(rule, number))
    } else {
        // A rule without IPv6 serves "localhost" in both families by the container's v4-mapped address, unless it is
        // published on 0.0.0.0. Not for sendmsg: there the kernel rejects a change of family (net/ipv6/udp.c,
        // udpv6_sendmsg()).
        let kind = Ipv6::kind(&dialled.0);
        let unset = Ipv6::is_unset(&dialled.0);
        let mappable = may_change_family && (kind == Kind::Loopback || unset);
        if is_v4_only() && !may_change_family {
            return None;
        }
        // Numbers instead of conditions: the verifier walks the rest of the chain once per branch.
        let mapped = if mappable { u32::MAX } else { 0 };
        let rule = port_lookup::find(slot, &dialled, number, proto, |r| {
            let by_v6 = if is_v4_only() { 0 } else { Ipv6::difference(&r.to6, &[0; 16]) };
            let is_open = u32::from(r.flags & RULE_V4_ONLY).wrapping_sub(u32::from(RULE_V4_ONLY)) & mapped;
            by_v6 | (u32::from_ne_bytes(r.to4) & is_open) != 0
        })?;
        if !is_own(&dialled, kind, unset) {
            return None;
        }
        let to = if is_v4_only() || Ipv6::is_unset(&rule.to6) { Addr::v4(rule.to4) } else { Addr::v6(rule.to6) };
        (to, container_port(rule, number))
    };
    let to_port = Be16::new(to.1);
    store_origin(ctx, to.0, to_port, SockOrigin { dialled, port: dialled_port, pad: [0; 6] });
    S::write(sa, to.0);
    set_port(sa, to_port);
    count_connected();
    Some(())
}

/// Whether `a` is the host itself. Connecting to the unspecified address means loopback (`net/ipv4/route.c,
/// ip_route_output_key_hash_rcu()`).
#[inline(always)]
fn is_own(a: &Addr, kind: Kind, unset: bool) -> bool {
    kind == Kind::Loopback || unset || maps::find(&maps::LOCAL, a).is_some()
}

/// recvmsg(2) and getpeername(2) return the dialled address, since clients compare it.
#[inline(always)]
pub fn return_dialled<S: Family4Or6>(ctx: &SockAddrContext) {
    let sa = ctx.sock_addr;
    let key = sock_key(ctx, S::read(sa), port(sa));
    // SAFETY: the reference is copied from at once.
    if let Some(origin) = unsafe { maps::SOCK.get(&key) }.copied() {
        S::write(sa, origin.dialled);
        set_port(sa, origin.port);
    }
}

#[inline(always)]
fn sock_key(ctx: &SockAddrContext, to: Addr, port: Be16) -> SockKey {
    // SAFETY: the helper takes the context.
    SockKey { cookie: unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }, to, port, pad: [0; 6] }
}

#[inline(always)]
fn store_origin(ctx: &SockAddrContext, to: Addr, port: Be16, origin: SockOrigin) {
    let key = sock_key(ctx, to, port);
    // SAFETY: the reference is not kept.
    if let Some(known) = unsafe { maps::SOCK.get(&key) }
        && known.port == origin.port
        && Ipv6::same(&known.dialled.0, &origin.dialled.0)
    {
        return;
    }
    let _ = maps::SOCK.insert(&key, &origin, u64::from(BPF_ANY));
}

#[inline(always)]
fn count_connected() {
    if let Some(slot) = maps::COUNT.get_ptr_mut(Reason::Connected as u32) {
        // SAFETY: this processor's own slot.
        unsafe { (*slot).packets += 1 }
    }
}
