//! The maps: names, sizes, keys and values. A change here is a change of [`LAYOUT_VERSION`], which is part of the pin
//! path, so that programs of one version never meet maps of another.
//!
//! Control maps are written by the control plane and only read by programs; state maps are written by programs.
//! Every struct is `repr(C)` with its padding named and zeroed: a map key is hashed as bytes; `IntoBytes` does not compile
//! otherwise. The flow structs are aligned
//! to 8, so that programs copy words and not bytes (the BPF machine has no unaligned loads).

use crate::addr::{Addr, Be16, Mac, V4, V6, difference};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a map can hold: any bytes are a value, and every byte of a value is part of a field.
pub trait Plain: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + 'static {}
impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + 'static> Plain for T {}

/// Moves with every change of a map's name, type, size, key or value.
pub const LAYOUT_VERSION: u32 = 5;

/// Rules: each is one publish on one endpoint for one range of ports; index 0 is never used and means "none".
pub const RULES: u32 = 65_536;
/// Rules looked at for one packet: the longest chain of overlapping publishes on one port.
pub const RULE_CHAIN: u32 = 16;
pub const ENDPOINTS: u32 = 8_192;
pub const NETWORKS: u32 = 1_024;
pub const SUBNETS: u32 = 2_048;
pub const UPLINKS: u32 = 256;
pub const LOCALS: u32 = 4_096;
pub const FLOWS4: u32 = 65_536;
pub const FLOWS6: u32 = 32_768;
pub const SOCKS: u32 = 16_384;
pub const ALLOWS: u32 = 65_536;
pub const FRAGMENTS: u32 = 8_192;
/// Traffic counters that can be handed out; 0 is nobody's.
pub const TRAFFICS: u32 = 16_384;

/// `np_cfg`, ARRAY of one.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Config {
    /// SO_NETNS_COOKIE of the namespace that this set of maps serves; sock_addr programs leave all others alone.
    pub netns_cookie: u64,
    /// First and last source port, host byte order, drawn from when a flow cannot keep its own.
    pub port_min: u16,
    pub port_max: u16,
    pub lo_ifindex: u32,
}

/// `np_port_tcp`, `np_port_udp`: ARRAY of 65,536 by host port in host byte order → first [`Rule`] of the chain, 0 = none.
pub type PortSlot = u32;

/// `np_port_sctp`: the same for SCTP, whose port cannot be changed (the checksum is a CRC-32c over all of the packet,
/// RFC 9260 §6.8): its rules lead to the port they are published on.
pub type PortSlotSctp = PortSlot;

/// `np_nat_port`, ARRAY of 65,536 by port (or echo identifier) in host byte order: the ports that masquerade has used,
/// so that an uplink can tell "no reply of ours" without asking the flow table. Set by programs, a byte per protocol because
/// bytes need no atomics; cleared by the control plane when no flow has the port. A stale mark costs one look-up.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct NatPort {
    pub tcp: u8,
    pub udp: u8,
    pub icmp: u8,
    pub icmp6: u8,
}

pub const PROTO_TCP: u8 = 6;
pub const PROTO_UDP: u8 = 17;
pub const PROTO_ICMP: u8 = 1;
pub const PROTO_ICMPV6: u8 = 58;
pub const PROTO_SCTP: u8 = 132;

/// [`Rule::flags`]: published on `0.0.0.0`; an IPv6 client of the host is not led to the IPv4 address in its stead.
pub const RULE_V4_ONLY: u8 = 1;

/// `np_rule`, ARRAY of [`RULES`].
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Rule {
    /// The host address published on, v4-mapped; [`Addr::ANY`] = every address of the host.
    pub host: Addr,
    /// The container's IPv6 address, zero = the rule does not serve IPv6.
    pub to6: V6,
    /// The container's IPv4 address, zero = the rule does not serve IPv4.
    pub to4: V4,
    /// First host port and first container port, host byte order; `count` of them.
    pub host_port: u16,
    pub container_port: u16,
    /// 1..=65,535 ports.
    pub count: u16,
    pub proto: u8,
    /// [`RULE_V4_ONLY`].
    pub flags: u8,
    /// The next rule of this port, less specific or younger; 0 ends the chain.
    pub next: u32,
    /// ifindex of the endpoint's bridge.
    pub bridge: u32,
    /// The list in `np_allow` that clients have to be in; 0 = everybody is welcome.
    pub allow: u32,
    /// Index into `np_traffic`; 0 = not counted apart.
    pub traffic: u32,
    pub pad: [u8; 4],
}

