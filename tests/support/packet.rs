//! Packets for `BPF_PROG_TEST_RUN`: a lab that runs single programs over the same maps, in a private network namespace (route and
//! socket lookups are real).

mod flows;
mod frame;

use crate::need;
pub use crate::object::{accept, explained, load};
use crate::topology::Family;
use anyhow::{Context, Result, ensure};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, PerCpuArray};
use aya::programs::{Program, SchedClassifier, TestRun, TestRunOptions, TestRunResult};
use aya::{Ebpf, Pod, VerifierLogLevel};
pub use frame::{ACK, FIN, Frame, L4, Piece, RST, SYN, checksum};
use netpath_common::addr::Addr;
use netpath_common::layout::{self, Config, Count, Endpoint, Network, Rule, Subnet, Uplink};
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
        for (slot, name) in [(0, layout::program::CARRY_IN), (1, layout::program::CARRY_OUT)] {
            if programs.contains(&name) {
                lab.leads_to(slot, name)?;
            }
        }
        lab.furnish()?;
        Ok(lab)
    }

    /// The programs that count hand packets to this one.
    fn leads_to(&mut self, slot: u32, name: &str) -> Result<()> {
        let program: &SchedClassifier = (&*self.program(name)?).try_into()?;
        let program = program.fd()?.try_clone()?;
        let map = self.ebpf.map_mut(layout::name::CARRY).context("no map")?;
        Ok(aya::maps::ProgramArray::try_from(map)?.set(slot, &program, 0)?)
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
