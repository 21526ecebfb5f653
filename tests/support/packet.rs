//! Packets for `BPF_PROG_TEST_RUN`: a builder with independent checksums, and a lab that runs single programs over the same
//! maps, in a private network namespace (route and socket lookups are real).

use crate::need;
pub use crate::object::{accept, explained, load};
use crate::topology::Family;
use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, PerCpuArray};
use aya::programs::{Program, TestRun, TestRunOptions, TestRunResult};
use aya::{Ebpf, Pod, VerifierLogLevel};
use netpath_common::addr::{Addr, Be16};
use netpath_common::flow::ticks;
use netpath_common::layout::{self, Config, Count, Endpoint, Network, Rule, SIDE_UPLINK, Subnet, Uplink};
use netpath_common::reason::Reason;
use std::io::Write;
use std::net::IpAddr;
use std::process::{Command, Stdio};

pub type Mac = [u8; 6];

pub const HOST_MAC: Mac = [2, 0, 0, 0, 0, 1];
pub const CLIENT_MAC: Mac = [2, 0, 0, 0, 0, 2];
pub const BRIDGE_MAC: Mac = [2, 0, 0, 0, 0, 0x0b];
pub const OTHER_BRIDGE_MAC: Mac = [2, 0, 0, 0, 0, 0x0c];
pub const WEB_MAC: Mac = [2, 0, 0, 0, 7, 5];
pub const APP_MAC: Mac = [2, 0, 0, 0, 8, 5];

#[derive(Clone, Debug, PartialEq)]
pub enum L4 {
    Tcp {
        sport: u16,
        dport: u16,
        flags: u8,
    },
    Udp {
        sport: u16,
        dport: u16,
        zero_sum: bool,
    },
    /// Sixteen bytes with an arbitrary checksum.
    Sctp {
        sport: u16,
        dport: u16,
    },
    Echo {
        request: bool,
        id: u16,
    },
    /// An ICMP error; the payload is the quoted packet.
    Error {
        kind: u8,
        code: u8,
    },
    /// Any other protocol, by number; or a later fragment of one.
    Raw(u8),
}

/// A fragment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Piece {
    pub id: u16,
    /// In units of eight bytes.
    pub offset: u16,
    pub more: bool,
}

impl Piece {
    pub const FIRST: Self = Self { id: 7, offset: 0, more: true };
    pub const LAST: Self = Self { id: 7, offset: 4, more: false };
}

/// A frame as values; lengths and checksums are filled in by [`Frame::bytes`].
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub dmac: Mac,
    pub smac: Mac,
    pub tagged: bool,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    pub l4: L4,
    pub payload: Vec<u8>,
    /// IPv4 options, or IPv6 destination options headers, of this many four- or eight-byte units.
    pub options: usize,
    pub fragment: Option<Piece>,
    /// Sequence and acknowledgement numbers of a TCP segment; by default those of a connection without data: 1 and 0 of a SYN,
    /// else 2, and 2.
    pub numbers: Option<(u32, u32)>,
}

pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;
pub const FIN: u8 = 0x01;
pub const RST: u8 = 0x04;

impl Frame {
    pub fn new(src: IpAddr, dst: IpAddr, l4: L4) -> Self {
        let payload = b"payload".to_vec();
        Self {
            dmac: HOST_MAC,
            smac: CLIENT_MAC,
            tagged: false,
            src,
            dst,
            ttl: 64,
            l4,
            payload,
            options: 0,
            fragment: None,
            numbers: None,
        }
    }

    pub fn tcp(src: (IpAddr, u16), dst: (IpAddr, u16), flags: u8) -> Self {
        Self::new(src.0, dst.0, L4::Tcp { sport: src.1, dport: dst.1, flags })
    }

    pub fn udp(src: (IpAddr, u16), dst: (IpAddr, u16)) -> Self {
        Self::new(src.0, dst.0, L4::Udp { sport: src.1, dport: dst.1, zero_sum: false })
    }

    /// Sets the hardware addresses `to` and `from`.
    #[must_use]
    pub fn macs(mut self, to: Mac, from: Mac) -> Self {
        (self.dmac, self.smac) = (to, from);
        self
    }

