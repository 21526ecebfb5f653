//! The maps: names, sizes, keys and values. Every change requires a new [`LAYOUT_VERSION`], which is part of the pin
//! path, so that programs of one version never use maps of another.
//!
//! The control plane writes control maps, programs only read them; programs write state maps. Every struct is
//! `repr(C)` with named, zeroed padding: a map key is hashed as bytes, and `IntoBytes` does not compile otherwise.
//! The flow structs are aligned to 8, so that programs copy words instead of bytes (the BPF machine has no unaligned
//! loads).

use crate::addr::{Addr, Be16, Mac, V4, V6, difference};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Content of a map: any bytes are a valid value, and every byte of a value is part of a field.
pub trait Plain: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + 'static {}
impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy + 'static> Plain for T {}

/// Increases with every change of a map's name, type, size, key or value.
pub const LAYOUT_VERSION: u32 = 8;

/// Rules: each is one publish on one endpoint for one range of ports; index 0 is unused and means "none".
pub const RULES: u32 = 65_536;
/// Rules examined per packet: the longest chain of overlapping publishes on one port.
pub const RULE_CHAIN: u32 = 16;
pub const ENDPOINTS: u32 = 8_192;
pub const NETWORKS: u32 = 1_024;
pub const SUBNETS: u32 = 2_048;
pub const UPLINKS: u32 = 256;
pub const LOCALS: u32 = 4_096;
pub const FLOWS4: u32 = 65_536;
pub const FLOWS6: u32 = 32_768;
/// TCP flows that are not established: a quarter of all, so that a flood leaves three quarters to connections.
pub const OPENINGS4: u32 = FLOWS4 / 2 / 4;
pub const OPENINGS6: u32 = FLOWS6 / 2 / 4;
pub const ROUTE_MTUS: u32 = 4_096;
pub const SOCKS: u32 = 16_384;
pub const ALLOWS: u32 = 65_536;
pub const FRAGMENTS: u32 = 8_192;
/// Traffic counters; index 0 is unassigned.
pub const TRAFFICS: u32 = 16_384;

/// `np_cfg`, ARRAY of one.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Config {
    /// SO_NETNS_COOKIE of the namespace that this set of maps serves; sock_addr programs ignore sockets of all
    /// others.
    pub netns_cookie: u64,
    /// First and last source port, host byte order, of the range for flows that cannot keep their own.
    pub port_min: u16,
    pub port_max: u16,
    pub lo_ifindex: u32,
}

/// `np_port_tcp`, `np_port_udp`: ARRAY of 65,536 by host port in host byte order → first [`Rule`] of the chain, 0 = none.
pub type PortSlot = u32;

/// `np_port_sctp`: the same for SCTP, whose port cannot be changed (the checksum is a CRC-32c over the whole packet,
/// RFC 9260 §6.8): its rules lead to the port they are published on.
pub type PortSlotSctp = PortSlot;

/// `np_mtu`, LPM_TRIE by v4-mapped destination → the MTU of a route in bytes, which `bpf_fib_lookup` does not return; 0 = a
/// route inside such a one without an MTU.
pub type RouteMtu = u32;

/// Keys of `np_sink`, SOCKMAP: the sockets that discard a SYN, one per family.
pub const SINK4: u32 = 0;
pub const SINK6: u32 = 1;

/// `np_promotion`, ARRAY of one, written by the agent: which flows of a host whose netfilter translates are carried by programs.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Promotion {
    /// Flows with another [`Next::serial`] are not carried: rules or routes have changed since.
    pub epoch: u32,
    /// In ticks ([`crate::flow::TICK_NS`]). Later nothing is carried: the agent, which follows the rules, does not answer.
    pub until: u32,
    /// Packets within [`METER_WINDOW`] after which a flow is reported.
    pub threshold: u32,
}

/// Record of `np_lasting`, RINGBUF: a flow that has passed the threshold, as the packet was seen.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Lasting {
    pub src: Addr,
    pub dst: Addr,
    pub ifindex: u32,
    pub sport: Be16,
    pub dport: Be16,
    pub proto: u8,
    pub side: u8,
    pub pad: [u8; 2],
}

