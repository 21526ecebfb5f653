//! Which links have got a carrier since the last look.

use super::query::Link;
use crate::model::LinkKind;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

/// How often a link is told after it has got a carrier, and how far apart. The other end may need up to a second before it
/// answers and forwards (`net/core/link_watch.c` of another Linux, a switch), and an IPv6 address two until it can be used
/// (RFC 4862 §5.4: up to one at random, and one for answers).
const TIMES: u32 = 10;
const PAUSE: Duration = Duration::from_millis(250);

/// `None` before the first call.
#[derive(Default)]
pub struct Carriers(Option<HashMap<u32, Seen>>);

/// A link, when it was last seen to send.
#[derive(Clone, Copy)]
struct Seen {
    /// How many times it had got a carrier.
    count: u32,
    /// How often it is still to be told.
    left: u32,
    /// Not before.
    next: Instant,
}

impl Carriers {
    /// The links to be told of now, by ifindex: those that have got a carrier lately, also where they had lost it and got it
    /// back between two calls, and once, at the first call, all that have one. For the port of a bridge or bond it is that,
    /// which has the neighbours, and may have kept its own carrier.
    pub fn came(&mut self, links: &[Link], now: Instant) -> BTreeSet<u32> {
        let before = self.0.take();
        let vrfs: HashSet<u32> = links.iter().filter(|l| l.kind == LinkKind::Vrf).map(|l| l.index).collect();
        let (mut came, mut after) = (BTreeSet::new(), HashMap::new());
        for link in links {
            let master = link.master.filter(|index| !vrfs.contains(index));
            // A bridge has its carrier from its ports. A container's end is up before the other becomes a port: nothing was
            // asked through it.
            if link.kind == LinkKind::Bridge || master.is_some() && link.kind == LinkKind::Veth {
                continue;
            }
            let seen = before.as_ref().and_then(|b| b.get(&link.index));
            if !link.sends {
                after.extend(seen.map(|s| (link.index, Seen { left: 0, ..*s })));
                continue;
            }
            let mut seen = match seen {
                Some(seen) if seen.count == link.carriers => *seen,
                _ => Seen { count: link.carriers, left: if before.is_some() { TIMES } else { 1 }, next: now },
            };
            if seen.left > 0 && seen.next <= now {
                (seen.left, seen.next) = (seen.left - 1, now + PAUSE);
                came.insert(master.unwrap_or(link.index));
            }
            after.insert(link.index, seen);
        }
        self.0 = Some(after);
        came
    }

    /// When [`Carriers::came`] is to be called again, if no link changes before.
    pub fn due(&self) -> Option<Instant> {
        self.0.iter().flat_map(HashMap::values).filter(|seen| seen.left > 0).map(|seen| seen.next).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, sends: bool, carriers: u32) -> Link {
        Link {
            index,
            name: format!("eth{index}"),
            kind: LinkKind::Other,
            master: None,
            mtu: 1500,
            mac: None,
            driver: None,
            up: true,
            sends,
            carriers,
            group: 0,
            peer: None,
        }
    }

    fn told(carriers: &mut Carriers, links: &[Link], now: Instant) -> Vec<u32> {
        carriers.came(links, now).into_iter().collect()
    }

    /// Whether link 7 is told in each of these steps, a pause apart.
    fn steps(steps: &[(bool, u32, bool)]) {
        let (mut carriers, mut now) = (Carriers::default(), Instant::now());
        for (step, (sends, count, is_told)) in steps.iter().enumerate() {
            let came = carriers.came(&[link(7, *sends, *count)], now);
            assert_eq!(*is_told, !came.is_empty(), "step {step}");
            now += PAUSE;
        }
    }

    #[test]
    fn a_carrier_that_comes_is_told_so_many_times() {
        let often = [[(true, 2, true)].repeat(TIMES as usize), vec![(true, 2, false)]].concat();
        // The kernel counts it before the link can send.
        steps(&[vec![(false, 1, false), (false, 2, false)], often].concat());
    }

    #[test]
    fn one_that_was_there_before_the_first_call_is_told_once() {
        steps(&[(true, 2, true), (true, 2, false)]);
    }

    #[test]
    fn one_that_went_and_came_between_two_calls_is_told() {
        steps(&[(true, 2, true), (true, 2, false), (true, 4, true), (true, 4, true)]);
    }

    #[test]
    fn a_link_that_loses_its_carrier_again_is_not_waited_for() {
        let (mut carriers, now) = (new(), Instant::now());
        assert_eq!(vec![7], told(&mut carriers, &[link(7, true, 1)], now));
        assert_eq!(Some(now + PAUSE), carriers.due());
        assert!(told(&mut carriers, &[link(7, false, 1)], now).is_empty());
        assert_eq!(None, carriers.due());
        assert_eq!(vec![7], told(&mut carriers, &[link(7, true, 2)], now));
    }

    #[test]
    fn calls_in_between_use_nothing_up() {
        let (mut carriers, now) = (new(), Instant::now());
        assert_eq!(vec![7], told(&mut carriers, &[link(7, true, 1)], now));
        for _ in 0..10 {
            assert!(told(&mut carriers, &[link(7, true, 1)], now + PAUSE / 2).is_empty());
        }
        assert_eq!(vec![7], told(&mut carriers, &[link(7, true, 1)], now + PAUSE));
    }

    #[test]
    fn of_a_port_its_bridge_is_told_and_of_a_member_of_a_vrf_itself() {
        let bridge = Link { kind: LinkKind::Bridge, ..link(8, true, 1) };
        let vrf = Link { kind: LinkKind::Vrf, ..link(9, false, 1) };
        let [port, member, container] =
            [(2, 8), (3, 9), (4, 8)].map(|(index, of)| Link { master: Some(of), ..link(index, true, 1) });
        let container = Link { kind: LinkKind::Veth, ..container };
        let links = [container, bridge, member, port, vrf];
        assert_eq!(vec![3, 8], told(&mut new(), &links, Instant::now()));
        assert!(told(&mut new(), &links[..2], Instant::now()).is_empty());
    }

    /// That has seen no link so far.
    fn new() -> Carriers {
        Carriers(Some(HashMap::new()))
    }
}