/// Key of `np_allow`, LPM_TRIE of [`ALLOWS`] → 1: 32 bits of list and then the client's prefix, so that an IPv4 /24 has
/// 32 + 120 bits. As aya's `lpm_trie::Key<AllowKey>`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AllowKey {
    /// [`Rule::allow`], big-endian: a trie compares from the first bit on.
    pub list: [u8; 4],
    /// v4-mapped.
    pub client: Addr,
}

/// [`Endpoint::flags`]: its network asks for XDP, and the container's end of the veth takes what XDP redirects to it: it
/// has NAPI, which GRO switches on (5.13).
pub const ENDPOINT_XDP: u16 = 1;
/// [`Endpoint::flags`]: it publishes SCTP on another port than its own, which netfilter translates: what it sends of that
/// protocol and is in no flow takes the stack.
pub const ENDPOINT_MOVED_SCTP: u16 = 2;

/// `np_ep`, HASH by container [`Addr`].
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Endpoint {
    /// Host side of the veth, and the bridge it is a port of.
    pub veth: u32,
    pub bridge: u32,
    pub mac: Mac,
    /// The bridge's own address: the source of frames that are redirected into the container.
    pub bridge_mac: Mac,
    /// Of the container's interface, bytes.
    pub mtu: u16,
    /// [`ENDPOINT_XDP`], [`ENDPOINT_MOVED_SCTP`].
    pub flags: u16,
    /// Index into `np_traffic`; 0 = not counted apart.
    pub traffic: u32,
}

/// [`Network::flags`]: traffic to the outside gets the address of the way out.
pub const NET_MASQUERADE: u32 = 1;
/// No way out, no way in; only its own subnets and gateways.
pub const NET_INTERNAL: u32 = 2;
/// Not to and from networks that are isolated too (Netavark's `isolate=true`).
pub const NET_ISOLATED: u32 = 4;
/// Not to and from any other network (`isolate=strict`).
pub const NET_STRICT: u32 = 8;
/// Containers are reached from uplinks by their own addresses, and may send from any (`netpath.direct=true`).
pub const NET_DIRECT: u32 = 16;
/// Packets take the host's stack once they are translated, past its forward filter (`netpath.path=edge`).
pub const NET_EDGE: u32 = 32;

/// `np_net`, HASH by ifindex of the bridge.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Network {
    pub flags: u32,
    pub mtu: u32,
    /// The bridge's own addresses, the source of hairpin flows; zero = none of that family.
    pub gateway4: V4,
    pub gateway6: V6,
    /// `outbound_addr4/6`: masquerade with these instead of the way out's address; zero = not set.
    pub outbound4: V4,
    pub outbound6: V6,
}

/// `np_subnet`, LPM_TRIE: key is aya's `lpm_trie::Key<[u8; 16]>` over a v4-mapped address (an IPv4 /24 is a /120).
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Subnet {
    /// The bridge, and its network's flags again, so that policy costs no second look-up.
    pub bridge: u32,
    pub flags: u32,
}

/// [`Uplink::ethernet`]: frames have a header, and routes are the host's.
pub const ETHERNET: u16 = 1;
/// [`Uplink::ethernet`]: frames have a header, and the member of a VRF has the routes of that, which a program's look-up does
/// not ask (`net/core/filter.c, bpf_ipv4_fib_lookup()`): that it finds none says nothing.
pub const ETHERNET_IN_VRF: u16 = 2;

/// `np_uplink`, HASH by ifindex.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Uplink {
    pub mtu: u32,
    /// Its own hardware address, where there is one: frames to another are not for this host.
    pub mac: Mac,
    /// 0 = frames have no Ethernet header; [`ETHERNET`], [`ETHERNET_IN_VRF`].
    pub ethernet: u16,
    /// Source for masquerade where the kernel's fib look-up cannot tell it (before 6.7); zero = none.
    pub source4: V4,
    pub source6: V6,
}

/// `np_local`, HASH by host [`Addr`] → 1. Wildcard publishes answer on these.
pub type Local = u32;

