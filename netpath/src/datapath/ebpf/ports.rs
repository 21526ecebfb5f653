//! Synchronises the port arrays and their rules with the tables.
//!
//! A rule that a program can reach is never changed: a new one is written to an unreachable index, and then the
//! port's slot is stored, which atomically begins, changes or ends a publish. Unreachable rules stay in the array
//! until their index is needed.
//!
//! Most of these arrays are empty on most hosts, and every setup and teardown reads them: unused parts are neither
//! copied nor mapped.

use super::compile::Tables;
use super::maps::{self, Mapped, PinnedMap, Shape};
use super::pins::Pins;
use crate::model::error::{Error, Result};
use netpath_common::layout::{self, PortSlot, RULES, Rule};
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use zerocopy::IntoBytes;

const PORTS: usize = 65_536;
/// Ports per block; blocks are read and cached as a whole.
const BLOCK: usize = 512;
/// Rules per memory mapping.
const PART: u32 = 4_096;

pub(super) struct Ports {
    rules: Rules,
    slots: [Slots; 3],
}

impl Ports {
    /// # Errors
    /// An array is missing, or cannot be mapped into memory.
    pub(super) fn open(pins: &Pins) -> Result<Self> {
        Ok(Self {
            rules: Rules::open(pins)?,
            slots: [
                Slots::open(pins, layout::PROTO_TCP, &maps::PORT_TCP)?,
                Slots::open(pins, layout::PROTO_UDP, &maps::PORT_UDP)?,
                Slots::open(pins, layout::PROTO_SCTP, &maps::PORT_SCTP)?,
            ],
        })
    }

    /// Closes every port without a publish in `tables`.
    pub(super) fn withdraw(&self, tables: &Tables) -> usize {
        let mut changed = 0;
        for slots in &self.slots {
            let mut stays = vec![false; PORTS];
            for run in tables.slots.iter().filter(|r| r.proto == slots.proto) {
                stays[usize::from(run.first)..usize::from(run.first) + run.count as usize].fill(true);
            }
            // The cached content stays: a program may just have read the slot, so its rules count as reachable in
            // this run.
            for (port, _) in slots.occupied().filter(|(port, _)| !stays[*port]) {
                slots.map.write(port, &0);
                changed += 1;
            }
        }
        changed
    }

    /// Writes missing rules and sets the slots of their ports.
    ///
    /// # Errors
    /// The rules exceed the array, or a part of it cannot be mapped into memory.
    pub(super) fn publish(&mut self, tables: &Tables) -> Result<usize> {
        let (places, mut changed) = if let Some(done) = self.place(tables)? {
            done
        } else {
            // Old and new rules together exceed the array. The ports are closed briefly to free the old ones;
            // never if the new rules alone do not fit.
            if tables.rules.len() >= RULES as usize {
                return Err(too_many());
            }
            tracing::warn!("the rule map is full, all ports are closed briefly and published again");
            self.slots.iter_mut().for_each(Slots::close);
            self.place(tables)?.ok_or_else(too_many)?
        };
        for slots in &mut self.slots {
            let proto = slots.proto;
            for run in tables.slots.iter().filter(|r| r.proto == proto) {
                let (rule, first) = (places[run.rule], usize::from(run.first));
                for port in first..first + run.count as usize {
                    if slots.leads_to(port) != rule {
                        slots.lead(port, rule);
                        changed += 1;
                    }
                }
            }
        }
        Ok(changed)
    }

    /// The index of each rule of `tables` in the array, after writing missing ones. `None`: the array is full.
    fn place(&self, tables: &Tables) -> Result<Option<(Vec<u32>, usize)>> {
        let mut taken = vec![false; RULES as usize];
        taken[0] = true;
        let mut known: HashMap<[u8; 64], u32> = HashMap::new();
        for slots in &self.slots {
            let mut last = 0;
            for (_, slot) in slots.occupied() {
                if slot != last {
                    self.walk(slot, &mut taken, &mut known)?;
                    last = slot;
                }
            }
        }
        let (mut free, mut changed) = (1, 0);
        let mut places: Vec<u32> = Vec::with_capacity(tables.rules.len());
        for rule in &tables.rules {
            let mut rule = *rule;
            if rule.next != 0 {
                rule.next = places[rule.next as usize - 1];
            }
            let content = content(&rule);
            let place = if let Some(place) = known.get(&content) {
                *place
            } else {
                loop {
                    match taken.get(free as usize) {
                        None => return Ok(None),
                        Some(false) => break,
                        Some(true) => free += 1,
                    }
                }
                taken[free as usize] = true;
                self.rules.write(free, &rule)?;
                changed += 1;
                known.insert(content, free);
                free
            };
            places.push(place);
        }
        Ok(Some((places, changed)))
    }

