//! The flows in the maps of a lab: as time and a full map change them, and as the agent promotes them.

use super::{Frame, L4, Lab};
use anyhow::{Context, Result};
use aya::Pod;
use aya::maps::{Array, HashMap};
use netpath_common::addr::Be16;
use netpath_common::flow::ticks;
use netpath_common::layout::{self, SIDE_UPLINK};
use std::net::IpAddr;

impl Lab {
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
}
