//! The maps, as `netpath_common::layout` describes them.

use core::borrow::Borrow;

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, SockMap};
use netpath_common::addr::Addr;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::layout::*;
use netpath_common::reason;

use crate::scratch::{HasScratch, Scratch};

/// Only the control plane writes control maps (`include/uapi/linux/bpf.h, BPF_F_RDONLY_PROG`, 5.2).
const READ_ONLY: u32 = aya_ebpf::bindings::BPF_F_RDONLY_PROG;
/// Written through a memory mapping (5.5), so that a range of ten thousand ports costs no system call each, and a
/// mark without a flow is cleared without losing concurrent writes of programs. The kernel does not map arrays
/// writable that are read-only to programs (`kernel/bpf/syscall.c, bpf_map_mmap()`), so that those of ports and rules
/// are read-only by convention alone.
const MAPPED: u32 = aya_ebpf::bindings::BPF_F_MMAPABLE;

#[map(name = "np_cfg")]
pub static CONFIG: Array<Config> = Array::with_max_entries(1, READ_ONLY);
#[map(name = "np_port_tcp")]
pub static PORT_TCP: Array<PortSlot> = Array::with_max_entries(65_536, MAPPED);
#[map(name = "np_port_udp")]
pub static PORT_UDP: Array<PortSlot> = Array::with_max_entries(65_536, MAPPED);
#[map(name = "np_port_sctp")]
pub static PORT_SCTP: Array<PortSlotSctp> = Array::with_max_entries(65_536, MAPPED);
#[map(name = "np_rule")]
pub static RULE: Array<Rule> = Array::with_max_entries(RULES, MAPPED);
#[map(name = "np_ep")]
pub static ENDPOINT: HashMap<Addr, Endpoint> = HashMap::with_max_entries(ENDPOINTS, READ_ONLY);
#[map(name = "np_net")]
pub static NETWORK: HashMap<u32, Network> = HashMap::with_max_entries(NETWORKS, READ_ONLY);
#[map(name = "np_subnet")]
pub static SUBNET: LpmTrie<[u8; 16], Subnet> = LpmTrie::with_max_entries(SUBNETS, READ_ONLY);
#[map(name = "np_uplink")]
pub static UPLINK: HashMap<u32, Uplink> = HashMap::with_max_entries(UPLINKS, READ_ONLY);
#[map(name = "np_local")]
pub static LOCAL: HashMap<Addr, Local> = HashMap::with_max_entries(LOCALS, READ_ONLY);
#[map(name = "np_mtu")]
pub static ROUTE_MTU: LpmTrie<[u8; 16], RouteMtu> = LpmTrie::with_max_entries(ROUTE_MTUS, READ_ONLY);

#[map(name = "np_allow")]
pub static ALLOW: LpmTrie<AllowKey, u32> = LpmTrie::with_max_entries(ALLOWS, READ_ONLY);
#[map(name = "np_near")]
pub static SUBNET_HINTS: Array<u64> = Array::with_max_entries(SUBNET_HINT_WORDS, READ_ONLY);

#[map(name = "np_nat_port")]
pub static NAT_PORT: Array<NatPort> = Array::with_max_entries(65_536, MAPPED);
#[map(name = "np_flow4")]
pub static FLOW4: LruHashMap<FlowKey4, Flow4> = LruHashMap::with_max_entries(FLOWS4, 0);
#[map(name = "np_flow6")]
pub static FLOW6: LruHashMap<FlowKey6, Flow6> = LruHashMap::with_max_entries(FLOWS6, 0);
#[map(name = "np_opening4")]
pub static OPENING4: Array<Opening<FlowKey4>> = Array::with_max_entries(OPENINGS4, 0);
#[map(name = "np_opening6")]
pub static OPENING6: Array<Opening<FlowKey6>> = Array::with_max_entries(OPENINGS6, 0);
#[map(name = "np_opened")]
pub static OPENED_COUNT: Array<u64> = Array::with_max_entries(OPENED, 0);
#[map(name = "np_sock")]
pub static SOCK: LruHashMap<SockKey, SockOrigin> = LruHashMap::with_max_entries(SOCKS, 0);
#[map(name = "np_frag4")]
pub static FRAG4: LruHashMap<FragmentKey4, u32> = LruHashMap::with_max_entries(FRAGMENTS, 0);
#[map(name = "np_frag6")]
pub static FRAG6: LruHashMap<FragmentKey6, u32> = LruHashMap::with_max_entries(FRAGMENTS, 0);
#[map(name = "np_traffic")]
pub static TRAFFIC: PerCpuArray<Traffic> = PerCpuArray::with_max_entries(TRAFFICS, 0);
#[map(name = "np_count")]
pub static COUNT: PerCpuArray<Count> = PerCpuArray::with_max_entries(reason::SLOTS, 0);

/// Not pinned: it has sockets of the agent.
#[map(name = "np_sink")]
pub static SINK: SockMap = SockMap::with_max_entries(2, 0);

/// Not pinned either: what follows ends with the agent, which makes the last two larger.
/// The programs that carry, into containers and out of them.
#[map(name = "np_carry")]
pub static CARRY: ProgramArray = ProgramArray::with_max_entries(2, 0);
#[map(name = "np_promotion")]
pub static PROMOTION: Array<Promotion> = Array::with_max_entries(1, READ_ONLY);
#[map(name = "np_meter")]
pub static METER: PerCpuArray<Meter> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "np_lasting")]
pub static LASTING: RingBuf = RingBuf::with_byte_size(4096, 0);

#[map(name = "np_scratch4")]
pub static SCRATCH4: PerCpuArray<Scratch<Ipv4>> = PerCpuArray::with_max_entries(1, 0);
#[map(name = "np_scratch6")]
pub static SCRATCH6: PerCpuArray<Scratch<Ipv6>> = PerCpuArray::with_max_entries(1, 0);

impl HasScratch for Ipv4 {
    #[inline(always)]
    fn scratch() -> &'static PerCpuArray<Scratch<Self>> {
        &SCRATCH4
    }
}

impl HasScratch for Ipv6 {
    #[inline(always)]
    fn scratch() -> &'static PerCpuArray<Scratch<Self>> {
        &SCRATCH6
    }
}

/// An element of a control map; the control plane may rewrite it meanwhile.
#[inline(always)]
pub fn find<K, V>(map: &'static HashMap<K, V>, key: impl Borrow<K>) -> Option<&'static V> {
    // SAFETY: elements are allocated with the map and outlive the program; concurrent writes change only plain numbers.
    unsafe { map.get(key) }
}
