//! IPv4 and IPv6 behind one trait, so that every decision is written once.

use crate::addr::{Addr, Be16, V4, V6};
use crate::checksum;
use crate::layout::{Flow4, Flow6, FlowKey4, FlowKey6, Network, Next, PROTO_ICMP, PROTO_ICMPV6, Plain, Rule, Uplink};
use zerocopy::{FromBytes, Immutable, KnownLayout, transmute_ref};

/// Class of an address, as far as translation is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Unicast,
    /// 127.0.0.0/8, ::1: never on a wire (RFC 1122 §3.2.1.3, RFC 4291 §2.5.3).
    Loopback,
    /// Unspecified, multicast, broadcast, IPv6 link-local: not masqueraded; published on only if link-local.
    Local,
}

pub trait Family: Copy + Default + PartialEq + core::fmt::Debug + 'static {
    type Addr: Plain + Default + PartialEq + core::fmt::Debug;
    type Key: Plain + Default;
    type Flow: Plain;

    const IS_V4: bool;
    /// The protocol number of echo, and its two types.
    const ICMP: u8;
    const ECHO_REQUEST: u8;
    const ECHO_REPLY: u8;

    fn mapped(a: Self::Addr) -> Addr;
    /// 0 if both are the same. Word by word: `==` on byte arrays calls `memcmp` in programs.
    fn difference(a: &Self::Addr, b: &Self::Addr) -> u32;
    #[inline(always)]
    fn same(a: &Self::Addr, b: &Self::Addr) -> bool {
        Self::difference(a, b) == 0
    }
    fn is_unset(a: &Self::Addr) -> bool;
    fn kind(a: &Self::Addr) -> Kind;
    /// fe80::/10, which routers do not forward (RFC 4291 §2.5.6). 169.254.0.0/16 counts as an ordinary network.
    fn is_link_local(a: &Self::Addr) -> bool;
    /// The sum of the address's 16-bit words, for [`checksum`].
    fn sum(a: &Self::Addr) -> u64;
    /// The sum of the same words inverted.
    fn sum_inverted(a: &Self::Addr) -> u64;

    fn key(t: &Tuple<Self>, proto: u8, side: u8) -> Self::Key;
    fn flow(t: &Tuple<Self>, next: Next) -> Self::Flow;
    fn translated(flow: &Self::Flow) -> Tuple<Self>;
    fn protocol_of(key: &Self::Key) -> u8;
    fn side_of(key: &Self::Key) -> u8;
    /// The tuple in a key.
    fn tuple(key: &Self::Key) -> &Tuple<Self>;
    /// The tuple in a flow: [`Self::translated`] without a copy.
    fn target_of(flow: &Self::Flow) -> &Tuple<Self>;
    /// Sets every field of a key except the addresses.
    fn complete(key: &mut Self::Key, sport: Be16, dport: Be16, proto: u8, side: u8);
    fn next(flow: &Self::Flow) -> &Next;
    fn next_mut(flow: &mut Self::Flow) -> &mut Next;

    /// The container's address, unset where the rule does not serve this family.
    fn target(rule: &Rule) -> Self::Addr;
    fn gateway(net: &Network) -> Self::Addr;
    fn outbound(net: &Network) -> Self::Addr;
    fn source(uplink: &Uplink) -> Self::Addr;
}

/// One direction of a connection as seen in packets. ICMP echo has its identifier in both ports. Aligned, so that
/// programs copy it by words.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Debug, Default, FromBytes, Immutable, KnownLayout)]
pub struct Tuple<F: Family> {
    pub src: F::Addr,
    pub dst: F::Addr,
    pub sport: Be16,
    pub dport: Be16,
}

/// A key, and a flow, as a tuple and the rest. They are separate structs because the zerocopy derives cannot prove
/// the absence of padding for generic types.
#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout)]
struct KeyParts<F: Family> {
    tuple: Tuple<F>,
    rest: [u8; 4],
}

#[repr(C)]
#[derive(FromBytes, Immutable, KnownLayout)]
struct FlowParts<F: Family> {
    to: Tuple<F>,
    next: Next,
}