impl Lasting {
    /// `None`: the record is too short.
    pub fn read(record: &[u8]) -> Option<Self> {
        Self::read_from_prefix(record).ok().map(|(lasting, _)| lasting)
    }
}

/// `np_meter`, PERCPU_ARRAY of [`METERS`] by a hash of the tuple: the window in the upper half, packets in the lower one. Two
/// flows of one slot are reported too early, which costs the agent a question.
pub type Meter = u64;
pub const METERS: u32 = 16_384;
/// In ticks, as a power of two: 1.07 s.
pub const METER_WINDOW: u32 = 3;

/// Key of `np_dns`, SOCKHASH of [`DNS_SOCKETS`]: a query to this address at port [`DNS_PORT`] reaches the socket.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct DnsKey {
    /// v4-mapped.
    pub server: Addr,
    /// [`PROTO_UDP`] or [`PROTO_TCP`].
    pub proto: u32,
}

pub const DNS_SOCKETS: u32 = 4 * NETWORKS;
pub const DNS_PORT: u16 = 53;

/// `np_nat_port`, ARRAY of 65,536 by port (or echo identifier) in host byte order: the ports that masquerade has
/// used, so that an uplink can exclude a reply without a look-up in the flow table. Set by programs, one byte per
/// protocol because bytes need no atomics; cleared by the control plane when no flow has the port. A stale mark costs
/// one look-up.
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

/// [`Rule::flags`]: published on `0.0.0.0`; IPv6 clients on the host are not redirected to the IPv4 address.
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
    /// First host port and first container port of `count` ports, host byte order.
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
    /// The allow list in `np_allow`; 0 = every client is allowed.
    pub allow: u32,
    /// Index into `np_traffic`; 0 = no counter of its own.
    pub traffic: u32,
    pub pad: [u8; 4],
}

/// Key of `np_allow`, LPM_TRIE of [`ALLOWS`] → 1: 32 bits of list number, then the client's prefix, so that an IPv4
/// /24 has 32 + 120 bits. Used as aya's `lpm_trie::Key<AllowKey>`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct AllowKey {
    /// [`Rule::allow`], big-endian: a trie compares from the first bit on.
    pub list: [u8; 4],
    /// v4-mapped.
    pub client: Addr,
}

/// [`Endpoint::flags`]: the network enables XDP, and the container's end of the veth accepts frames that XDP
/// redirects to it: it has NAPI, which GRO enables (5.13).
pub const ENDPOINT_XDP: u16 = 1;
/// [`Endpoint::flags`]: it publishes SCTP on another port, which netfilter translates: its SCTP packets without a
/// flow take the stack.
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
    /// MTU of the container's interface, bytes.
    pub mtu: u16,
    /// [`ENDPOINT_XDP`], [`ENDPOINT_MOVED_SCTP`].
    pub flags: u16,
    /// Index into `np_traffic`; 0 = no counter of its own.
    pub traffic: u32,
}

/// [`Network::flags`]: packets to the outside get the uplink's address as source.
pub const NET_MASQUERADE: u32 = 1;
/// No traffic to or from the outside; only its own subnets and gateways.
pub const NET_INTERNAL: u32 = 2;
/// No traffic with other isolated networks (Netavark's `isolate=true`).
pub const NET_ISOLATED: u32 = 4;
/// No traffic with any other network (`isolate=strict`).
pub const NET_STRICT: u32 = 8;
/// Containers are reachable from uplinks by their own addresses, and may send from any (`netpath.direct=true`).
pub const NET_DIRECT: u32 = 16;
/// Port 53 of the bridge's addresses is the network's DNS server, whatever is published there.
pub const NET_DNS: u32 = 32;

/// `np_net`, HASH by ifindex of the bridge.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Network {
    pub flags: u32,
    pub mtu: u32,
    /// The bridge's own addresses, the source of hairpin flows; zero = none of that family.
    pub gateway4: V4,
    pub gateway6: V6,
    /// `outbound_addr4/6`: masquerade with these instead of the uplink's address; zero = not set.
    pub outbound4: V4,
    pub outbound6: V6,
}

/// `np_subnet`, LPM_TRIE: key is aya's `lpm_trie::Key<[u8; 16]>` over a v4-mapped address (an IPv4 /24 is a /120).
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Subnet {
    /// The bridge, and a copy of its network's flags, so that policy needs no second look-up.
    pub bridge: u32,
    pub flags: u32,
}

