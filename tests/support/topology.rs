//! client — host — container: namespaces joined by veth pairs, with documentation addresses as the outside world.
//!
//! ```text
//!   client                     host                              containers
//!   192.0.2.2  ───eth0─eth0─── 192.0.2.1, 192.0.2.10
//!   203.0.113.5 (lo)           198.51.100.1 ───eth1─eth0─── far 198.51.100.2   (with `far`)
//!                              198.51.100.1 ───tun0─tun0─── far 198.51.100.2   (with `tun` instead)
//!   198.51.100.1 ───eth1─eth0─── far 198.51.100.2                              (with `router`: the client is one)
//!              ──card1─card0──                                                 (with `cards`: without addresses)
//! ```
//! IPv6 likewise: 2001:db8:1::/64 to the client, 2001:db8:2::/64 to `far`, 2001:db8:ff::5 behind the client, which is the
//! host's default router in both families. Many topologies exist in parallel: all names contain pid and counter.

use crate::host::{Netns, SOON, wait_for};
use crate::tun::Wire;
use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Once};

pub const HOST4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
/// A second address of the host on the same uplink.
pub const HOST4_SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 10));
pub const CLIENT4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));
/// Beyond the client, reached by the host's default route.
pub const OUTSIDE4: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 5));
pub const HOST6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1));
pub const HOST6_SECOND: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x10));
pub const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2));
pub const OUTSIDE6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 5));
/// The host and its peer on the second uplink.
pub const HOST4_FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
pub const FAR4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 2));
pub const HOST6_FAR: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1));
pub const FAR6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 2));

/// The uplink of [`Topology::with_tun`].
pub const TUN: &str = "tun0";

/// The host's and the client's end of the wire of [`Topology::with_cards`].
pub const CARDS: [&str; 2] = ["card0", "card1"];
/// Locked by the one topology that uses the cards. The file stays: waiting processes have it open.
const CARDS_LOCK: &str = "/run/netpath-test.cards";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The value for this family.
    pub fn pick<T>(self, v4: T, v6: T) -> T {
        match self {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    pub fn host(self) -> IpAddr {
        self.pick(HOST4, HOST6)
    }

    pub fn host_second(self) -> IpAddr {
        self.pick(HOST4_SECOND, HOST6_SECOND)
    }

    pub fn client(self) -> IpAddr {
        self.pick(CLIENT4, CLIENT6)
    }

    pub fn outside(self) -> IpAddr {
        self.pick(OUTSIDE4, OUTSIDE6)
    }

    pub fn host_far(self) -> IpAddr {
        self.pick(HOST4_FAR, HOST6_FAR)
    }

    pub fn far(self) -> IpAddr {
        self.pick(FAR4, FAR6)
    }

    pub fn localhost(self) -> IpAddr {
        self.pick(Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into())
    }

    /// Host `host` of the network that [`crate::netavark::Network::dual`] numbers `n`.
    pub fn container(self, n: u8, host: u8) -> IpAddr {
        let v6 = Ipv6Addr::new(0xfd41, n.into(), 0, 0, 0, 0, 0, host.into());
        self.pick(Ipv4Addr::new(10, 89, n, host).into(), v6.into())
    }

    /// The bridge's own address in that network.
    pub fn gateway(self, n: u8) -> IpAddr {
        self.container(n, 1)
    }
}

/// Parent of the directories `<pid>-<counter>`, one per topology.
const ROOT: &str = "/run/netpath-test";
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// The private directory of a topology; removed with the last of its namespaces.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
        let _ = fs::remove_dir(ROOT);
    }
}

pub struct Topology {
    pub client: Netns,
    pub host: Netns,
    /// Dropped before the namespaces that it connects.
    wire: Option<Wire>,
    far: Option<Netns>,
    /// Released after the cards are back.
    cards: Option<Flock<File>>,
    containers: AtomicU32,
    dir: Arc<Dir>,
}

/// A container as an engine makes it: an empty namespace, and names.
pub struct Container {
    pub netns: Netns,
    /// 64 hexadecimal digits.
    pub id: String,
    pub name: String,
    _dir: Arc<Dir>,
}

impl std::ops::Deref for Container {
    type Target = Netns;
    fn deref(&self) -> &Netns {
        &self.netns
    }
}