/// `np_near`, ARRAY of [`SUBNET_HINT_WORDS`] words: a bit for each [`subnet_hint`] of an address of a container's subnet, so that a packet to
/// elsewhere is known without a look in `np_subnet`.
pub const SUBNET_HINT_WORDS: u32 = 1_024;

/// Word and bit of an address: by the first 16 bits of an IPv4 one, by the first 48 of an IPv6 one. A subnet with fewer
/// has more than one.
#[inline(always)]
pub fn subnet_hint(address: &Addr) -> (u32, u64) {
    let a = &address.0;
    let bits = if address.is_v4() {
        u16::from_be_bytes([a[12], a[13]])
    } else {
        u16::from_be_bytes([a[0], a[1]]) ^ u16::from_be_bytes([a[2], a[3]]) ^ u16::from_be_bytes([a[4], a[5]])
    };
    ((bits >> 6) as u32, 1 << (bits & 63))
}

/// Value of `np_traffic`, PERCPU_ARRAY of [`TRAFFICS`]: of a publish or an endpoint, to and from the container.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Traffic {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
}

/// Where a tuple was seen. The same tuple on another side is another flow.
pub const SIDE_UPLINK: u8 = 0;
pub const SIDE_BRIDGE: u8 = 1;
pub const SIDE_LO: u8 = 2;
/// Of flows that take the host's stack: at the egress of an uplink.
pub const SIDE_EGRESS: u8 = 3;

/// Key of `np_flow4`, LRU_HASH of [`FLOWS4`]: a packet as it is seen, before translation. For ICMP echo, `sport` and
/// `dport` both hold the identifier.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlowKey4 {
    pub src: V4,
    pub dst: V4,
    pub sport: Be16,
    pub dport: Be16,
    pub proto: u8,
    pub side: u8,
    pub pad: [u8; 2],
}

/// Key of `np_flow6`, as [`FlowKey4`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FlowKey6 {
    pub src: V6,
    pub dst: V6,
    pub sport: Be16,
    pub dport: Be16,
    pub proto: u8,
    pub side: u8,
    pub pad: [u8; 2],
}

/// How a translated packet goes on: into the container behind `Next::ifindex`, the host side of its veth
/// (`bpf_redirect_peer`, 5.10).
pub const FORWARD_PEER: u8 = 0;
/// Out of `Next::ifindex` with the kernel's neighbour look-up (`bpf_redirect_neigh`, 5.10).
pub const FORWARD_NEIGH: u8 = 1;
/// Back into the stack through the ingress of `Next::ifindex` (`lo`).
pub const FORWARD_INGRESS: u8 = 2;
/// Out of `Next::ifindex` as it is. For packets of the host's own sockets: they carry the host's route, which the way
/// through the veth drops on every kernel and `bpf_redirect_peer` only since 6.15.
pub const FORWARD_EGRESS: u8 = 3;
/// Up the stack, which routes it, filters it and counts its hop.
pub const FORWARD_STACK: u8 = 4;
/// As [`FORWARD_PEER`], and XDP may send the packet there by `bpf_redirect`: into `Next::ifindex`, out of the other end.
pub const FORWARD_XDP: u8 = 5;

/// As [`FORWARD_NEIGH`], with the hardware address that the kernel has told: by `bpf_redirect`, which asks neither for a
/// route nor for a neighbour.
pub const FORWARD_LINK: u8 = 6;

/// Out of an uplink, or to a neighbour on a bridge.
#[inline(always)]
pub const fn is_outward(forward: u8) -> bool {
    forward == FORWARD_NEIGH || forward == FORWARD_LINK
}

/// Straight into a container.
#[inline(always)]
pub const fn is_inward(forward: u8) -> bool {
    forward == FORWARD_PEER || forward == FORWARD_XDP
}