/// [`Uplink::ethernet`]: frames have an Ethernet header, routes are in the main tables.
pub const ETHERNET: u16 = 1;
/// [`Uplink::ethernet`]: frames have an Ethernet header, and the device is member of a VRF. A program's FIB look-up
/// does not use the VRF's table (`net/core/filter.c, bpf_ipv4_fib_lookup()`), so a missing route proves nothing.
pub const ETHERNET_IN_VRF: u16 = 2;

/// `np_uplink`, HASH by ifindex.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Uplink {
    pub mtu: u32,
    /// Its hardware address, if it has one: frames to other addresses are not for this host.
    pub mac: Mac,
    /// 0 = frames have no Ethernet header; [`ETHERNET`], [`ETHERNET_IN_VRF`].
    pub ethernet: u16,
    /// Source for masquerade where the kernel's FIB look-up does not return one (before 6.7); zero = none.
    pub source4: V4,
    pub source6: V6,
}

/// `np_local`, HASH by host [`Addr`] → ifindex of the interface that has it, or [`LOCAL_OF_SEVERAL`]. Wildcard publishes
/// answer on these addresses.
pub type Local = u32;
/// No interface has this index.
pub const LOCAL_OF_SEVERAL: u32 = 0;

/// `np_near`, ARRAY of [`SUBNET_HINT_WORDS`] words: one bit per [`subnet_hint`] of the containers' subnets. A clear
/// bit proves that an address is in none of them without a look-up in `np_subnet`.
pub const SUBNET_HINT_WORDS: u32 = 1_024;

/// Word and bit of an address: from the first 16 bits of an IPv4 address, the first 48 of an IPv6 address. A subnet
/// with a shorter prefix has several.
#[inline(always)]
pub fn subnet_hint(address: &Addr) -> (u32, u64) {
    let a = &address.0;
    let bits = if address.is_v4() {
        u16::from_be_bytes([a[12], a[13]])
    } else {
        u16::from_be_bytes([a[0], a[1]]) ^ u16::from_be_bytes([a[2], a[3]]) ^ u16::from_be_bytes([a[4], a[5]])
    };
    (u32::from(bits >> 6), 1 << (bits & 63))
}

/// Value of `np_traffic`, PERCPU_ARRAY of [`TRAFFICS`]: packets to and from the container of a publish or an
/// endpoint.
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
/// Egress of an uplink, for flows of the host's own sockets from a port that a container's flow holds.
pub const SIDE_EGRESS: u8 = 3;

/// Key of `np_flow4`, LRU_HASH of [`FLOWS4`]: a packet before translation. For ICMP echo, `sport` and `dport` both
/// hold the identifier.
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

/// How a translated packet is forwarded: into the container behind `Next::ifindex`, the host side of its veth
/// (`bpf_redirect_peer`, 5.10).
pub const FORWARD_PEER: u8 = 0;
/// Out of `Next::ifindex` with the kernel's neighbour look-up (`bpf_redirect_neigh`, 5.10).
pub const FORWARD_NEIGH: u8 = 1;
/// Back into the stack through the ingress of `Next::ifindex` (`lo`).
pub const FORWARD_INGRESS: u8 = 2;
/// Out of `Next::ifindex` unchanged. For packets of the host's own sockets: they carry the host's route, with which
/// delivery through the veth drops them on every kernel and `bpf_redirect_peer` works only since 6.15.
pub const FORWARD_EGRESS: u8 = 3;
/// To the stack: a packet of the host itself, or one that only the stack can handle (too big, TTL exhausted).
pub const FORWARD_STACK: u8 = 4;
/// As [`FORWARD_PEER`], and XDP may send the packet by `bpf_redirect`: into `Next::ifindex`, out of its peer.
pub const FORWARD_XDP: u8 = 5;

/// As [`FORWARD_NEIGH`], with the hardware address from the kernel: by `bpf_redirect`, without a look-up of route or
/// neighbour.
pub const FORWARD_LINK: u8 = 6;

/// Out of an uplink, or to a neighbour on a bridge.
#[inline(always)]
pub const fn is_outward(forward: u8) -> bool {
    forward == FORWARD_NEIGH || forward == FORWARD_LINK
}