impl<F: Family> Tuple<F> {
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }

    /// The same tuple with another source port, or another echo identifier.
    #[inline(always)]
    pub fn from_port(&self, proto: u8, port: Be16) -> Self {
        let dport = if proto == F::ICMP { port } else { self.dport };
        Self { sport: port, dport, ..*self }
    }

    #[inline(always)]
    pub fn same(&self, other: &Self) -> bool {
        F::same(&self.src, &other.src) && F::same(&self.dst, &other.dst) && self.ports() == other.ports()
    }

    /// Both ports in packet order.
    #[inline(always)]
    pub fn ports(&self) -> u32 {
        u32::from_ne_bytes([self.sport.0[0], self.sport.0[1], self.dport.0[0], self.dport.0[1]])
    }

    /// The sum of a pseudo-header (RFC 768, RFC 8200 §8.1) for `len` bytes behind the network header. The checksum
    /// field holds it in a packet whose checksum is completed by the device (CHECKSUM_PARTIAL).
    #[inline(always)]
    pub fn pseudo_sum(&self, proto: u8, len: Be16) -> [u8; 2] {
        let rest = u32::from(u16::from_ne_bytes([0, proto])) + u32::from(u16::from_ne_bytes(len.0));
        let sum = F::sum(&self.src) + F::sum(&self.dst) + u64::from(rest);
        checksum::fold16(checksum::fold32(sum)).to_ne_bytes()
    }

    /// The change of a checksum by the addresses when `self` becomes `new`: a folded 32-bit sum, as the kernel's
    /// helpers take it.
    #[inline(always)]
    pub fn address_difference(&self, new: &Self) -> u32 {
        checksum::fold32(F::sum_inverted(&self.src) + F::sum_inverted(&self.dst) + F::sum(&new.src) + F::sum(&new.dst))
    }
}

#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Ipv4;
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub struct Ipv6;

#[inline(always)]
fn word(a: &[u8], i: usize) -> u32 {
    u32::from_ne_bytes([a[i], a[i + 1], a[i + 2], a[i + 3]])
}

impl Family for Ipv4 {
    type Addr = V4;
    type Key = FlowKey4;
    type Flow = Flow4;
    const IS_V4: bool = true;
    const ICMP: u8 = PROTO_ICMP;
    const ECHO_REQUEST: u8 = 8;
    const ECHO_REPLY: u8 = 0;

    #[inline(always)]
    fn mapped(a: V4) -> Addr {
        Addr::v4(a)
    }

    #[inline(always)]
    fn difference(a: &V4, b: &V4) -> u32 {
        word(a, 0) ^ word(b, 0)
    }

    #[inline(always)]
    fn is_unset(a: &V4) -> bool {
        word(a, 0) == 0
    }

    #[inline(always)]
    fn kind(a: &V4) -> Kind {
        match a[0] {
            127 => Kind::Loopback,
            0 | 224.. => Kind::Local,
            _ => Kind::Unicast,
        }
    }

    #[inline(always)]
    fn is_link_local(_: &V4) -> bool {
        false
    }

    #[inline(always)]
    fn sum(a: &V4) -> u64 {
        u64::from(word(a, 0))
    }

    #[inline(always)]
    fn sum_inverted(a: &V4) -> u64 {
        u64::from(!word(a, 0))
    }

    #[inline(always)]
    fn key(t: &Tuple<Self>, proto: u8, side: u8) -> FlowKey4 {
        FlowKey4 { src: t.src, dst: t.dst, sport: t.sport, dport: t.dport, proto, side, pad: [0; 2] }
    }

    #[inline(always)]
    fn flow(t: &Tuple<Self>, next: Next) -> Flow4 {
        Flow4 { src: t.src, dst: t.dst, sport: t.sport, dport: t.dport, next }
    }

    #[inline(always)]
    fn translated(f: &Flow4) -> Tuple<Self> {
        Tuple { src: f.src, dst: f.dst, sport: f.sport, dport: f.dport }
    }

    #[inline(always)]
    fn protocol_of(k: &FlowKey4) -> u8 {
        k.proto
    }

    #[inline(always)]
    fn side_of(k: &FlowKey4) -> u8 {
        k.side
    }

