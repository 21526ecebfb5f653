//! Endpoints that were torn down a moment ago. Their connections stay for a while, since an engine reloads a network by a teardown
//! and a setup of the same container.

use super::{Desired, Publish, Record};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How much longer connections wait while the container is in setup.
const SETUP_LIMIT: Duration = Duration::from_secs(30);

/// Identifies a namespace while it exists: device and inode of its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NetnsId {
    pub device: u64,
    pub inode: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Departed {
    pub container: String,
    pub netns: NetnsId,
    pub addresses: Vec<IpAddr>,
    pub publishes: Vec<Publish>,
    /// When its connections end.
    pub until: SystemTime,
}

impl Departed {
    fn is(&self, record: &Record, netns: &dyn Fn(&Path) -> Option<NetnsId>) -> bool {
        record.container.id == self.container && netns(&record.netns) == Some(self.netns)
    }

    fn shares_address(&self, record: &Record) -> bool {
        record.endpoint.addresses.iter().any(|a| self.addresses.contains(&a.addr()))
    }

    fn shares_port(&self, record: &Record) -> bool {
        self.publishes.iter().any(|old| record.publishes.iter().any(|new| old.overlaps(new)))
    }
}

/// The container addresses of departed endpoints.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Departures {
    /// The same container may still come back.
    pub waiting: BTreeSet<IpAddr>,
    /// Its time is over, or another endpoint has the address or a port.
    pub ended: BTreeSet<IpAddr>,
    /// The same container has the address again, in the same namespace.
    pub back: BTreeSet<IpAddr>,
}

impl Departures {
    /// Sorts `all`, and keeps in it those that wait. `netns`: the namespace with this path, if it exists.
    pub fn sort(
        all: &mut Vec<Departed>,
        desired: &Desired,
        now: SystemTime,
        netns: &dyn Fn(&Path) -> Option<NetnsId>,
    ) -> Self {
        let mut sorted = Self::default();
        all.retain(|departed| {
            let served = desired.records.iter().filter(|r| r.network.bridge().is_some());
            let (own, others): (Vec<_>, Vec<_>) = served.partition(|r| departed.is(r, netns));
            let is_coming = own.iter().any(|r| r.links.is_none()) && now < departed.until + SETUP_LIMIT;
            let is_back = own.iter().any(|r| r.links.is_some() && departed.shares_address(r));
            let mut others = others.into_iter().filter(|r| r.links.is_some());
            let is_replaced = others.any(|r| departed.shares_address(r) || departed.shares_port(r));
            let waits = !is_back && !is_replaced && (is_coming || now < departed.until);
            for address in &departed.addresses {
                let has = |r: &&Record| r.links.is_some() && r.endpoint.addresses.iter().any(|a| a.addr() == *address);
                let addresses = match waits {
                    true => &mut sorted.waiting,
                    false if own.iter().any(has) => &mut sorted.back,
                    false => &mut sorted.ended,
                };
                addresses.insert(*address);
            }
            waits
        });
        sorted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::HostBind;
    use crate::model::fixtures::{record, tcp};
    use std::time::Duration;

    #[test]
    fn only_the_same_container_in_the_same_namespace_gets_its_connections_back() {
        let now = SystemTime::now();
        let netns = |path: &Path| Some(NetnsId { device: 4, inode: path.to_str()?.len() as u64 });
        let departed = |container: &str| Departed {
            container: container.into(),
            netns: netns(Path::new("/nowhere")).expect("a namespace"),
            addresses: vec!["10.88.0.2".parse().expect("an address")],
            publishes: vec![tcp(HostBind::Any, 8080, 80, 1)],
            until: now + Duration::from_secs(1),
        };
        let sorted = |container: &str, records: Vec<Record>, after: u64| {
            let mut all = vec![departed(container)];
            let sorted = Departures::sort(&mut all, &Desired { records }, now + Duration::from_secs(after), &netns);
            assert_eq!(!sorted.waiting.is_empty(), !all.is_empty());
            match (sorted.waiting.len(), sorted.ended.len(), sorted.back.len()) {
                (1, 0, 0) => "waiting",
                (0, 1, 0) => "ended",
                (0, 0, 1) => "back",
                other => panic!("{other:?}"),
            }
        };
        let same = record(1, &["10.88.0.2/16"], vec![]);
        let id = same.container.id.clone();
        assert_eq!(["waiting", "ended"], [0, 1].map(|after| sorted(&id, vec![], after)));
        assert_eq!("back", sorted(&id, vec![same.clone()], 0));
        assert_eq!("ended", sorted("another", vec![same.clone()], 0), "its address is another container's");
        let coming = Record { links: None, ..same.clone() };
        assert_eq!("waiting", sorted(&id, vec![coming.clone()], 20), "its setup runs");
        assert_eq!("ended", sorted(&id, vec![coming], 60), "its setup was killed");
        let restarted = Record { netns: "/elsewhere".into(), ..same };
        assert_eq!("ended", sorted(&id, vec![restarted], 0));
        let mut neighbour = record(2, &["10.88.0.3/16"], vec![tcp(HostBind::Any, 8081, 80, 1)]);
        assert_eq!("waiting", sorted(&id, vec![neighbour.clone()], 0));
        neighbour.publishes = vec![tcp(HostBind::AnyV4, 8079, 79, 2)];
        assert_eq!("ended", sorted(&id, vec![neighbour], 0), "its port is another container's");
    }
}
