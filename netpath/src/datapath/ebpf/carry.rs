//! Programs and maps that carry promoted flows, on a host whose netfilter translates. They belong to the agent and end with it:
//! without it nothing is carried, since the rules of the host might change unseen.
//!
//! The programs are TCX links of this process where the kernel has TCX (6.6), else filters. A filter that outlives the process
//! carries nothing (`Promotion::until`). A container's veth gets its program with its first promoted flow: attaching waits for all
//! processors, and a new clsact qdisc may cost a running container a packet (`net/sched/sch_api.c, qdisc_graft()`).

use super::attach::{FILTERS, QDISC};
use super::clsact::Tc;
use super::compile::{Tables, compile};
use super::expire::now;
use super::loader::{self, Families};
use super::maps::Flows;
use super::pins::Pins;
use super::sys;
use super::take_over::Host;
use crate::datapath::connection::{Connection, Direction};
use crate::datapath::promote::{Carry, Ends, Keys, MOST_CARRIED, NextHop};
use crate::model::error::{Context, Error, Result};
use crate::model::{Desired, HostView, TranslationPath};
use aya::maps::{Array, HashMap, MapData, ProgramArray, RingBuf};
use aya::programs::{ProgramFd, SchedClassifier, TcAttachType};
use netpath_common::addr::Addr;
use netpath_common::family::{Ipv4, Ipv6};
use netpath_common::layout::{
    ETHERNET, FORWARD_LINK, Flow4, Flow6, FlowKey4, FlowKey6, Lasting, METERS, Promotion, SIDE_BRIDGE, SIDE_UPLINK,
    Uplink, is_outward, name, program,
};
use netpath_common::nat_plan::NewFlow;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const ENTRIES: u32 = 4 * MOST_CARRIED as u32;
/// Bytes of reports that wait for the agent.
const REPORTS: u32 = 64 * 1_024;
/// The programs for uplinks and for veths.
const IN: usize = 0;
const OUT: usize = 1;
/// How long programs carry without news of the agent, in ticks: 0.94 s.
const TRUST: u32 = 7;

struct Carrier {
    families: Families,
    /// Of the programs at sockets: marks there let a command remove filters of an agent that was killed.
    pins: Pins,
    promotion: Array<MapData, Promotion>,
    reports: RingBuf<MapData>,
    uplinks: HashMap<MapData, u32, Uplink>,
    flows4: HashMap<MapData, FlowKey4, Flow4>,
    flows6: HashMap<MapData, FlowKey6, Flow6>,
    /// Those that are attached, with their numbers in the kernel.
    programs: [(ProgramFd, u32); 2],
    /// Those that they lead to. Without this descriptor the kernel empties the array, so they end with the agent.
    _carry: ProgramArray<MapData>,
    links: BTreeMap<u32, OwnedFd>,
    /// Interfaces with a filter of this process, and whether it made their qdisc.
    filters: BTreeMap<u32, bool>,
    tc: Tc,
    scene: Scene,
}

/// The tables of the host's containers, by which flows are planned.
#[derive(Default)]
struct Scene {
    tables: Tables,
    /// Interfaces of containers with a network whose packets netfilter has to see all.
    excluded: BTreeSet<u32>,
}

impl Scene {
    fn of(desired: &Desired, host: &HostView) -> Self {
        let excluded = desired.bridged().filter(|(r, _)| r.network.path == TranslationPath::Kernel);
        Self { tables: compile(desired, host), excluded: excluded.map(|(_, links)| links.veth_index).collect() }
    }

    fn ends(&self, connection: &Connection, route: &dyn Fn(u32, IpAddr, IpAddr) -> Option<u32>) -> Option<Ends> {
        match connection.original.source {
            IpAddr::V4(_) => self.ends_of(&self.plan::<Ipv4>(connection, route, v4)?),
            IpAddr::V6(_) => self.ends_of(&self.plan::<Ipv6>(connection, route, v6)?),
        }
    }

