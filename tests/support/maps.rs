//! State of the datapath, read from the pinned maps without netpath: flows and counters.

use anyhow::{Context, Result, bail};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use netpath_common::addr::Be16;
use netpath_common::flow::{REPLIED, REPLY_HALF};
use netpath_common::layout::{
    self, Config, Count, Flow4, Flow6, FlowKey4, FlowKey6, LAYOUT_VERSION, Next, SIDE_BRIDGE, SIDE_UPLINK,
};
use netpath_common::reason::Reason;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// One direction of a flow: the packet before and after translation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Flow {
    pub proto: u8,
    pub side: u8,
    pub seen: (SocketAddr, SocketAddr),
    pub becomes: (SocketAddr, SocketAddr),
}

impl std::fmt::Display for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let proto = match self.proto {
            layout::PROTO_TCP => "tcp",
            layout::PROTO_UDP => "udp",
            layout::PROTO_ICMP | layout::PROTO_ICMPV6 => "icmp",
            _ => "other",
        };
        let side = match self.side {
            SIDE_UPLINK => "uplink",
            SIDE_BRIDGE => "bridge",
            _ => "lo",
        };
        let (seen, becomes) = (self.seen, self.becomes);
        write!(f, "{proto} at {side}: {} > {} becomes {} > {}", seen.0, seen.1, becomes.0, becomes.1)
    }
}

/// The directory of the one host namespace that has pins below `bpffs`; with several, select one by `cookie`.
///
/// # Errors
/// There is none, or not exactly one.
pub fn pins(bpffs: &Path, cookie: Option<u64>) -> Result<PathBuf> {
    let version = bpffs.join(format!("netpath/v{LAYOUT_VERSION}"));
    if let Some(cookie) = cookie {
        return Ok(version.join(format!("{cookie:x}")));
    }
    let hosts = std::fs::read_dir(&version).with_context(|| format!("no pins in {}", version.display()))?;
    let hosts: Vec<PathBuf> = hosts.flatten().map(|entry| entry.path()).collect();
    let [one] = hosts.as_slice() else { bail!("{} hosts have pins in {}", hosts.len(), version.display()) };
    Ok(one.clone())
}

/// Both directions of every flow.
///
/// # Errors
/// The maps are not there.
pub fn flows(pins: &Path) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    let four: HashMap<_, FlowKey4, Flow4> = open(pins, layout::name::FLOW4)?.try_into()?;
    for (key, value) in four.iter().flatten() {
        let at = |ip: [u8; 4], port: Be16| SocketAddr::new(IpAddr::from(ip), port.value());
        flows.push(Flow {
            proto: key.proto,
            side: key.side,
            seen: (at(key.src, key.sport), at(key.dst, key.dport)),
            becomes: (at(value.src, value.sport), at(value.dst, value.dport)),
        });
    }
    let six: HashMap<_, FlowKey6, Flow6> = open(pins, layout::name::FLOW6)?.try_into()?;
    for (key, value) in six.iter().flatten() {
        let at = |ip: [u8; 16], port: Be16| SocketAddr::new(IpAddr::from(ip), port.value());
        flows.push(Flow {
            proto: key.proto,
            side: key.side,
            seen: (at(key.src, key.sport), at(key.dst, key.dport)),
            becomes: (at(value.src, value.sport), at(value.dst, value.dport)),
        });
    }
    flows.sort_by_key(|f| (f.proto, f.seen));
    Ok(flows)
}

/// Ticks of CLOCK_MONOTONIC, as the programs count them.
pub fn now() -> u32 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    ((now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64) >> netpath_common::flow::TICK_BITS) as u32
}

/// Sets the range of drawn source ports, until the next command rewrites it.
///
/// # Errors
/// The map is not there.
pub fn set_ports(pins: &Path, ports: std::ops::RangeInclusive<u16>) -> Result<()> {
    let mut map: Array<_, Config> = open(pins, layout::name::CONFIG)?.try_into()?;
    let config = map.get(&0, 0)?;
    Ok(map.set(0, Config { port_min: *ports.start(), port_max: *ports.end(), ..config }, 0)?)
}

/// Reserves `ports` of the host's address `host` towards `peer` by dummy flows, so that no other flow gets them.
///
/// # Errors
/// The maps are not there, or full.
pub fn take_ports(
    pins: &Path,
    proto: u8,
    peer: SocketAddr,
    host: IpAddr,
    ports: impl Iterator<Item = u16>,
) -> Result<()> {
    let next = Next { last_seen: now(), state: REPLIED | REPLY_HALF, reverse_side: SIDE_BRIDGE, ..Next::default() };
    let (sport, side, pad) = (Be16::new(peer.port()), SIDE_UPLINK, [0; 2]);
    match (peer.ip(), host) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut map: HashMap<_, FlowKey4, Flow4> = open(pins, layout::name::FLOW4)?.try_into()?;
            let (src, dst) = (src.octets(), dst.octets());
            for dport in ports.map(Be16::new) {
                let key = FlowKey4 { src, dst, sport, dport, proto, side, pad };
                map.insert(key, Flow4 { src, dst: [10, 89, 7, 99], sport, dport, next }, 0)?;
            }
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let mut map: HashMap<_, FlowKey6, Flow6> = open(pins, layout::name::FLOW6)?.try_into()?;
            let (src, dst) = (src.octets(), dst.octets());
            for dport in ports.map(Be16::new) {
                let key = FlowKey6 { src, dst, sport, dport, proto, side, pad };
                map.insert(key, Flow6 { src, dst, sport, dport, next }, 0)?;
            }
        }
        _ => bail!("{peer} and {host} are of two families"),
    }
    Ok(())
}

/// Packets and bytes by reason, summed over all CPUs, without zero entries.
///
/// # Errors
/// The map is not there.
pub fn counters(pins: &Path) -> Result<Vec<(Reason, Count)>> {
    let map: PerCpuArray<_, Count> = open(pins, layout::name::COUNT)?.try_into()?;
    let mut counters = Vec::new();
    for reason in Reason::ALL {
        let mut sum = Count::default();
        for cpu in map.get(&(*reason as u32), 0)?.iter() {
            sum.packets += cpu.packets;
            sum.bytes += cpu.bytes;
        }
        if sum.packets > 0 {
            counters.push((*reason, sum));
        }
    }
    Ok(counters)
}

fn open(pins: &Path, name: &str) -> Result<Map> {
    let path = pins.join("map").join(name);
    let data = MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))?;
    Ok(Map::from_map_data(data)?)
}
