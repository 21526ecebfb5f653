//! Which links have got a carrier since the last look.

use super::view::Link;
use crate::model::LinkKind;
use std::collections::HashMap;

/// How often a link is told after it has got a carrier. The other end may need a moment more before it sends and forwards.
const TIMES: u32 = 3;

/// What was before the first look is nobody's news.
#[derive(Default)]
pub struct Carriers(Option<HashMap<u32, Seen>>);

/// A link, when it was last seen to send.
#[derive(Clone, Copy)]
struct Seen {
    /// How many times it had got a carrier.
    count: u32,
    /// How often it is still to be told.
    left: u32,
}

impl Carriers {
    /// The links that have got a carrier lately, also where they had lost it and got it back between two calls; by ifindex.
    /// Each is told in [`TIMES`] calls. Ports of a bridge or bond have no neighbours of their own; members of a VRF have.
    pub fn came(&mut self, links: &[Link]) -> Vec<u32> {
        let before = self.0.take();
        let mut now = HashMap::new();
        let is_vrf = |index| links.iter().any(|l| l.index == index && l.kind == LinkKind::Vrf);
        for link in links.iter().filter(|l| l.master.is_none_or(is_vrf)) {
            let seen = before.as_ref().and_then(|b| b.get(&link.index)).copied();
            if !link.sends {
                now.extend(seen.map(|s| (link.index, Seen { left: 0, ..s })));
                continue;
            }
            let left = match seen {
                Some(seen) if seen.count == link.carriers => seen.left.saturating_sub(1),
                _ if before.is_some() => TIMES,
                _ => 0,
            };
            now.insert(link.index, Seen { count: link.carriers, left });
        }
        let came = now.iter().filter(|(_, seen)| seen.left > 0).map(|(index, _)| *index).collect();
        self.0 = Some(now);
        came
    }

    /// A link is to be told once more.
    pub fn are_new(&self) -> bool {
        self.0.iter().flat_map(HashMap::values).any(|seen| seen.left > 1)
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

    #[test]
    fn a_carrier_that_comes_is_told_three_times() {
        let mut carriers = Carriers::default();
        let steps = [
            (true, 1, 0),
            (true, 1, 0),
            (false, 1, 0),
            // The kernel counts it before the link can send.
            (false, 2, 0),
            (true, 2, 3),
            (true, 2, 2),
            (true, 2, 1),
            (true, 2, 0),
            // Gone and back between two looks.
            (true, 5, 3),
            (true, 6, 3),
            (true, 6, 2),
        ];
        for (step, (sends, count, left)) in steps.into_iter().enumerate() {
            let came = carriers.came(&[link(7, sends, count)]);
            assert_eq!(if left > 0 { vec![7] } else { vec![] }, came, "step {step}");
            assert_eq!(left > 1, carriers.are_new(), "step {step}");
        }
    }

    #[test]
    fn a_link_that_is_new_is_told_and_a_port_is_not() {
        let mut carriers = Carriers::default();
        assert!(carriers.came(&[link(1, true, 1)]).is_empty());
        let bridge = Link { kind: LinkKind::Bridge, ..link(8, false, 1) };
        let vrf = Link { kind: LinkKind::Vrf, ..link(9, false, 1) };
        let [port, member] = [(2, 8), (3, 9)].map(|(index, of)| Link { master: Some(of), ..link(index, true, 1) });
        assert_eq!(vec![3], carriers.came(&[link(1, true, 1), port, member, bridge, vrf]));
        // An ifindex that is used again.
        assert!(carriers.came(&[link(1, true, 1)]).is_empty());
        assert_eq!(vec![3], carriers.came(&[link(1, true, 1), link(3, true, 1)]));
    }

    #[test]
    fn a_link_that_loses_its_carrier_again_is_not_waited_for_and_told_when_it_is_back() {
        let mut carriers = Carriers::default();
        for (sends, count, told) in [(true, 1, false), (true, 2, true), (false, 2, false), (true, 3, true)] {
            assert_eq!(told, !carriers.came(&[link(7, sends, count)]).is_empty(), "{count}");
            assert_eq!(told, carriers.are_new(), "{count}");
        }
    }
}