    fn ends_of<F: Flows>(&self, plan: &NewFlow<F>) -> Option<Ends> {
        let (inside, outside, is_begun_inside) = match (plan.side, plan.reverse_side) {
            (SIDE_UPLINK, SIDE_BRIDGE) => (&plan.there, &plan.back, false),
            (SIDE_BRIDGE, SIDE_UPLINK) => (&plan.back, &plan.there, true),
            _ => return None,
        };
        let bridge = self.tables.endpoints.values().find(|e| e.veth == inside.ifindex)?.bridge;
        if self.excluded.contains(&inside.ifindex) {
            return None;
        }
        let is_ethernet = self.tables.uplinks.get(&outside.ifindex).is_some_and(|u| u.ethernet == ETHERNET);
        is_ethernet.then_some(Ends { uplink: outside.ifindex, veth: inside.ifindex, bridge, is_begun_inside })
    }

    fn plan<F: Flows>(
        &self,
        connection: &Connection,
        route: &dyn Fn(u32, IpAddr, IpAddr) -> Option<u32>,
        address: impl Fn(IpAddr) -> Option<F::Addr>,
    ) -> Option<NewFlow<F>> {
        Host::new(&self.tables, route).plan::<F>(connection, &address)
    }

    fn uplinks(&self) -> impl Iterator<Item = (u32, &Uplink)> {
        self.tables.uplinks.iter().filter(|(_, u)| u.ethernet == ETHERNET).map(|(index, uplink)| (*index, uplink))
    }

    fn has(&self, index: u32) -> bool {
        self.tables.uplinks.contains_key(&index) || self.tables.endpoints.values().any(|e| e.veth == index)
    }
}

/// Loads the programs, attached to nothing.
pub(super) fn load(host: u64, desired: &Desired) -> Result<Box<dyn Carry>> {
    let what = || "cannot prepare the promotion of flows".to_owned();
    let entries = [
        (name::CONFIG, 1),
        (name::UPLINK, netpath_common::layout::UPLINKS),
        (name::FLOW4, ENTRIES),
        (name::FLOW6, ENTRIES),
        (name::METER, METERS),
        (name::LASTING, REPORTS),
    ];
    let families = Families::of_networks(desired);
    let mut ebpf = loader::load_unpinned(families, &entries)?;
    let mut programs = Vec::new();
    for name in [program::COUNT_IN, program::COUNT_OUT, program::CARRY_IN, program::CARRY_OUT] {
        let missing = || Error::new(what()).because(format!("the object lacks {name}"));
        let program: &mut SchedClassifier = ebpf.program_mut(name).ok_or_else(missing)?.try_into().context(what)?;
        program.load().context(what)?;
        let info = program.info().context(what)?;
        programs.push((program.fd().context(what)?.try_clone().context(what)?, info.id()));
    }
    let mut map =
        |name: &str| ebpf.take_map(name).ok_or_else(|| Error::new(what()).because(format!("the object lacks {name}")));
    let mut carry: ProgramArray<MapData> = map(name::CARRY)?.try_into().context(what)?;
    for (slot, (program, _)) in (0..).zip(programs.drain(2..)) {
        carry.set(slot, &program, 0).context(what)?;
    }
    let programs = programs.try_into().map_err(|_| Error::new(what()))?;
    Ok(Box::new(Carrier {
        families,
        pins: Pins::of(host),
        promotion: map(name::PROMOTION)?.try_into().context(what)?,
        reports: map(name::LASTING)?.try_into().context(what)?,
        uplinks: map(name::UPLINK)?.try_into().context(what)?,
        flows4: map(name::FLOW4)?.try_into().context(what)?,
        flows6: map(name::FLOW6)?.try_into().context(what)?,
        programs,
        _carry: carry,
        links: BTreeMap::new(),
        filters: BTreeMap::new(),
        tc: Tc::open()?,
        scene: Scene::default(),
    }))
}

impl Carrier {
    fn promote_until(&mut self, until: u32, epoch: u32, threshold: u32) -> Result<()> {
        let value = Promotion { epoch, until, threshold };
        self.promotion.set(0, value, 0).context(|| "cannot extend the promotion of flows".to_owned())
    }

