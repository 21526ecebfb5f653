//! Detects links that gained a carrier, so that neighbours can be resolved at once.

use super::query::Link;
use crate::model::LinkKind;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

/// How often a link is reported after it gained a carrier, and the interval. The other end may take a second until it
/// answers and forwards (`net/core/link_watch.c` on another Linux, a switch), and an IPv6 address two until it is usable
/// (RFC 4862 §5.4: a random delay of up to one second, and one second for answers).
const REPORTS: u32 = 10;
const PAUSE: Duration = Duration::from_millis(250);

/// By ifindex. `None` before the first call.
#[derive(Default)]
pub struct Carriers(Option<HashMap<u32, Seen>>);

/// A link as it was last seen with a carrier.
#[derive(Clone, Copy)]
struct Seen {
    /// Its [`Link::carriers`].
    count: u32,
    /// Reports that remain.
    left: u32,
    /// Earliest time of the next report.
    next: Instant,
}

impl Carriers {
    /// The links to report now, by ifindex: those that gained a carrier recently, even if they lost and regained it between
    /// two calls; at the first call, once, every link with a carrier. For a port of a bridge or bond its master is reported,
    /// which has the neighbours and may have kept its carrier.
    pub fn gained(&mut self, links: &[Link], now: Instant) -> BTreeSet<u32> {
        let before = self.0.take();
        let vrfs: HashSet<u32> = links.iter().filter(|l| l.kind == LinkKind::Vrf).map(|l| l.index).collect();
        let (mut gained, mut after) = (BTreeSet::new(), HashMap::new());
        for link in links {
            let master = link.master.filter(|index| !vrfs.contains(index));
            // A bridge derives its carrier from its ports. The veth of a container becomes a port after its peer is up, so
            // no request was lost through it.
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
                _ => Seen { count: link.carriers, left: if before.is_some() { REPORTS } else { 1 }, next: now },
            };
            if seen.left > 0 && seen.next <= now {
                (seen.left, seen.next) = (seen.left - 1, now + PAUSE);
                gained.insert(master.unwrap_or(link.index));
            }
            after.insert(link.index, seen);
        }
        self.0 = Some(after);
        gained
    }

    /// When the next report is due, if no link changes before.
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
            table: None,
            filters_vlans: false,
        }
    }

    fn reported(carriers: &mut Carriers, links: &[Link], now: Instant) -> Vec<u32> {
        carriers.gained(links, now).into_iter().collect()
    }

    /// Link 7 at intervals of [`PAUSE`]: whether it sends, its count of carriers, and whether it is reported.
    fn steps(steps: &[(bool, u32, bool)]) {
        let (mut carriers, mut now) = (Carriers::default(), Instant::now());
        for (step, (sends, count, is_reported)) in steps.iter().enumerate() {
            let gained = carriers.gained(&[link(7, *sends, *count)], now);
            assert_eq!(*is_reported, !gained.is_empty(), "step {step}");
            now += PAUSE;
        }
    }

    #[test]
    fn a_new_carrier_is_reported_a_fixed_number_of_times() {
        let often = [[(true, 2, true)].repeat(REPORTS as usize), vec![(true, 2, false)]].concat();
        // The kernel counts a carrier before the link can send.
        steps(&[vec![(false, 1, false), (false, 2, false)], often].concat());
    }

    #[test]
    fn a_carrier_from_before_the_first_call_is_reported_once() {
        steps(&[(true, 2, true), (true, 2, false)]);
    }

    #[test]
    fn a_carrier_lost_and_regained_between_two_calls_is_reported() {
        steps(&[(true, 2, true), (true, 2, false), (true, 4, true), (true, 4, true)]);
    }

    #[test]
    fn a_link_that_loses_its_carrier_is_not_reported_until_it_regains_it() {
        let (mut carriers, now) = (new(), Instant::now());
        assert_eq!(vec![7], reported(&mut carriers, &[link(7, true, 1)], now));
        assert_eq!(Some(now + PAUSE), carriers.due());
        assert!(reported(&mut carriers, &[link(7, false, 1)], now).is_empty());
        assert_eq!(None, carriers.due());
        assert_eq!(vec![7], reported(&mut carriers, &[link(7, true, 2)], now));
    }

    #[test]
    fn a_call_before_the_next_report_is_due_reports_nothing() {
        let (mut carriers, now) = (new(), Instant::now());
        assert_eq!(vec![7], reported(&mut carriers, &[link(7, true, 1)], now));
        for _ in 0..10 {
            assert!(reported(&mut carriers, &[link(7, true, 1)], now + PAUSE / 2).is_empty());
        }
        assert_eq!(vec![7], reported(&mut carriers, &[link(7, true, 1)], now + PAUSE));
    }

    #[test]
    fn a_bridge_is_reported_for_its_port_and_a_vrf_member_itself() {
        let bridge = Link { kind: LinkKind::Bridge, ..link(8, true, 1) };
        let vrf = Link { kind: LinkKind::Vrf, ..link(9, false, 1) };
        let [port, member, container] =
            [(2, 8), (3, 9), (4, 8)].map(|(index, of)| Link { master: Some(of), ..link(index, true, 1) });
        let container = Link { kind: LinkKind::Veth, ..container };
        let links = [container, bridge, member, port, vrf];
        assert_eq!(vec![3, 8], reported(&mut new(), &links, Instant::now()));
        assert!(reported(&mut new(), &links[..2], Instant::now()).is_empty());
    }

    /// After a first call without links.
    fn new() -> Carriers {
        Carriers(Some(HashMap::new()))
    }
}