    /// With these sequence and acknowledgement numbers.
    #[must_use]
    pub fn numbered(mut self, seq: u32, ack: u32) -> Self {
        self.numbers = Some((seq, ack));
        self
    }

    /// This frame one hop later, with other ends.
    #[must_use]
    pub fn becomes(&self, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Self {
        let mut f = self.clone();
        (f.src, f.dst) = (src.0, dst.0);
        f.ttl -= 1;
        match &mut f.l4 {
            L4::Tcp { sport, dport, .. } | L4::Udp { sport, dport, .. } | L4::Sctp { sport, dport } => {
                (*sport, *dport) = (src.1, dst.1);
            }
            L4::Echo { id, .. } => *id = src.1,
            L4::Raw(_) | L4::Error { .. } => {}
        }
        f
    }

    /// Without its Ethernet header, as quoted by an ICMP error.
    pub fn quoted(&self) -> Vec<u8> {
        self.bytes().split_off(14)
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = [self.dmac, self.smac].concat();
        if self.tagged {
            out.extend([0x81, 0x00, 0x00, 0x05]);
        }
        let v4 = self.src.is_ipv4();
        out.extend(if v4 { [0x08, 0x00] } else { [0x86, 0xdd] });
        let transport = self.transport(v4);
        out.extend(if v4 { self.header4(transport.len()) } else { self.header6(transport.len()) });
        out.extend(transport);
        out
    }

    fn proto(&self, v4: bool) -> u8 {
        match self.l4 {
            L4::Tcp { .. } => 6,
            L4::Udp { .. } => 17,
            L4::Sctp { .. } => 132,
            L4::Echo { .. } | L4::Error { .. } => {
                if v4 {
                    1
                } else {
                    58
                }
            }
            L4::Raw(n) => n,
        }
    }

    fn transport(&self, v4: bool) -> Vec<u8> {
        let mut t = Vec::new();
        let check_at = match self.l4 {
            L4::Tcp { sport, dport, flags } => {
                t.extend(sport.to_be_bytes());
                t.extend(dport.to_be_bytes());
                let own = if flags & SYN == 0 { 2_u32 } else { 1 };
                let (seq, ack) = self.numbers.unwrap_or((own, if flags & ACK == 0 { 0 } else { 2 }));
                t.extend(seq.to_be_bytes());
                t.extend(ack.to_be_bytes());
                t.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                Some(16)
            }
            L4::Udp { sport, dport, zero_sum } => {
                t.extend(sport.to_be_bytes());
                t.extend(dport.to_be_bytes());
                t.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                t.extend([0, 0]);
                if zero_sum { None } else { Some(6) }
            }
            L4::Echo { request, id } => {
                t.push(match (v4, request) {
                    (true, true) => 8,
                    (true, false) => 0,
                    (false, true) => 128,
                    (false, false) => 129,
                });
                t.extend([0, 0, 0]);
                t.extend(id.to_be_bytes());
                t.extend([0, 1]);
                Some(2)
            }
            L4::Sctp { sport, dport } => {
                t.extend(sport.to_be_bytes());
                t.extend(dport.to_be_bytes());
                t.extend([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 4]);
                None
            }
            L4::Error { kind, code } => {
                t.extend([kind, code, 0, 0, 0, 0, 0x05, 0x00]);
                Some(2)
            }
            L4::Raw(_) => None,
        };
        t.extend(&self.payload);
        if let Some(at) = check_at {
            let mut covered = Vec::new();
            if !(v4 && matches!(self.l4, L4::Echo { .. } | L4::Error { .. })) {
                covered.extend(octets(self.src));
                covered.extend(octets(self.dst));
                covered.extend((t.len() as u32).to_be_bytes());
                covered.extend(u32::from(self.proto(v4)).to_be_bytes());
            }
            covered.extend(&t);
            let mut sum = checksum(&covered);
            if matches!(self.l4, L4::Udp { .. }) && sum == 0 {
                sum = 0xffff;
            }
            t[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        t
    }

    fn header4(&self, len: usize) -> Vec<u8> {
        let header_len = 20 + self.options * 4;
        let mut h = vec![0x40 | (header_len / 4) as u8, 0];
        h.extend(((header_len + len) as u16).to_be_bytes());
        let piece = self.fragment.map(|p| (p.id, p.offset | if p.more { 0x2000 } else { 0 }));
        let (id, fragment) = piece.unwrap_or((0x1234, 0x4000));
        h.extend(id.to_be_bytes());
        h.extend(fragment.to_be_bytes());
        h.extend([self.ttl, self.proto(true), 0, 0]);
        h.extend(octets(self.src));
        h.extend(octets(self.dst));
        // "No operation".
        h.extend(vec![1; self.options * 4]);
        let sum = checksum(&h);
        h[10..12].copy_from_slice(&sum.to_be_bytes());
        h
    }

    fn header6(&self, len: usize) -> Vec<u8> {
        let mut chain: Vec<u8> = vec![60; self.options];
        if self.fragment.is_some() {
            chain.push(44);
        }
        chain.push(self.proto(false));
        let mut h = vec![0x60, 0, 0, 0];
        h.extend(((len + (chain.len() - 1) * 8) as u16).to_be_bytes());
        h.extend([chain[0], self.ttl]);
        h.extend(octets(self.src));
        h.extend(octets(self.dst));
        for pair in chain.windows(2) {
            match self.fragment {
                Some(piece) if pair[0] == 44 => {
                    let at = piece.offset << 3 | u16::from(piece.more);
                    h.extend([pair[1], 0]);
                    h.extend(at.to_be_bytes());
                    h.extend(u32::from(piece.id).to_be_bytes());
                }
                // A destination options header with one PadN.
                _ => h.extend([pair[1], 0, 1, 4, 0, 0, 0, 0]),
            }
        }
        h
    }
}

fn octets(a: IpAddr) -> Vec<u8> {
    match a {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

/// RFC 1071 §4.1.
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

pub fn mapped(a: IpAddr) -> Addr {
    match a {
        IpAddr::V4(a) => Addr::v4(a.octets()),
        IpAddr::V6(a) => Addr::v6(a.octets()),
    }
}

/// The result of a program run.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The program's return value. Classifiers: -1 to the stack, 2 dropped, 7 redirected. XDP: 2, 1 and 4.
    pub action: i32,
    pub packet: Vec<u8>,
    /// Packets counted, by reason.
    pub counted: Vec<(Reason, u64)>,
    /// Mean over the repetitions.
    pub took_ns: u128,
}

pub struct Lab {
    pub ebpf: Ebpf,
    pub uplink: u32,
    pub bridge: u32,
    pub other_bridge: u32,
    pub web: u32,
    pub app: u32,
    /// The allow list of the following publishes; 0 = all clients.
    pub allow: u32,
    /// The following packets stand for segments with this many bytes of payload; 0 = they are segments themselves.
    pub gso_size: u32,
}

/// The host's namespace as in [`crate::topology`], with two networks: 7 (web) and 8 (app).
const LINKS: &str = "link set lo up
link add eth0 address 02:00:00:00:00:01 type veth peer name eth0p
link add np7 address 02:00:00:00:00:0b type bridge
link add np8 address 02:00:00:00:00:0c type bridge
link add web type veth peer name webp
link add app type veth peer name appp
link set web master np7
link set app master np8
link set eth0p up
link set eth0 up
link set np7 up
link set np8 up
link set web up
link set webp up
link set app up
link set appp up
addr add 192.0.2.1/24 dev eth0
addr add 2001:db8:1::1/64 dev eth0 nodad
addr add 10.89.7.1/24 dev np7
addr add fd41:7::1/64 dev np7 nodad
addr add 10.89.8.1/24 dev np8
addr add fd41:8::1/64 dev np8 nodad
route add default via 192.0.2.2
route add default via 2001:db8:1::2 dev eth0
";

impl Lab {
    /// Moves the calling thread into a new network namespace and loads `programs` there. The test is ignored where it may not.
    ///
    /// # Errors
    /// The object is missing, or the kernel rejects it, a namespace or a link.
    pub fn new(programs: &[&str]) -> Result<Self> {
        need!(need::root(), need::bpf());
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("cannot unshare the network namespace")?;
        let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().context("cannot run ip")?;
        ip.stdin.take().context("no pipe to ip")?.write_all(LINKS.as_bytes())?;
        ensure!(ip.wait()?.success(), "ip cannot make the links");
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1")?;
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
        let index = |name: &str| nix::net::if_::if_nametoindex(name).with_context(|| format!("no link {name}"));
        let mut lab = Self {
            ebpf: load(VerifierLogLevel::STATS)?,
            uplink: index("eth0")?,
            bridge: index("np7")?,
            other_bridge: index("np8")?,
            web: index("web")?,
            app: index("app")?,
            allow: 0,
            gso_size: 0,
        };
        for name in programs {
            if let Err(e) = accept(lab.program(name)?) {
                return Err(e).with_context(|| format!("cannot load {name}; {}", explained(name)));
            }
        }
        lab.furnish()?;
        Ok(lab)
    }

    fn program(&mut self, name: &str) -> Result<&mut Program> {
        self.ebpf.program_mut(name).with_context(|| format!("no program {name}"))
    }

    fn furnish(&mut self) -> Result<()> {
        self.set_ports(61_000, 65_535)?;
        let (uplink, bridge, other) = (self.uplink, self.bridge, self.other_bridge);
        self.put(layout::name::UPLINK, uplink, Uplink { mtu: 1500, mac: HOST_MAC, ethernet: 1, ..Uplink::default() })?;
        for (n, index) in [(7u8, bridge), (8, other)] {
            self.set_network(n, index, layout::NET_MASQUERADE)?;
        }
        self.set_endpoints(0)?;
        for (owner, addresses) in [
            (uplink, ["192.0.2.1", "2001:db8:1::1"]),
            (bridge, ["10.89.7.1", "fd41:7::1"]),
            (other, ["10.89.8.1", "fd41:8::1"]),
        ] {
            for address in addresses {
                self.put(layout::name::LOCAL, mapped(address.parse()?), owner)?;
            }
        }
        Ok(())
    }

    /// Sets both containers, with `Endpoint::flags`.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn set_endpoints(&mut self, flags: u16) -> Result<()> {
        for (n, bridge, veth, mac, bridge_mac) in [
            (7u8, self.bridge, self.web, WEB_MAC, BRIDGE_MAC),
            (8, self.other_bridge, self.app, APP_MAC, OTHER_BRIDGE_MAC),
        ] {
            for address in [container(n, true), container(n, false)] {
                let endpoint = Endpoint { veth, bridge, mac, bridge_mac, mtu: 1500, flags, traffic: 10 };
                self.put(layout::name::ENDPOINT, mapped(address), endpoint)?;
            }
        }
        Ok(())
    }

    /// Sets network `n` on bridge `index`, with these flags.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn set_network(&mut self, n: u8, index: u32, flags: u32) -> Result<()> {
        let mut gateway6 = [0u8; 16];
        gateway6[..4].copy_from_slice(&[0xfd, 0x41, 0, n]);
        let net6 = gateway6;
        gateway6[15] = 1;
        let gateway4 = [10, 89, n, 1];
        let network = Network { flags, mtu: 1500, gateway4, gateway6, outbound4: [0; 4], outbound6: [0; 16] };
        self.put(layout::name::NETWORK, index, network)?;
        let mut trie: LpmTrie<_, [u8; 16], Subnet> =
            self.ebpf.map_mut(layout::name::SUBNET).context("no subnets")?.try_into()?;
        trie.insert(&Key::new(120, Addr::v4([10, 89, n, 0]).0), Subnet { bridge: index, flags }, 0)?;
        trie.insert(&Key::new(64, net6), Subnet { bridge: index, flags }, 0)?;
        let mut bits: Array<_, u64> = self.ebpf.map_mut(layout::name::SUBNET_HINTS).context("no bits")?.try_into()?;
        for address in [Addr::v4(gateway4), Addr::v6(gateway6)] {
            let (word, bit) = layout::subnet_hint(&address);
            let others = bits.get(&word, 0)?;
            bits.set(word, others | bit, 0)?;
        }
        Ok(())
    }

    /// # Errors
    /// The map cannot be written.
    pub fn set_ports(&mut self, port_min: u16, port_max: u16) -> Result<()> {
        let config = Config { netns_cookie: 0, port_min, port_max, lo_ifindex: 1 };
        let mut map: Array<_, Config> = self.ebpf.map_mut(layout::name::CONFIG).context("no config")?.try_into()?;
        Ok(map.set(0, config, 0)?)
    }

    /// # Errors
    /// The map cannot be written.
    pub fn put<K: Pod, V: Pod>(&mut self, map: &str, key: K, value: V) -> Result<()> {
        let mut map: HashMap<_, K, V> = self.ebpf.map_mut(map).context("no such map")?.try_into()?;
        Ok(map.insert(key, value, 0)?)
    }

    /// Publishes port `host_port` of `host` as port 80 of the container of network `n`, by rule number `at`.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn publish(&mut self, at: u32, host: Addr, host_port: u16, n: u8) -> Result<()> {
        let (IpAddr::V4(to4), IpAddr::V6(to6)) = (container(n, true), container(n, false)) else { return Ok(()) };
        for (proto, table, at) in [
            (layout::PROTO_TCP, layout::name::PORT_TCP, at),
            (layout::PROTO_UDP, layout::name::PORT_UDP, at + 1),
            (layout::PROTO_SCTP, layout::name::PORT_SCTP, at + 1_000),
        ] {
            let rule = Rule {
                host,
                to4: to4.octets(),
                to6: to6.octets(),
                host_port,
                container_port: if proto == layout::PROTO_SCTP { host_port } else { 80 },
                count: 1,
                allow: self.allow,
                traffic: 9,
                proto,
                bridge: if n == 7 { self.bridge } else { self.other_bridge },
                ..Rule::default()
            };
            let mut rules: Array<_, Rule> = self.ebpf.map_mut(layout::name::RULE).context("no rules")?.try_into()?;
            rules.set(at, rule, 0)?;
            let mut slots: Array<_, u32> = self.ebpf.map_mut(table).context("no ports")?.try_into()?;
            slots.set(u32::from(host_port), at, 0)?;
        }
        Ok(())
    }

    /// Admits `client` to the publishes with this list.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn allow(&mut self, list: u32, client: IpAddr, bits: u32) -> Result<()> {
        let map = self.ebpf.map_mut(layout::name::ALLOW).context("no lists")?;
        let mut trie: LpmTrie<_, layout::AllowKey, u32> = map.try_into()?;
        let key = layout::AllowKey { list: list.to_be_bytes(), client: mapped(client) };
        let bits = if client.is_ipv4() { 96 + bits } else { bits };
        Ok(trie.insert(&Key::new(32 + bits, key), 1, 0)?)
    }

