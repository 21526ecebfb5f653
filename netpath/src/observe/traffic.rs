//! What every network, endpoint and published port has sent and received, and which way its packets take.

use super::Host;
use super::ports::shown;
use crate::datapath::ebpf::maps::{self, PinnedMap};
use crate::datapath::ebpf::traffic::{Counters, add};
use crate::datapath::filter::Chain;
use crate::model::error::Result;
use crate::model::{Record, Way};
use netpath_common::layout::{self, Traffic};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// To the container and from it, over all processors.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Volume {
    pub packets_in: u64,
    pub bytes_in: u64,
    pub packets_out: u64,
    pub bytes_out: u64,
}

impl From<Traffic> for Volume {
    fn from(t: Traffic) -> Self {
        let Traffic { packets_in, bytes_in, packets_out, bytes_out } = t;
        Self { packets_in, bytes_in, packets_out, bytes_out }
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NetworkLine {
    pub network: String,
    pub bridge: String,
    /// `offload` or `edge`.
    pub path: &'static str,
    pub why: String,
    #[serde(flatten)]
    pub volume: Volume,
    pub endpoints: Vec<EndpointLine>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct EndpointLine {
    pub container: String,
    pub addresses: Vec<IpAddr>,
    /// All of it, that of its published ports too.
    #[serde(flatten)]
    pub volume: Volume,
    pub publishes: Vec<PublishLine>,
    /// False: there was no counter left for it, or it was attached by a version that had none.
    pub counted: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct PublishLine {
    /// `*`, `0.0.0.0`, `::` or an address.
    pub host: String,
    pub protocol: String,
    pub first_port: u16,
    pub ports: u16,
    #[serde(flatten)]
    pub volume: Volume,
}

/// All networks of the eBPF rung, by name. `foreign`: the rules of others on this host.
///
/// # Errors
/// State or maps cannot be read.
pub fn networks(host: &Host, foreign: &[Chain]) -> Result<Vec<NetworkLine>> {
    let desired = host.store.desired()?;
    let known: HashMap<u32, layout::Network> =
        PinnedMap::open(&host.pins, &maps::NETWORK)?.dump(256)?.into_iter().collect();
    let flags = |record: &Record| known.get(&record.bridged()?.bridge_index).map(|n| n.flags);
    let counters = Counters::open(&host.pins)?;
    let filters: Vec<Chain> = foreign.iter().filter(|c| c.filters_forwarding()).cloned().collect();
    lines(&desired.records, flags, |id| counters.read(u32::from(id)), &filters)
}

fn lines(
    records: &[Record],
    flags: impl Fn(&Record) -> Option<u32>,
    read: impl Fn(u16) -> Result<Traffic>,
    filters: &[Chain],
) -> Result<Vec<NetworkLine>> {
    let mut networks: BTreeMap<&str, (NetworkLine, Traffic)> = BTreeMap::new();
    for record in records {
        let (Some(bridge), Some(flags)) = (record.network.bridge(), flags(record)) else { continue };
        let (line, sum) = endpoint(record, &read)?;
        let (network, total) = networks.entry(&record.network.name).or_insert_with(|| {
            let (path, why) = path(record.network.path, flags & layout::NET_EDGE != 0, filters);
            let line = NetworkLine {
                network: record.network.name.clone(),
                bridge: bridge.to_string(),
                path,
                why,
                volume: Volume::default(),
                endpoints: Vec::new(),
            };
            (line, Traffic::default())
        });
        *total = add(*total, sum);
        network.volume = (*total).into();
        network.endpoints.push(line);
    }
    Ok(networks.into_values().map(|(line, _)| line).collect())
}

fn endpoint(record: &Record, read: &impl Fn(u16) -> Result<Traffic>) -> Result<(EndpointLine, Traffic)> {
    let mut sum = read(record.traffic.own)?;
    let mut publishes = Vec::new();
    for (at, publish) in record.publishes.iter().enumerate() {
        let traffic = read(record.traffic.publishes.get(at).copied().unwrap_or(0))?;
        sum = add(sum, traffic);
        publishes.push(PublishLine {
            host: shown(publish.bind),
            protocol: publish.proto.to_string(),
            first_port: publish.host_port(),
            ports: publish.count(),
            volume: traffic.into(),
        });
    }
    let line = EndpointLine {
        container: record.container.label(),
        addresses: record.endpoint.addresses.iter().map(ipnet::IpNet::addr).collect(),
        volume: sum.into(),
        publishes,
        counted: record.traffic.own != 0,
    };
    Ok((line, sum))
}

/// Which way packets of a network take, and why: what the programs were told (`edge`) may be older than the filters.
fn path(wish: Way, edge: bool, filters: &[Chain]) -> (&'static str, String) {
    let way = if edge { "edge" } else { "offload" };
    let why = match (wish, edge, filters.first()) {
        (Way::Offload, _, None) | (Way::Edge, _, _) => format!("as the network asks: netpath.path={wish}"),
        (Way::Offload, _, Some(filter)) => format!("as the network asks: netpath.path=offload; past it, {filter}"),
        (Way::Auto, true, Some(filter)) => format!("because {filter}"),
        (Way::Auto, true, None) => "because something filtered forwarded packets when netpath last looked".into(),
        (Way::Auto, false, Some(filter)) => {
            format!("edge from the next start or stop of a container on, because {filter}")
        }
        (Way::Auto, false, None) => "nothing on this host filters forwarded packets".into(),
    };
    (way, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::filter::At;
    use crate::model::fixtures::{record, tcp};
    use crate::model::{HostBind, TrafficIds};

    #[test]
    fn an_endpoint_is_the_sum_of_its_ports_and_a_network_that_of_its_endpoints() {
        let mut web = record(1, &["10.88.0.2/16"], vec![tcp(HostBind::Any, 80, 80, 1), tcp(HostBind::Any, 81, 80, 1)]);
        web.traffic = TrafficIds { own: 1, publishes: vec![2] };
        let mut db = record(2, &["10.88.0.3/16"], vec![]);
        db.traffic.own = 4;
        let read = |id: u16| Ok(Traffic { packets_in: u64::from(id), bytes_out: 100, ..Traffic::default() });
        let read = |id: u16| if id == 0 { Ok(Traffic::default()) } else { read(id) };
        let lines = lines(&[web, db], |_| Some(0), read, &[]).expect("lines");
        assert_eq!(1, lines.len(), "one network");
        let of = |v: &Volume| (v.packets_in, v.bytes_out);
        assert_eq!((7, 300), of(&lines[0].volume));
        let [web, db] = lines[0].endpoints.as_slice() else { panic!("two endpoints") };
        assert_eq!(((3, 200), (4, 100)), (of(&web.volume), of(&db.volume)));
        let ports: Vec<_> = web.publishes.iter().map(|p| (p.first_port, of(&p.volume))).collect();
        assert_eq!(vec![(80, (2, 100)), (81, (0, 0))], ports);
        let json = serde_json::to_value(&lines).expect("JSON");
        assert_eq!(7, json[0]["packets_in"]);
        assert_eq!(2, json[0]["endpoints"][0]["publishes"][0]["packets_in"]);
    }

    #[test]
    fn the_way_is_told_with_its_reason() {
        let mine = [Chain {
            table: "table inet firewalld".into(),
            name: "filter_FORWARD".into(),
            at: At::Forward,
            translates: false,
            drops: false,
            accepted: false,
        }];
        let told = |wish, edge, filters: &[Chain]| {
            let (path, why) = path(wish, edge, filters);
            format!("{path}, {why}")
        };
        assert_eq!(
            "edge, because table inet firewalld chain filter_FORWARD filters forwarded packets",
            told(Way::Auto, true, &mine)
        );
        assert_eq!("offload, nothing on this host filters forwarded packets", told(Way::Auto, false, &[]));
        assert_eq!("edge, as the network asks: netpath.path=edge", told(Way::Edge, true, &[]));
        assert!(told(Way::Offload, false, &mine).contains("past it, table inet firewalld"));
        assert!(told(Way::Auto, false, &mine).starts_with("offload, edge from the next"));
    }
}