/// The part of a flow that does not depend on the family.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Next {
    pub ifindex: u32,
    /// Ticks of CLOCK_MONOTONIC ([`crate::flow::TICK_NS`]; it stands still while the machine sleeps), written once in each at most.
    pub last_seen: u32,
    /// Of the frame that goes on. Outward ([`is_outward`]) `match_dmac` is that of the frame that comes, the bridge's own, and
    /// `next_hop_mac` that of the next hop; zero = not known. There the frame that goes on has its source from [`Uplink::mac`].
    pub match_dmac: Mac,
    pub next_hop_mac: Mac,
    /// Largest IP packet that may go this way, bytes.
    pub mtu: u16,
    pub forward: u8,
    /// Side of the reverse tuple's key.
    pub reverse_side: u8,
    /// What was seen so far and which half this is: bits of `netpath_common::flow`.
    pub state: u8,
    /// What began it: the `Reason` of a flow.
    pub origin: u8,
    /// Index into `np_traffic`; 0 = not counted apart.
    pub traffic: u16,
}

impl Next {
    /// Whether both lead packets of the same kind the same way. In one expression without branches: the verifier walks all
    /// that follows once for each of them.
    #[inline(always)]
    pub fn goes_as(&self, other: &Self) -> bool {
        let both_out = is_outward(self.forward) & is_outward(other.forward);
        let other_way = (self.forward != other.forward) & !both_out;
        let hop = (self.ifindex ^ other.ifindex) | u32::from(self.mtu ^ other.mtu) | u32::from(other_way);
        let frame =
            difference(&self.match_dmac, &other.match_dmac) | difference(&self.next_hop_mac, &other.next_hop_mac);
        let kind = (self.reverse_side ^ other.reverse_side) | (self.origin ^ other.origin);
        hop | u32::from(frame | (self.traffic ^ other.traffic)) | u32::from(kind) == 0
    }
}

/// Value of `np_flow4`: the packet after translation, and where it goes.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flow4 {
    pub src: V4,
    pub dst: V4,
    pub sport: Be16,
    pub dport: Be16,
    pub next: Next,
}

/// Value of `np_flow6`, as [`Flow4`].
#[repr(C, align(8))]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Flow6 {
    pub src: V6,
    pub dst: V6,
    pub sport: Be16,
    pub dport: Be16,
    pub next: Next,
}

/// Key of `np_frag4`, LRU_HASH of [`FRAGMENTS`] → both ports as they lie in the packet: what the first fragment says for
/// those behind it, which have no ports.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FragmentKey4 {
    pub src: V4,
    pub dst: V4,
    pub id: u32,
    pub proto: u8,
    pub side: u8,
    pub pad: [u8; 2],
}

/// Key of `np_frag6`, as [`FragmentKey4`].
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct FragmentKey6 {
    pub src: V6,
    pub dst: V6,
    pub id: u32,
    pub proto: u8,
    pub side: u8,
    pub pad: [u8; 2],
}

/// Key of `np_sock`, LRU_HASH of [`SOCKS`]: a socket of the host and the container it was led to.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SockKey {
    pub cookie: u64,
    pub to: Addr,
    pub port: Be16,
    pub pad: [u8; 6],
}

/// Value of `np_sock`: what the socket had dialled, given back by recvmsg and getpeername.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SockOrigin {
    pub dialled: Addr,
    pub port: Be16,
    pub pad: [u8; 6],
}

/// Value of `np_count`, PERCPU_ARRAY of [`crate::reason::SLOTS`] by [`crate::reason::Reason`].
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// Map names. Fifteen bytes at most: the kernel keeps no more.
pub mod name {
    pub const CONFIG: &str = "np_cfg";
    pub const PORT_TCP: &str = "np_port_tcp";
    pub const PORT_UDP: &str = "np_port_udp";
    pub const PORT_SCTP: &str = "np_port_sctp";
    pub const ALLOW: &str = "np_allow";
    pub const SUBNET_HINTS: &str = "np_near";
    pub const TRAFFIC: &str = "np_traffic";
    pub const FRAG4: &str = "np_frag4";
    pub const FRAG6: &str = "np_frag6";
    pub const NAT_PORT: &str = "np_nat_port";
    pub const RULE: &str = "np_rule";
    pub const ENDPOINT: &str = "np_ep";
    pub const NETWORK: &str = "np_net";
    pub const SUBNET: &str = "np_subnet";
    pub const UPLINK: &str = "np_uplink";
    pub const LOCAL: &str = "np_local";
    pub const FLOW4: &str = "np_flow4";
    pub const FLOW6: &str = "np_flow6";
    pub const SOCK: &str = "np_sock";
    pub const COUNT: &str = "np_count";
}