    fn hook(&mut self, index: u32, program: usize) -> io::Result<()> {
        if self.links.contains_key(&index) || self.filters.contains_key(&index) {
            return Ok(());
        }
        match sys::link_create(&self.programs[program].0, index, sys::TCX_INGRESS) {
            Ok(link) => {
                self.links.insert(index, link);
                Ok(())
            }
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => Ok(()),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => self.filter(index, program),
            Err(e) => Err(e),
        }
    }

    fn filter(&mut self, index: u32, program: usize) -> io::Result<()> {
        let names = [program::COUNT_IN, program::COUNT_OUT];
        let is_gone = |e: &io::Error| e.raw_os_error() == Some(libc::ENODEV);
        let made = match self.tc.add_qdisc(index) {
            Err(e) if is_gone(&e) => return Ok(()),
            other => other?,
        };
        match self.tc.set_filter(index, false, &self.programs[program].0, names[program]) {
            Err(e) if is_gone(&e) => return Ok(()),
            other => other?,
        }
        self.filters.insert(index, made);
        for mark in self.marks(index, made).into_iter().filter(|_| self.pins.exist()) {
            self.pins.mark(&mark).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn marks(&self, index: u32, made: bool) -> Vec<String> {
        let qdisc = made.then(|| format!("{QDISC}{index}"));
        [format!("{FILTERS}{index}")].into_iter().chain(qdisc).collect()
    }

    /// Another datapath may have put its own program there.
    fn remove_filter(&mut self, index: u32) {
        let Some(made) = self.filters.remove(&index) else { return };
        let ids = [self.programs[0].1, self.programs[1].1];
        let is_own = |id: Option<u32>| id.is_some_and(|id| ids.contains(&id));
        if self.tc.our_filter(index, false).is_ok_and(|f| f.is_some_and(|f| is_own(f.prog_id))) {
            let removed = self.tc.remove_filter(index, false);
            if let Err(e) =
                removed.and_then(|()| if made { self.tc.remove_qdisc_if_empty(index).map(drop) } else { Ok(()) })
            {
                tracing::debug!("a filter of interface {index} stays: {e}");
                return;
            }
            for mark in self.marks(index, made).into_iter().filter(|mark| self.pins.has_mark(mark)) {
                let _ = self.pins.unmark(&mark);
            }
        }
    }
}

impl Carry for Carrier {
    fn is_for(&self, desired: &Desired) -> bool {
        self.families == Families::Both || Families::of_networks(desired) == self.families
    }

    fn reports(&self) -> BorrowedFd<'_> {
        self.reports.as_fd()
    }

    fn report(&mut self) -> Option<(u8, Direction, u32)> {
        let lasting = Lasting::read(&self.reports.next()?)?;
        let direction = Direction {
            source: address(lasting.src),
            destination: address(lasting.dst),
            source_port: lasting.sport.value(),
            destination_port: lasting.dport.value(),
        };
        Some((lasting.proto, direction, lasting.ifindex))
    }

    fn now(&self) -> Result<u32> {
        now()
    }

    fn trust(&mut self, since: u32, epoch: u32, threshold: u32) -> Result<()> {
        self.promote_until(since.wrapping_add(TRUST), epoch, threshold)
    }

    fn doubt(&mut self, epoch: u32, threshold: u32) -> Result<()> {
        self.promote_until(now()?, epoch, threshold)
    }

    fn attach(&mut self, desired: &Desired, host: &HostView) -> Result<()> {
        let scene = Scene::of(desired, host);
        let what = || "cannot attach the programs that carry flows".to_owned();
        let known: Vec<u32> = self.uplinks.keys().filter_map(|k| k.ok()).collect();
        for gone in known.iter().filter(|index| !scene.has(**index)) {
            let _ = self.uplinks.remove(gone);
        }
        self.links.retain(|index, _| scene.has(*index));
        for gone in self.filters.keys().copied().filter(|index| !scene.has(*index)).collect::<Vec<_>>() {
            self.remove_filter(gone);
        }
        for (index, uplink) in scene.uplinks() {
            self.uplinks.insert(index, uplink, 0).context(what)?;
            self.hook(index, IN).context(what)?;
        }
        self.scene = scene;
        Ok(())
    }

    fn ends(&self, connection: &Connection, route: &dyn Fn(u32, IpAddr, IpAddr) -> Option<u32>) -> Option<Ends> {
        self.scene.ends(connection, route)
    }

    fn beside_others<'a>(&self, names: [&'a str; 3]) -> Option<&'a str> {
        let own = [self.programs[0].1, self.programs[1].1];
        let has_others = |name: &&str| {
            [TcAttachType::Ingress, TcAttachType::Egress].into_iter().any(|place| {
                // A kernel without TCX has none.
                SchedClassifier::query_tcx(name, place)
                    .is_ok_and(|(_, programs)| programs.iter().any(|program| !own.contains(&program.id())))
            })
        };
        names.into_iter().find(has_others)
    }

    fn promote(&mut self, connection: &Connection, hop: NextHop, ends: &Ends, epoch: u32) -> Result<Option<Keys>> {
        let what = || "cannot attach the program that carries flows of a container".to_owned();
        self.hook(ends.veth, OUT).context(what)?;
        let route = |_, _, _| Some(hop.ifindex);
        Ok(match connection.original.source {
            IpAddr::V4(_) => match self.scene.plan::<Ipv4>(connection, &route, v4) {
                Some(plan) => Some(Keys::V4(add::<Ipv4>(&mut self.flows4, plan, hop, ends, epoch)?)),
                None => None,
            },
            IpAddr::V6(_) => match self.scene.plan::<Ipv6>(connection, &route, v6) {
                Some(plan) => Some(Keys::V6(add::<Ipv6>(&mut self.flows6, plan, hop, ends, epoch)?)),
                None => None,
            },
        })
    }

    fn idle(&self, keys: &Keys) -> Option<u32> {
        let now = now().ok()?;
        let seen = match keys {
            Keys::V4([one, other]) => {
                [self.flows4.get(one, 0).ok()?.next.last_seen, self.flows4.get(other, 0).ok()?.next.last_seen]
            }
            Keys::V6([one, other]) => {
                [self.flows6.get(one, 0).ok()?.next.last_seen, self.flows6.get(other, 0).ok()?.next.last_seen]
            }
        };
        seen.into_iter().map(|seen| now.saturating_sub(seen)).min()
    }

    fn demote(&mut self, keys: &Keys) {
        match keys {
            Keys::V4(keys) => keys.iter().for_each(|key| drop(self.flows4.remove(key))),
            Keys::V6(keys) => keys.iter().for_each(|key| drop(self.flows6.remove(key))),
        }
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        for index in self.filters.keys().copied().collect::<Vec<_>>() {
            self.remove_filter(index);
        }
    }
}