/// Directly into a container.
#[inline(always)]
pub const fn is_inward(forward: u8) -> bool {
    forward == FORWARD_PEER || forward == FORWARD_XDP
}

/// The part of a flow that does not depend on the family.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Next {
    pub ifindex: u32,
    /// Ticks of CLOCK_MONOTONIC ([`crate::flow::TICK_NS`]; the clock stops while the machine sleeps), written once
    /// per tick at most.
    pub last_seen: u32,
    /// TCP: the last acknowledgement number of this entry's direction, in packet order; 0 = unknown. Before the originator's
    /// first one, the number that the other end's SYN asks for. Of a promoted flow: the interface by which its packets come.
    pub ack: u32,
    /// A random number, by which the flow differs from an earlier one with the same key; in its first entry only.
    pub serial: u32,
    /// Outward ([`is_outward`]): the destination of the frame that arrives, which is the bridge's own address, and
    /// the address of the next hop, zero = unknown; the source of the frame that leaves is [`Uplink::mac`]. Inward:
    /// destination and source of the frame that leaves.
    pub match_dmac: Mac,
    pub next_hop_mac: Mac,
    /// Largest IP packet of this hop, bytes.
    pub mtu: u16,
    pub forward: u8,
    /// Side of the reverse tuple's key.
    pub reverse_side: u8,
    /// TCP state, and which entry this is: bits of `netpath_common::flow`.
    pub state: u8,
    /// The `Reason` with which the flow began.
    pub origin: u8,
    /// Index into `np_traffic`; 0 = no counter of its own.
    pub traffic: u16,
}

impl Next {
    /// Whether both have the same next hop, origin and counter. One expression without branches: the verifier walks the
    /// rest of the program once per branch.
    #[inline(always)]
    pub fn is_same_hop(&self, other: &Self) -> bool {
        let both_out = is_outward(self.forward) & is_outward(other.forward);
        let other_kind = (self.forward != other.forward) & !both_out;
        let hop = (self.ifindex ^ other.ifindex) | u32::from(self.mtu ^ other.mtu) | u32::from(other_kind);
        let frame =
            difference(&self.match_dmac, &other.match_dmac) | difference(&self.next_hop_mac, &other.next_hop_mac);
        let kind = (self.reverse_side ^ other.reverse_side) | (self.origin ^ other.origin);
        hop | u32::from(frame | (self.traffic ^ other.traffic)) | u32::from(kind) == 0
    }
}

/// Value of `np_flow4`: the packet after translation, and its next hop.
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

/// Value of `np_opening4` and `np_opening6`, ARRAY of [`OPENINGS4`] and [`OPENINGS6`]: TCP flows in the order in which they
/// began. Whatever is not established when its place is needed ends.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct Opening<K> {
    /// Of the flow's first entry.
    pub key: K,
    /// [`Next::serial`].
    pub serial: u32,
    pub pad: u32,
}

/// `np_opened`, ARRAY of [`OPENED`]: TCP flows begun, by family (IPv4, IPv6).
pub const OPENED: u32 = 2;

/// Key of `np_frag4`, LRU_HASH of [`FRAGMENTS`] → both ports in packet order, from the first fragment for later
/// fragments, which have no ports.
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

/// Key of `np_sock`, LRU_HASH of [`SOCKS`]: a socket of the host and the container it was connected to.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SockKey {
    pub cookie: u64,
    pub to: Addr,
    pub port: Be16,
    pub pad: [u8; 6],
}

/// Value of `np_sock`: the address that the socket dialled, returned by recvmsg and getpeername.
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

/// Map names, 15 bytes at most: the kernel truncates longer ones.
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
    pub const ROUTE_MTU: &str = "np_mtu";
    pub const FLOW4: &str = "np_flow4";
    pub const FLOW6: &str = "np_flow6";
    pub const SOCK: &str = "np_sock";
    pub const COUNT: &str = "np_count";
    pub const SINK: &str = "np_sink";
    pub const PROMOTION: &str = "np_promotion";
    pub const CARRY: &str = "np_carry";
    pub const METER: &str = "np_meter";
    pub const LASTING: &str = "np_lasting";
    pub const DNS: &str = "np_dns";
    pub const SCRATCH4: &str = "np_scratch4";
    pub const SCRATCH6: &str = "np_scratch6";
}