    #[inline(always)]
    fn tuple(k: &FlowKey4) -> &Tuple<Self> {
        let parts: &KeyParts<Self> = transmute_ref!(k);
        &parts.tuple
    }

    #[inline(always)]
    fn target_of(f: &Flow4) -> &Tuple<Self> {
        let parts: &FlowParts<Self> = transmute_ref!(f);
        &parts.to
    }

    #[inline(always)]
    fn complete(k: &mut FlowKey4, sport: Be16, dport: Be16, proto: u8, side: u8) {
        (k.sport, k.dport, k.proto, k.side) = (sport, dport, proto, side);
    }

    #[inline(always)]
    fn next(f: &Flow4) -> &Next {
        &f.next
    }

    #[inline(always)]
    fn next_mut(f: &mut Flow4) -> &mut Next {
        &mut f.next
    }

    #[inline(always)]
    fn target(rule: &Rule) -> V4 {
        rule.to4
    }

    #[inline(always)]
    fn gateway(net: &Network) -> V4 {
        net.gateway4
    }

    #[inline(always)]
    fn outbound(net: &Network) -> V4 {
        net.outbound4
    }

    #[inline(always)]
    fn source(uplink: &Uplink) -> V4 {
        uplink.source4
    }
}

impl Family for Ipv6 {
    type Addr = V6;
    type Key = FlowKey6;
    type Flow = Flow6;
    const IS_V4: bool = false;
    const ICMP: u8 = PROTO_ICMPV6;
    const ECHO_REQUEST: u8 = 128;
    const ECHO_REPLY: u8 = 129;

    #[inline(always)]
    fn mapped(a: V6) -> Addr {
        Addr::v6(a)
    }

    #[inline(always)]
    fn difference(a: &V6, b: &V6) -> u32 {
        (word(a, 0) ^ word(b, 0)) | (word(a, 4) ^ word(b, 4)) | (word(a, 8) ^ word(b, 8)) | (word(a, 12) ^ word(b, 12))
    }

    #[inline(always)]
    fn is_unset(a: &V6) -> bool {
        word(a, 0) | word(a, 4) | word(a, 8) | word(a, 12) == 0
    }

    #[inline(always)]
    fn kind(a: &V6) -> Kind {
        if word(a, 0) | word(a, 4) | word(a, 8) == 0 {
            match u32::from_be(word(a, 12)) {
                1 => return Kind::Loopback,
                0 => return Kind::Local,
                _ => {}
            }
        }
        if a[0] == 0xff || Self::is_link_local(a) { Kind::Local } else { Kind::Unicast }
    }

    #[inline(always)]
    fn is_link_local(a: &V6) -> bool {
        a[0] == 0xfe && a[1] & 0xc0 == 0x80
    }

    #[inline(always)]
    fn sum(a: &V6) -> u64 {
        u64::from(word(a, 0)) + u64::from(word(a, 4)) + u64::from(word(a, 8)) + u64::from(word(a, 12))
    }

    #[inline(always)]
    fn sum_inverted(a: &V6) -> u64 {
        u64::from(!word(a, 0)) + u64::from(!word(a, 4)) + u64::from(!word(a, 8)) + u64::from(!word(a, 12))
    }

    #[inline(always)]
    fn key(t: &Tuple<Self>, proto: u8, side: u8) -> FlowKey6 {
        FlowKey6 { src: t.src, dst: t.dst, sport: t.sport, dport: t.dport, proto, side, pad: [0; 2] }
    }

    #[inline(always)]
    fn flow(t: &Tuple<Self>, next: Next) -> Flow6 {
        Flow6 { src: t.src, dst: t.dst, sport: t.sport, dport: t.dport, next }
    }

    #[inline(always)]
    fn translated(f: &Flow6) -> Tuple<Self> {
        Tuple { src: f.src, dst: f.dst, sport: f.sport, dport: f.dport }
    }

    #[inline(always)]
    fn protocol_of(k: &FlowKey6) -> u8 {
        k.proto
    }

    #[inline(always)]
    fn side_of(k: &FlowKey6) -> u8 {
        k.side
    }