/// Constants in the programs' .rodata that a loader overrides before loading (`EbpfLoader::override_global`).
pub mod global {
    /// u8, 0 unless overridden: 1 = `bpf_fib_lookup` takes BPF_FIB_LOOKUP_SRC (6.7).
    pub const FIB_SRC: &str = "NP_FIB_SRC";
    /// u8, 0 unless overridden: 1 = `bpf_l4_csum_replace` takes BPF_F_IPV6 (6.16), with which it keeps the sum of a
    /// CHECKSUM_COMPLETE packet right and addresses can be written in place.
    pub const CSUM_IPV6: &str = "NP_CSUM_IPV6";
    /// u8, `aya_log::Level` as a number: 0 = silent, the verifier then removes all log code; 3 = drops; 4 = new flows too.
    /// aya-log-ebpf's own symbol, 255 (everything) in the object: a loader always overrides it.
    pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
}

/// Program names, and with them the ELF symbols.
pub mod program {
    /// Ingress of an uplink whose frames have an Ethernet header, and of one without (wireguard, tun, ppp).
    pub const UPLINK_IN: &str = "np_uplink_in";
    pub const UPLINK_IN_L3: &str = "np_uplink_in_l3";
    /// Egress of the same.
    pub const UPLINK_OUT: &str = "np_uplink_out";
    pub const UPLINK_OUT_L3: &str = "np_uplink_out_l3";
    /// XDP of an uplink whose frames have an Ethernet header, ahead of its ingress.
    pub const XDP_IN: &str = "np_xdp_in";
    pub const BRIDGE_IN: &str = "np_bridge_in";
    pub const VETH_IN: &str = "np_veth_in";
    pub const LO_IN: &str = "np_lo_in";
    pub const CONNECT4: &str = "np_connect4";
    pub const CONNECT6: &str = "np_connect6";
    pub const SENDMSG4: &str = "np_sendmsg4";
    pub const SENDMSG6: &str = "np_sendmsg6";
    pub const RECVMSG4: &str = "np_recvmsg4";
    pub const RECVMSG6: &str = "np_recvmsg6";
    pub const GETPEERNAME4: &str = "np_getpeername4";
    pub const GETPEERNAME6: &str = "np_getpeername6";
}

/// The marker that aya's typed maps ask for.
#[cfg(feature = "user")]
mod pod {
    const fn is_plain<T: super::Plain>() {}

    macro_rules! pod {
        ($($t:ty),*) => { $(
            const _: () = is_plain::<$t>();
            // SAFETY: `Plain`, asked for in the line above.
            unsafe impl aya::Pod for $t {}
        )* };
    }
    pod!(
        super::Config,
        super::NatPort,
        super::Rule,
        super::Endpoint,
        super::Network,
        super::Subnet,
        super::Uplink,
        super::FlowKey4,
        super::FlowKey6,
        super::Flow4,
        super::Flow6,
        super::SockKey,
        super::SockOrigin,
        super::Count,
        super::AllowKey,
        super::Traffic,
        super::FragmentKey4,
        super::FragmentKey6,
        crate::addr::Addr
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_layout_version_5() {
        assert_eq!(5, LAYOUT_VERSION);
        assert_eq!(16, size_of::<Config>());
        assert_eq!(4, size_of::<NatPort>());
        assert_eq!(64, size_of::<Rule>());
        assert_eq!(28, size_of::<Endpoint>());
        assert_eq!(20, size_of::<AllowKey>());
        assert_eq!(32, size_of::<Traffic>());
        assert_eq!(16, size_of::<FragmentKey4>());
        assert_eq!(40, size_of::<FragmentKey6>());
        assert_eq!(48, size_of::<Network>());
        assert_eq!(8, size_of::<Subnet>());
        assert_eq!(32, size_of::<Uplink>());
        assert_eq!(16, size_of::<FlowKey4>());
        assert_eq!(40, size_of::<FlowKey6>());
        assert_eq!(28, size_of::<Next>());
        assert_eq!(40, size_of::<Flow4>());
        assert_eq!(64, size_of::<Flow6>());
        assert_eq!(32, size_of::<SockKey>());
        assert_eq!(24, size_of::<SockOrigin>());
        assert_eq!(16, size_of::<Count>());
    }
}