fn add<F: Flows>(
    map: &mut HashMap<MapData, F::Key, F::Flow>,
    mut plan: NewFlow<F>,
    via: NextHop,
    ends: &Ends,
    epoch: u32,
) -> Result<[F::Key; 2]>
where
    F::Key: aya::Pod,
    F::Flow: aya::Pod,
{
    let what = || "cannot write a promoted flow".to_owned();
    plan.serial = epoch;
    let now = now()?;
    for hop in [&mut plan.there, &mut plan.back].into_iter().filter(|hop| is_outward(hop.forward)) {
        (hop.forward, hop.next_hop_mac) = (FORWARD_LINK, via.mac);
        hop.mtu = hop.mtu.min(via.mtu.unwrap_or(u16::MAX));
    }
    let keys = [plan.key(), plan.reverse_key()];
    let (mut there, mut back) = (plan.flow(now), plan.reverse(now));
    let (from, to) = if ends.is_begun_inside { (ends.veth, ends.uplink) } else { (ends.uplink, ends.veth) };
    (F::next_mut(&mut there).ack, F::next_mut(&mut back).ack) = (from, to);
    map.insert(keys[1], back, 0).context(what)?;
    map.insert(keys[0], there, 0).context(what)?;
    Ok(keys)
}

fn v4(address: IpAddr) -> Option<[u8; 4]> {
    if let IpAddr::V4(a) = address { Some(a.octets()) } else { None }
}

fn v6(address: IpAddr) -> Option<[u8; 16]> {
    if let IpAddr::V6(a) = address { Some(a.octets()) } else { None }
}

fn address(mapped: Addr) -> IpAddr {
    IpAddr::from(mapped.0).to_canonical()
}