/// Constants in the programs' .rodata that the loader sets (`EbpfLoader::override_global`).
pub mod global {
    /// u8, 0 unless overridden: 1 = `bpf_fib_lookup` takes BPF_FIB_LOOKUP_SRC (6.7).
    pub const FIB_SRC: &str = "NP_FIB_SRC";
    /// u8, 0 unless overridden: 1 = `bpf_l4_csum_replace` takes BPF_F_IPV6 (6.16), which keeps the sum of a
    /// CHECKSUM_COMPLETE packet valid, so that addresses can be written in place.
    pub const CSUM_IPV6: &str = "NP_CSUM_IPV6";
    /// u8, 0 unless overridden: 1 = no network has IPv6. The verifier then leaves out all walks of IPv6 packets.
    pub const V4_ONLY: &str = "NP_V4_ONLY";
    /// u8, `aya_log::Level` as a number: 0 = silent, the verifier then removes all log code; 3 = drops; 4 = new flows
    /// too. The symbol is aya-log-ebpf's own, 255 (everything) in the object; the loader always sets it.
    pub const LOG_LEVEL: &str = "AYA_LOG_LEVEL";
}

/// Program names, and with them the ELF symbols.
pub mod program {
    /// Ingress of an uplink with an Ethernet header, and of one without (WireGuard, tun, PPP).
    pub const UPLINK_IN: &str = "np_uplink_in";
    pub const UPLINK_IN_L3: &str = "np_uplink_in_l3";
    /// Egress of the same.
    pub const UPLINK_OUT: &str = "np_uplink_out";
    pub const UPLINK_OUT_L3: &str = "np_uplink_out_l3";
    /// XDP of an uplink with an Ethernet header, ahead of its ingress.
    pub const XDP_IN: &str = "np_xdp_in";
    pub const BRIDGE_IN: &str = "np_bridge_in";
    pub const VETH_IN: &str = "np_veth_in";
    pub const LO_IN: &str = "np_lo_in";
    /// Ingress of an uplink, and of a container's veth, on a host whose netfilter translates.
    pub const COUNT_IN: &str = "np_count_in";
    pub const COUNT_OUT: &str = "np_count_out";
    /// Behind these while flows are carried.
    pub const CARRY_IN: &str = "np_carry_in";
    pub const CARRY_OUT: &str = "np_carry_out";
    /// Look-up of listening sockets (5.9).
    pub const NEW_UPLINK: &str = "np_new_uplink";
    pub const DNS: &str = "np_dns_query";
    pub const CONNECT4: &str = "np_connect4";
    pub const CONNECT6: &str = "np_connect6";
    pub const SENDMSG4: &str = "np_sendmsg4";
    pub const SENDMSG6: &str = "np_sendmsg6";
    pub const RECVMSG4: &str = "np_recvmsg4";
    pub const RECVMSG6: &str = "np_recvmsg6";
    pub const GETPEERNAME4: &str = "np_getpeername4";
    pub const GETPEERNAME6: &str = "np_getpeername6";
}

/// The marker trait that aya's typed maps require.
#[cfg(feature = "user")]
mod pod {
    const fn is_plain<T: super::Plain>() {}

    macro_rules! pod {
        ($($t:ty),*) => { $(
            const _: () = is_plain::<$t>();
            // SAFETY: `Plain`, required in the line above.
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
        super::DnsKey,
        super::Traffic,
        super::Promotion,
        super::FragmentKey4,
        super::FragmentKey6,
        crate::addr::Addr
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_layout_version_8() {
        assert_eq!(8, LAYOUT_VERSION);
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
        assert_eq!(36, size_of::<Next>());
        assert_eq!(48, size_of::<Flow4>());
        assert_eq!(72, size_of::<Flow6>());
        assert_eq!(24, size_of::<Opening<FlowKey4>>());
        assert_eq!(48, size_of::<Opening<FlowKey6>>());
        assert_eq!(32, size_of::<SockKey>());
        assert_eq!(24, size_of::<SockOrigin>());
        assert_eq!(16, size_of::<Count>());
    }
}