    /// Collects all rules reachable from `index`. Terminates: each rule is visited once.
    fn walk(&self, mut index: u32, taken: &mut [bool], known: &mut HashMap<[u8; 64], u32>) -> Result<()> {
        while let Some(seen) = taken.get_mut(index as usize)
            && !*seen
        {
            *seen = true;
            let rule = self.rules.read(index)?;
            known.insert(content(&rule), index);
            index = rule.next;
        }
        Ok(())
    }
}

fn content(rule: &Rule) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes.copy_from_slice(rule.as_bytes());
    bytes
}

/// The port array of one protocol.
struct Slots {
    proto: u8,
    map: Mapped<PortSlot>,
    /// The content when opened, or as published since: the non-empty blocks, by number.
    blocks: BTreeMap<usize, Vec<u32>>,
}

impl Slots {
    fn open(pins: &Pins, proto: u8, shape: &Shape<u32, PortSlot>) -> Result<Self> {
        let map = PinnedMap::open(pins, shape)?.map(0, PORTS as u32)?;
        let used = (0..PORTS / BLOCK).filter(|block| !map.is_zero(block * BLOCK, BLOCK));
        let blocks = used.map(|block| (block, (0..BLOCK).map(|i| map.read(block * BLOCK + i)).collect())).collect();
        Ok(Self { proto, map, blocks })
    }

    /// The ports with a rule, and its index.
    fn occupied(&self) -> impl Iterator<Item = (usize, u32)> + '_ {
        let all =
            self.blocks.iter().flat_map(|(block, slots)| slots.iter().enumerate().map(move |s| (block * BLOCK, s)));
        all.filter(|(_, (_, rule))| **rule != 0).map(|(first, (i, rule))| (first + i, *rule))
    }

    fn leads_to(&self, port: usize) -> u32 {
        self.blocks.get(&(port / BLOCK)).map_or(0, |block| block[port % BLOCK])
    }

    fn lead(&mut self, port: usize, rule: u32) {
        self.map.write(port, &rule);
        self.blocks.entry(port / BLOCK).or_insert_with(|| vec![0; BLOCK])[port % BLOCK] = rule;
    }

    fn close(&mut self) {
        self.occupied().for_each(|(port, _)| self.map.write(port, &0));
        self.blocks.clear();
    }
}

/// The array of rules; the lowest indexes are used first.
struct Rules {
    map: PinnedMap<u32, Rule>,
    parts: Vec<OnceCell<Mapped<Rule>>>,
}

impl Rules {
    fn open(pins: &Pins) -> Result<Self> {
        let parts = (0..RULES.div_ceil(PART)).map(|_| OnceCell::new()).collect();
        Ok(Self { map: PinnedMap::open(pins, &maps::RULE)?, parts })
    }

    /// The mapping of `index`, which is below [`RULES`], and the position in it.
    fn part(&self, index: u32) -> Result<(&Mapped<Rule>, usize)> {
        let (part, place) = (index / PART, (index % PART) as usize);
        let cell = &self.parts[part as usize];
        if let Some(mapped) = cell.get() {
            return Ok((mapped, place));
        }
        let mapped = self.map.map(part * PART, PART)?;
        Ok((cell.get_or_init(|| mapped), place))
    }

    fn read(&self, index: u32) -> Result<Rule> {
        self.part(index).map(|(mapped, place)| mapped.read(place))
    }

    fn write(&self, index: u32, rule: &Rule) -> Result<()> {
        self.part(index).map(|(mapped, place)| mapped.write(place, rule))
    }
}

fn too_many() -> Error {
    Error::new("cannot publish all ports")
        .because(format!("the published ports need more than {} rules", RULES - 1))
        .next("publish ranges instead of single ports")
}