    #[inline(always)]
    fn tuple(k: &FlowKey6) -> &Tuple<Self> {
        let parts: &KeyParts<Self> = transmute_ref!(k);
        &parts.tuple
    }

    #[inline(always)]
    fn target_of(f: &Flow6) -> &Tuple<Self> {
        let parts: &FlowParts<Self> = transmute_ref!(f);
        &parts.to
    }

    #[inline(always)]
    fn complete(k: &mut FlowKey6, sport: Be16, dport: Be16, proto: u8, side: u8) {
        (k.sport, k.dport, k.proto, k.side) = (sport, dport, proto, side);
    }

    #[inline(always)]
    fn next(f: &Flow6) -> &Next {
        &f.next
    }

    #[inline(always)]
    fn next_mut(f: &mut Flow6) -> &mut Next {
        &mut f.next
    }

    #[inline(always)]
    fn target(rule: &Rule) -> V6 {
        rule.to6
    }

    #[inline(always)]
    fn gateway(net: &Network) -> V6 {
        net.gateway6
    }

    #[inline(always)]
    fn outbound(net: &Network) -> V6 {
        net.outbound6
    }

    #[inline(always)]
    fn source(uplink: &Uplink) -> V6 {
        uplink.source6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(text: &str) -> V6 {
        text.parse::<std::net::Ipv6Addr>().expect("an address").octets()
    }

    #[test]
    fn addresses_that_are_never_translated_are_recognised() {
        for (a, kind) in [
            ([127, 0, 0, 1], Kind::Loopback),
            ([127, 255, 1, 1], Kind::Loopback),
            ([0, 0, 0, 0], Kind::Local),
            ([224, 0, 0, 251], Kind::Local),
            ([255, 255, 255, 255], Kind::Local),
            ([169, 254, 169, 254], Kind::Unicast),
            ([192, 0, 2, 1], Kind::Unicast),
            ([223, 255, 255, 255], Kind::Unicast),
        ] {
            assert_eq!(kind, Ipv4::kind(&a), "{a:?}");
        }
        for (a, kind) in [
            ("::1", Kind::Loopback),
            ("::", Kind::Local),
            ("fe80::1", Kind::Local),
            ("febf::1", Kind::Local),
            ("ff02::1", Kind::Local),
            ("fec0::1", Kind::Unicast),
            ("2001:db8::1", Kind::Unicast),
            ("::2", Kind::Unicast),
        ] {
            assert_eq!(kind, Ipv6::kind(&v6(a)), "{a}");
            assert_eq!(a.starts_with("fe8") || a.starts_with("feb"), Ipv6::is_link_local(&v6(a)), "{a}");
        }
    }

    #[test]
    fn keys_and_flows_begin_with_a_tuple() {
        fn check<F: Family>(src: F::Addr, dst: F::Addr) {
            let t: Tuple<F> = Tuple { src, dst, sport: Be16::new(258), dport: Be16::new(772) };
            assert_eq!(t, *F::tuple(&F::key(&t, 6, 1)));
            assert_eq!(t, *F::target_of(&F::flow(&t, Next::default())));
        }
        check::<Ipv4>([1, 2, 3, 4], [5, 6, 7, 8]);
        check::<Ipv6>(v6("2001:db8::1:2:3:4"), v6("fd00::5:6:7:8"));
    }

    #[test]
    fn an_echo_tuple_keeps_one_identifier_in_both_ports() {
        let t: Tuple<Ipv4> = Tuple { sport: Be16::new(7), dport: Be16::new(7), ..Tuple::default() };
        assert_eq!(Be16::new(9), t.from_port(PROTO_ICMP, Be16::new(9)).dport);
        assert_eq!(Be16::new(7), t.from_port(crate::layout::PROTO_UDP, Be16::new(9)).dport);
    }

    #[test]
    fn addresses_that_differ_in_one_bit_are_not_the_same() {
        let a = v6("2001:db8::1:2:3:4");
        for bit in 0..128 {
            let mut b = a;
            b[bit / 8] ^= 1 << (bit % 8);
            assert!(!Ipv6::same(&a, &b), "bit {bit}");
        }
        assert!(Ipv6::same(&a, &a));
    }
}