impl Topology {
    /// Client and host, connected.
    ///
    /// # Errors
    /// Not root, or the kernel rejects a namespace or a link.
    pub fn new() -> Result<Self> {
        static SWEEP: Once = Once::new();
        SWEEP.call_once(sweep);

        let dir = Path::new(ROOT).join(format!("{}-{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed)));
        // Repeated where another test process has just removed the empty root.
        let made = (0..5).find_map(|_| fs::create_dir_all(&dir).ok());
        made.with_context(|| format!("cannot create {}: the tests need root", dir.display()))?;
        let dir = Arc::new(Dir(dir));
        fs::create_dir(dir.0.join("config"))?;
        let client = Netns::create(&dir.0.join("client"))?;
        let host = Netns::create(&dir.0.join("host"))?;
        fs::write(dir.0.join("cookie"), format!("{:x}", host.cookie()))?;

        outside(&client)?;
        host.ip(&format!(
            "link set lo up\nlink add eth0 type veth peer name eth0 netns {}\n",
            client.path().display()
        ))?;
        at_once(&host, "eth0")?;
        host.ip(&format!(
            "addr add {HOST4}/24 dev eth0\n\
             addr add {HOST4_SECOND}/24 dev eth0\n\
             addr add {HOST6}/64 dev eth0 nodad\n\
             addr add {HOST6_SECOND}/64 dev eth0 nodad preferred_lft 0\n\
             link set eth0 up\n\
             route add default via {CLIENT4}\n"
        ))?;
        client.ip(&format!(
            "link set lo up\n\
             addr add {OUTSIDE4}/32 dev lo\n\
             addr add {OUTSIDE6}/128 dev lo\n\
             addr add {CLIENT4}/24 dev eth0\n\
             addr add {CLIENT6}/64 dev eth0 nodad\n\
             link set eth0 up\n"
        ))?;
        // After the client is up: before, the address of the gateway would be tentative and the route rejected.
        host.ip(&format!("route add default via {CLIENT6} dev eth0\n"))?;
        for (netns, address) in [(&host, HOST6), (&host, HOST6_SECOND), (&client, CLIENT6)] {
            answers_for(netns, address)?;
        }
        for netns in [&host, &client] {
            sends(netns, "eth0")?;
        }
        Ok(Self { client, host, wire: None, far: None, cards: None, containers: AtomicU32::new(0), dir })
    }

    /// With a second uplink of the host to a namespace of its own.
    ///
    /// # Errors
    /// As [`Topology::new`].
    pub fn with_far() -> Result<Self> {
        let mut topology = Self::new()?;
        let far = Netns::create(&topology.dir.0.join("far"))?;
        outside(&far)?;
        topology.host.ip(&format!("link add eth1 type veth peer name eth0 netns {}\n", far.path().display()))?;
        at_once(&topology.host, "eth1")?;
        topology.host.ip(&format!(
            "addr add {HOST4_FAR}/24 dev eth1\n\
             addr add {HOST6_FAR}/64 dev eth1 nodad\n\
             link set eth1 up\n"
        ))?;
        far.ip(&format!(
            "link set lo up\n\
             addr add {FAR4}/24 dev eth0\n\
             addr add {FAR6}/64 dev eth0 nodad\n\
             link set eth0 up\n"
        ))?;
        answers_for(&topology.host, HOST6_FAR)?;
        answers_for(&far, FAR6)?;
        sends(&topology.host, "eth1")?;
        sends(&far, "eth0")?;
        topology.far = Some(far);
        Ok(topology)
    }

    /// `far` is behind the client, which is the router between it and the host, and which sends no packet larger than `narrow`
    /// towards `far`.
    ///
    /// # Errors
    /// As [`Topology::new`].
    pub fn with_router(narrow: Option<u16>) -> Result<Self> {
        let mut topology = Self::new()?;
        let far = Netns::create(&topology.dir.0.join("far"))?;
        outside(&far)?;
        let router = &topology.client;
        router.ip(&format!(
            "link add eth1 type veth peer name eth0 netns {}\n\
             addr add {HOST4_FAR}/24 dev eth1\n\
             addr add {HOST6_FAR}/64 dev eth1 nodad\n\
             link set eth1 up\n",
            far.path().display()
        ))?;
        far.ip(&format!(
            "link set lo up\n\
             addr add {FAR4}/24 dev eth0\n\
             addr add {FAR6}/64 dev eth0 nodad\n\
             link set eth0 up\n\
             route add default via {HOST4_FAR}\n"
        ))?;
        for sysctl in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
            router.set_sysctl(sysctl, "1")?;
        }
        answers_for(router, HOST6_FAR)?;
        answers_for(&far, FAR6)?;
        sends(router, "eth1")?;
        sends(&far, "eth0")?;
        far.ip(&format!("route add default via {HOST6_FAR} dev eth0\n"))?;
        // A locked MTU of a route applies to forwarded packets too; the device's MTU would affect the other end as well.
        if let Some(mtu) = narrow {
            router.ip(&format!(
                "route add {FAR4}/32 dev eth1 mtu lock {mtu}\nroute add {FAR6}/128 dev eth1 mtu lock {mtu}\n"
            ))?;
        }
        topology.far = Some(far);
        Ok(topology)
    }

    /// The host's link to the client carries packets of `mtu` bytes at most.
    ///
    /// # Errors
    /// The kernel rejects it.
    pub fn narrow_uplink(self, mtu: u16) -> Result<Self> {
        for netns in [&self.host, &self.client] {
            netns.ip(&format!("link set eth0 mtu {mtu}\n"))?;
        }
        Ok(self)
    }

    /// As [`Topology::with_far`], but the second uplink is a `tun` device with the MTU of a VPN.
    ///
    /// # Errors
    /// As [`Topology::new`], or the kernel has no tun.
    pub fn with_tun() -> Result<Self> {
        let mut topology = Self::new()?;
        let far = Netns::create(&topology.dir.0.join("far"))?;
        topology.wire = Some(Wire::between(&topology.host, &far, TUN)?);
        far.ip("link set lo up\n")?;
        for (netns, address4, address6) in [(&topology.host, HOST4_FAR, HOST6_FAR), (&far, FAR4, FAR6)] {
            netns.ip(&format!(
                "link set {TUN} mtu 1420 up\n\
                 addr add {address4}/24 dev {TUN}\n\
                 addr add {address6}/64 dev {TUN}\n"
            ))?;
            answers_for(netns, address6)?;
        }
        topology.far = Some(far);
        Ok(topology)
    }

    /// With the two network cards that tests may use, [`CARDS`], up and without addresses, beside the veths. Parallel tests
    /// wait until both cards are free.
    ///
    /// # Errors
    /// As [`Topology::new`], or there are no such cards.
    pub fn with_cards() -> Result<Self> {
        let macs = cards().context("NETPATH_CARDS does not name two network cards")?;
        let lock = File::create(CARDS_LOCK).with_context(|| format!("cannot create {CARDS_LOCK}"))?;
        let lock = Flock::lock(lock, FlockArg::LockExclusive).map_err(|(_, e)| e);
        let lock = lock.with_context(|| format!("cannot lock {CARDS_LOCK}"))?;
        let mut topology = Self::new()?;
        topology.cards = Some(lock);
        let own = Netns::own()?;
        let found = |mac: &String| wait_for(&format!("the network card {mac}"), SOON * 4, || with_mac(&own, mac));
        let names = [found(&macs[0])?, found(&macs[1])?];
        for ((netns, card), name) in topology.ends().into_iter().zip(names) {
            // Renamed before it moves: its name may be taken at the target.
            let there = netns.path().display();
            own.ip(&format!("link set {name} down\nlink set {name} name {card}\nlink set {card} netns {there}\n"))?;
            at_once(netns, card)?;
            netns.ip(&format!("link set {card} up\n"))?;
        }
        for (netns, card) in topology.ends() {
            sends(netns, card)?;
        }
        Ok(topology)
    }

    /// The ends of the wire between the cards. The host's goes back first, so that the client's takes no devices of this test's
    /// host with it.
    fn ends(&self) -> [(&Netns, &'static str); 2] {
        [(&self.host, CARDS[0]), (&self.client, CARDS[1])]
    }

    /// The namespace at the other end of the second uplink, or behind the router.
    ///
    /// # Panics
    /// Without [`Topology::with_far`], [`Topology::with_tun`] or [`Topology::with_router`].
    pub fn far(&self) -> &Netns {
        self.far.as_ref().unwrap_or_else(|| panic!("this topology has no far end"))
    }

    /// A new container named `name`, without links.
    ///
    /// # Errors
    /// The kernel rejects a namespace.
    pub fn container(&self, name: &str) -> Result<Container> {
        let n = self.containers.fetch_add(1, Ordering::Relaxed);
        let netns = Netns::create(&self.dir.0.join(format!("netns-{n}")))?;
        let id = format!("{:016x}{:08x}{n:040x}", self.host.cookie(), std::process::id());
        Ok(Container { netns, id, name: name.to_owned(), _dir: Arc::clone(&self.dir) })
    }

    /// The directory for `--config`.
    pub fn config_dir(&self) -> PathBuf {
        self.dir.0.join("config")
    }

    /// A directory for files of this topology.
    pub fn dir(&self) -> &Path {
        &self.dir.0
    }
}

/// Waits until an IPv6 address of a link that has just come up is usable (its local route exists).
///
/// # Errors
/// It has not within [`SOON`].
pub fn answers_for(netns: &Netns, address: IpAddr) -> Result<()> {
    let IpAddr::V6(address) = address else { return Ok(()) };
    let wanted: String = address.octets().iter().map(|b| format!("{b:02x}")).chain([" 80 ".to_owned()]).collect();
    wait_for(&format!("a local route for {address}"), SOON, || {
        let routes = netns.run(|| fs::read_to_string("/proc/thread-self/net/ipv6_route")).ok()?;
        routes.lines().any(|l| l.starts_with(&wanted)).then_some(())
    })
}

/// Makes a namespace represent other machines, whose links are in use already: their link-local addresses are valid at once.
/// During duplicate address detection (a second or two, RFC 4862 section 5.4), a router sends no solicitations for those it
/// forwards to, and three missing ones are enough for "No route to host".
fn outside(netns: &Netns) -> Result<()> {
    at_once(netns, "default")
}

/// The same for one link, so that links made by netpath keep their defaults.
fn at_once(netns: &Netns, link: &str) -> Result<()> {
    netns.set_sysctl(&format!("net/ipv6/conf/{link}/accept_dad"), "0")
}

/// Waits until a link that is up also sends. If its peer came up later, the kernel activates it from a work queue that runs
/// once a second (net/core/link_watch.c), later while namespaces are destroyed; until then it drops packets, and three
/// unanswered ARP requests are enough for "No route to host".
///
/// # Errors
/// It does not within [`SOON`] times four, or there is no such link.
pub fn sends(netns: &Netns, link: &str) -> Result<()> {
    wait_for(&format!("{link} to send"), SOON * 4, || {
        let links = netns.ip_json(&["link", "show", "dev", link]).ok()?;
        (links[0]["operstate"] == "UP" && links[0]["qdisc"] != "noop").then_some(())
    })
}

/// The hardware addresses of the two network cards that tests may use, which are connected to each other: `NETPATH_CARDS`, set
/// only in guests (xtask/src/vm/qemu.rs).
pub fn cards() -> Option<[String; 2]> {
    let text = std::env::var("NETPATH_CARDS").ok()?;
    let (first, second) = text.split_once(',')?;
    Some([first, second].map(str::to_owned))
}

/// The link's present name, set by the last test or the kernel.
fn with_mac(netns: &Netns, mac: &str) -> Option<String> {
    let links = netns.ip_json(&["link", "show"]).ok()?;
    let link = links.as_array()?.iter().find(|l| l["address"] == mac)?;
    link["ifname"].as_str().map(str::to_owned)
}

/// Returns a card to the namespace of the tests. The kernel does that too when it destroys the namespace, but later, and until
/// then devices on the card would conflict with the next test's.
fn give_back(netns: &Netns, card: &str) -> Result<()> {
    let links = netns.ip_json(&["link", "show"])?;
    let above = links.as_array().into_iter().flatten().filter(|l| l["link"] == card);
    for name in above.filter_map(|l| l["ifname"].as_str()) {
        netns.ip(&format!("link del {name}\n"))?;
    }
    netns.ip(&format!("link set {card} down\nlink set {card} netns {}\n", Netns::own()?.path().display()))
}

impl Drop for Topology {
    fn drop(&mut self) {
        remove_traces(&format!("{:x}", self.host.cookie()));
        if self.cards.is_some() {
            for (netns, card) in self.ends() {
                let _ = give_back(netns, card);
            }
        }
    }
}

/// Directories in which netpath keeps the state of the host namespace with this cookie.
pub fn state_dirs(cookie: &str) -> Vec<PathBuf> {
    let mut dirs = vec![Path::new("/run/netpath").join(cookie)];
    let versions = fs::read_dir("/sys/fs/bpf/netpath").into_iter().flatten().flatten();
    dirs.extend(versions.map(|v| v.path().join(cookie)));
    dirs
}

/// A test that failed half-way leaves records and pins; objects with this cookie have no other owner.
fn remove_traces(cookie: &str) {
    for dir in state_dirs(cookie) {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Removes leftovers of a killed test process: namespaces, records and pins.
fn sweep() {
    for entry in fs::read_dir(ROOT).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(pid) = name.split('-').next().and_then(|p| p.parse::<u32>().ok()) else { continue };
        if Path::new(&format!("/proc/{pid}")).exists() {
            continue;
        }
        if let Ok(cookie) = fs::read_to_string(entry.path().join("cookie"))
            && !cookie.is_empty()
        {
            remove_traces(&cookie);
        }
        for file in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
            let _ = nix::mount::umount2(&file.path(), nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(entry.path());
    }
}