    /// The value of the traffic counter `id`.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn traffic(&self, id: u32) -> Result<layout::Traffic> {
        let map: PerCpuArray<_, layout::Traffic> = self.ebpf.map(layout::name::TRAFFIC).context("none")?.try_into()?;
        let all = map.get(&id, 0)?;
        Ok(all.iter().fold(layout::Traffic::default(), |a, b| layout::Traffic {
            packets_in: a.packets_in + b.packets_in,
            bytes_in: a.bytes_in + b.bytes_in,
            packets_out: a.packets_out + b.packets_out,
            bytes_out: a.bytes_out + b.bytes_out,
        }))
    }

    /// Deletes all flows.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn forget(&mut self) -> Result<()> {
        fn clear<K: Pod, V: Pod>(lab: &mut Lab, name: &str) -> Result<()> {
            let mut map: HashMap<_, K, V> = lab.ebpf.map_mut(name).context("no flows")?.try_into()?;
            let keys: Vec<K> = map.keys().flatten().collect();
            for key in keys {
                map.remove(&key)?;
            }
            Ok(())
        }
        clear::<layout::FlowKey4, layout::Flow4>(self, layout::name::FLOW4)?;
        clear::<layout::FragmentKey4, u32>(self, layout::name::FRAG4)?;
        clear::<layout::FragmentKey6, u32>(self, layout::name::FRAG6)?;
        clear::<layout::FlowKey6, layout::Flow6>(self, layout::name::FLOW6)
    }

    /// Changes every half of a flow of a family; `change` gets its side and the host's port in it, if any; `false` deletes it.
    fn each_flow(&mut self, v4: bool, mut change: impl FnMut(u8, u16, &mut layout::Next) -> bool) -> Result<()> {
        let port =
            |side, dport: Be16, to_sport: Be16| if side == SIDE_UPLINK { dport.value() } else { to_sport.value() };
        if v4 {
            let map = self.ebpf.map_mut(layout::name::FLOW4).context("no flows")?;
            let mut map: HashMap<_, layout::FlowKey4, layout::Flow4> = map.try_into()?;
            let all: Vec<_> = map.iter().collect::<Result<_, _>>()?;
            for (key, mut flow) in all {
                let stays = change(key.side, port(key.side, key.dport, flow.sport), &mut flow.next);
                if stays { map.insert(key, flow, 0)? } else { map.remove(&key)? }
            }
        } else {
            let map = self.ebpf.map_mut(layout::name::FLOW6).context("no flows")?;
            let mut map: HashMap<_, layout::FlowKey6, layout::Flow6> = map.try_into()?;
            let all: Vec<_> = map.iter().collect::<Result<_, _>>()?;
            for (key, mut flow) in all {
                let stays = change(key.side, port(key.side, key.dport, flow.sport), &mut flow.next);
                if stays { map.insert(key, flow, 0)? } else { map.remove(&key)? }
            }
        }
        Ok(())
    }

    /// Deletes the halves of flows at `side`, as an LRU map does when it is full.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn lose_half(&mut self, v4: bool, side: u8) -> Result<()> {
        self.each_flow(v4, |at, _, _| at != side)
    }

    /// Clears the mark of a host port, as a sweep does that has seen no flow of it.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn lose_mark(&mut self, port: u16) -> Result<()> {
        let map = self.ebpf.map_mut(layout::name::NAT_PORT).context("no marks")?;
        let mut marks: Array<_, layout::NatPort> = map.try_into()?;
        Ok(marks.set(port.into(), layout::NatPort::default(), 0)?)
    }

    /// The forwarding of packets of the halves at `side`: `layout::FORWARD_*`.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn ways(&mut self, v4: bool, side: u8) -> Result<Vec<u8>> {
        let mut ways = Vec::new();
        self.each_flow(v4, |at, _, next| {
            ways.extend((at == side).then_some(next.forward));
            true
        })?;
        Ok(ways)
    }

    /// Deletes the flows whose answers arrive at `port` of the host.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn lose_flows_to(&mut self, v4: bool, port: u16) -> Result<()> {
        self.each_flow(v4, |_, at, _| at != port)
    }

    /// The next hops of the halves at `side`: interface and MTU.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn hops(&mut self, v4: bool, side: u8) -> Result<Vec<(u32, u16)>> {
        let mut hops = Vec::new();
        self.each_flow(v4, |at, _, next| {
            hops.extend((at == side).then_some((next.ifindex, next.mtu)));
            true
        })?;
        Ok(hops)
    }

    /// The states of the halves at `side`: `flow::*`.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn states(&mut self, v4: bool, side: u8) -> Result<Vec<u8>> {
        let mut states = Vec::new();
        self.each_flow(v4, |at, _, next| {
            states.extend((at == side).then_some(next.state));
            true
        })?;
        Ok(states)
    }

    /// Makes every flow `seconds` older.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn age_flows(&mut self, v4: bool, seconds: u32) -> Result<()> {
        self.age_by_ticks(v4, ticks(seconds))
    }

    /// Makes every flow `ticks` older: of `netpath_common::flow::TICK_NS` each.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn age_by_ticks(&mut self, v4: bool, ticks: u32) -> Result<()> {
        self.each_flow(v4, |_, _, next| {
            // Wrapping, as in the programs: a virtual machine may have run for less.
            next.last_seen = next.last_seen.wrapping_sub(ticks);
            true
        })
    }

    /// Dates every flow into the future, so that on a slow machine no tick passes between two packets that have to follow each
    /// other at once.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn keep_young(&mut self, v4: bool) -> Result<()> {
        self.each_flow(v4, |_, _, next| {
            next.last_seen += ticks(10);
            true
        })
    }

    /// Makes the flows of this family promoted ones of `epoch`, which the programs carry for `ticks`.
    ///
    /// # Errors
    /// The maps cannot be written.
    pub fn promote(&mut self, v4: bool, epoch: u32, until: i32) -> Result<()> {
        let (now, uplink, web) = (crate::maps::now(), self.uplink, self.web);
        self.each_flow(v4, |side, _, next| {
            // Not the first packet of its window.
            (next.serial, next.last_seen) = (epoch, now + 64);
            next.ack = if side == SIDE_UPLINK { uplink } else { web };
            true
        })?;
        self.trust(epoch, until)
    }

    /// The programs carry flows of `epoch` for so many ticks.
    ///
    /// # Errors
    /// The map is missing.
    pub fn trust(&mut self, epoch: u32, ticks: i32) -> Result<()> {
        let until = crate::maps::now().wrapping_add_signed(ticks);
        let map = self.ebpf.map_mut(layout::name::PROMOTION).context("no map")?;
        let mut map = Array::<_, layout::Promotion>::try_from(map)?;
        Ok(map.set(0, layout::Promotion { epoch, until, threshold: 64 }, 0)?)
    }

    /// The reported flows.
    ///
    /// # Errors
    /// The map is missing.
    pub fn reports(&mut self) -> Result<Vec<layout::Lasting>> {
        let map = self.ebpf.map_mut(layout::name::LASTING).context("no map")?;
        let mut ring = aya::maps::RingBuf::try_from(map)?;
        let mut all = Vec::new();
        while let Some(item) = ring.next() {
            all.push(layout::Lasting::read(&item).context("a record of another size")?);
        }
        Ok(all)
    }

    /// Adds a flow of the UDP packet `frame` that changes only its hop count, for measurements.
    ///
    /// # Errors
    /// The packet is not UDP, or the map cannot be written.
    pub fn add_flow_to_itself(&mut self, frame: &Frame, side: u8, forward: u8) -> Result<()> {
        let L4::Udp { sport, dport, .. } = frame.l4 else { anyhow::bail!("not UDP") };
        let (sport, dport) = (Be16::new(sport), Be16::new(dport));
        let next = layout::Next {
            ifindex: self.web,
            last_seen: crate::maps::now() + ticks(3),
            // A repeated run sees its own result.
            match_dmac: frame.dmac,
            next_hop_mac: frame.smac,
            mtu: 1500,
            forward,
            state: netpath_common::flow::REPLIED,
            ..layout::Next::default()
        };
        let (proto, pad) = (layout::PROTO_UDP, [0; 2]);
        match (frame.src, frame.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let (src, dst) = (src.octets(), dst.octets());
                let key = layout::FlowKey4 { src, dst, sport, dport, proto, side, pad };
                self.put(layout::name::FLOW4, key, layout::Flow4 { src, dst, sport, dport, next })
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let (src, dst) = (src.octets(), dst.octets());
                let key = layout::FlowKey6 { src, dst, sport, dport, proto, side, pad };
                self.put(layout::name::FLOW6, key, layout::Flow6 { src, dst, sport, dport, next })
            }
            _ => anyhow::bail!("two families in one packet"),
        }
    }

    fn counts(&self) -> Result<Vec<u64>> {
        let map: PerCpuArray<_, Count> = self.ebpf.map(layout::name::COUNT).context("no counters")?.try_into()?;
        Reason::ALL.iter().map(|r| Ok(map.get(&(*r as u32), 0)?.iter().map(|c| c.packets).sum())).collect()
    }

    /// Runs `program` over `packet`, received on the interface `ifindex`.
    ///
    /// # Errors
    /// The kernel rejects the run.
    pub fn run(&mut self, program: &str, ifindex: u32, packet: &[u8]) -> Result<Outcome> {
        self.run_repeated(program, [0, ifindex], packet, 1)
    }

    /// `indices`: the input interface (for egress), and the interface of the hook.
    ///
    /// # Errors
    /// The kernel rejects the run.
    pub fn run_repeated(&mut self, program: &str, indices: [u32; 2], packet: &[u8], repeat: u32) -> Result<Outcome> {
        let before = self.counts()?;
        let (result, out) = self.test_run(program, indices, packet, repeat)?;
        let after = self.counts()?;
        let moved = Reason::ALL.iter().zip(after.iter().zip(&before));
        Ok(Outcome {
            action: result.return_value as i32,
            packet: out,
            counted: moved.filter(|(_, (a, b))| a != b).map(|(r, (a, b))| (*r, a - b)).collect(),
            took_ns: result.duration.as_nanos(),
        })
    }

    /// The verdict of `program` on `packet`, without reading the counters: for runs by the ten thousand.
    ///
    /// # Errors
    /// The kernel rejects the run.
    pub fn action(&mut self, program: &str, ifindex: u32, packet: &[u8]) -> Result<i32> {
        Ok(self.test_run(program, [0, ifindex], packet, 1)?.0.return_value as i32)
    }

    /// Nanoseconds of one run over `packet`, which must end with `action`.
    ///
    /// # Errors
    /// The kernel rejects the run, or its verdict differs.
    pub fn time_once(&mut self, program: &str, ifindex: u32, packet: &[u8], action: i32) -> Result<u128> {
        let (result, _) = self.test_run(program, [0, ifindex], packet, 1)?;
        ensure!(result.return_value as i32 == action, "{program} ends with {}", result.return_value as i32);
        Ok(result.duration.as_nanos())
    }

    fn test_run(
        &mut self,
        program: &str,
        indices: [u32; 2],
        packet: &[u8],
        repeat: u32,
    ) -> Result<(TestRunResult, Vec<u8>)> {
        let gso_size = self.gso_size;
        let program = self.program(program)?;
        // include/uapi/linux/bpf.h, struct __sk_buff: ingress_ifindex at 36, ifindex at 40, gso_size at 176; struct xdp_md:
        // data_end at 4, ingress_ifindex at 12.
        let mut context = vec![0u8; if matches!(program, Program::Xdp(_)) { 24 } else { 192 }];
        let fields: &[(usize, u32)] = match program {
            Program::Xdp(_) => &[(4, packet.len() as u32), (12, indices[1])],
            _ => &[(36, indices[0]), (40, indices[1]), (176, gso_size)],
        };
        fields.iter().for_each(|(at, value)| context[*at..at + 4].copy_from_slice(&value.to_ne_bytes()));
        let mut out = vec![0u8; packet.len() + 64];
        let result = loop {
            let options = TestRunOptions {
                data_in: Some(packet),
                data_out: Some(&mut out),
                ctx_in: Some(&context),
                repeat,
                ..TestRunOptions::default()
            };
            let run = match program {
                Program::Xdp(p) => p.test_run(options),
                Program::SchedClassifier(p) => p.test_run(options),
                _ => anyhow::bail!("not a program of packets"),
            };
            // A signal, or the kernel's own work on the thread, ends a repeated run (net/bpf/test_run.c, bpf_test_timer_continue()).
            match run.map_err(anyhow::Error::from) {
                Err(e) if is_interrupted(&e) => {}
                done => break done?,
            }
        };
        out.truncate(result.data_size_out as usize);
        Ok((result, out))
    }
}

fn is_interrupted(e: &anyhow::Error) -> bool {
    let interrupted = |e: &std::io::Error| e.kind() == std::io::ErrorKind::Interrupted;
    e.chain().filter_map(|cause| cause.downcast_ref()).any(interrupted)
}

/// tc's verdicts: to the next program and the stack, redirected.
pub const STACK: i32 = -1;
pub const REDIRECTED: i32 = 7;

fn family(v4: bool) -> Family {
    if v4 { Family::V4 } else { Family::V6 }
}

pub fn host(v4: bool) -> IpAddr {
    family(v4).host()
}

pub fn client(v4: bool) -> IpAddr {
    family(v4).client()
}

pub fn outside(v4: bool) -> IpAddr {
    family(v4).outside()
}

pub fn gateway(n: u8, v4: bool) -> IpAddr {
    family(v4).gateway(n)
}

/// Host 5 of network `n`.
pub fn container(n: u8, v4: bool) -> IpAddr {
    family(v4).container(n, 5)
}
