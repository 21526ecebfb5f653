//! The traffic of every network, endpoint and published port, and the path of its packets.

use super::ports::shown;
use crate::datapath::Inspect;
use crate::datapath::filter::Chain;
use crate::datapath::inspect::{EndpointTraffic, Volume};
use crate::model::error::Result;
use crate::model::{Desired, Record, TranslationPath};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::IpAddr;

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NetworkLine {
    pub network: String,
    pub bridge: String,
    /// `offload`: the programs translate, past netfilter.
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
    /// Including that of its published ports.
    #[serde(flatten)]
    pub volume: Volume,
    pub publishes: Vec<PublishLine>,
    /// False: there was no counter left for it, or a version without counters has attached it.
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

/// All networks that are served and counted, by name. `foreign`: the rules of others on this host.
///
/// # Errors
/// The counters cannot be read.
pub fn networks(desired: &Desired, datapath: &dyn Inspect, foreign: &[Chain]) -> Result<Vec<NetworkLine>> {
    Ok(lines(&desired.records, datapath.traffic(desired)?, foreign.first()))
}

fn lines(records: &[Record], traffic: Vec<Option<EndpointTraffic>>, bypassed: Option<&Chain>) -> Vec<NetworkLine> {
    let mut networks: BTreeMap<&str, NetworkLine> = BTreeMap::new();
    for (record, traffic) in records.iter().zip(traffic) {
        let (Some(bridge), Some(traffic)) = (record.network.bridge(), traffic) else { continue };
        let endpoint = endpoint(record, &traffic);
        let network = networks.entry(&record.network.name).or_insert_with(|| NetworkLine {
            network: record.network.name.clone(),
            bridge: bridge.to_string(),
            path: "offload",
            why: why(record.network.path, bypassed),
            volume: Volume::default(),
            endpoints: Vec::new(),
        });
        network.volume = network.volume + endpoint.volume;
        network.endpoints.push(endpoint);
    }
    networks.into_values().collect()
}

fn endpoint(record: &Record, traffic: &EndpointTraffic) -> EndpointLine {
    let publishes = record.publishes.iter().zip(&traffic.publishes).map(|(publish, volume)| PublishLine {
        host: shown(publish.bind),
        protocol: publish.proto.to_string(),
        first_port: publish.host_port(),
        ports: publish.count(),
        volume: *volume,
    });
    EndpointLine {
        container: record.container.label(),
        addresses: record.endpoint.addresses.iter().map(ipnet::IpNet::addr).collect(),
        volume: traffic.publishes.iter().fold(traffic.own, |sum, v| sum + *v),
        publishes: publishes.collect(),
        counted: traffic.counted,
    }
}

/// Why packets of a network bypass netfilter, and the first rule there.
fn why(asked: TranslationPath, bypassed: Option<&Chain>) -> String {
    let why = match asked {
        TranslationPath::Offload => "as the network asks: netpath.path=offload",
        TranslationPath::Kernel => "netpath.path=kernel has no effect on this datapath",
        TranslationPath::Auto if bypassed.is_none() => "nothing on this host filters forwarded packets",
        TranslationPath::Auto => "no datapath through netfilter was taken",
    };
    bypassed.map_or_else(|| why.to_owned(), |chain| format!("{why}; past it, {chain}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::filter::At;
    use crate::model::HostBind;
    use crate::model::fixtures::{record, tcp};

    #[test]
    fn an_endpoint_is_the_sum_of_its_ports_and_a_network_that_of_its_endpoints() {
        let web = record(1, &["10.88.0.2/16"], vec![tcp(HostBind::Any, 80, 80, 1), tcp(HostBind::Any, 81, 80, 1)]);
        let db = record(2, &["10.88.0.3/16"], vec![]);
        let elsewhere = record(3, &["10.88.0.4/16"], vec![]);
        let volume = |packets_in| Volume { packets_in, bytes_out: 100, ..Volume::default() };
        let traffic = |own, publishes: &[Volume]| {
            Some(EndpointTraffic { own: volume(own), publishes: publishes.to_vec(), ..EndpointTraffic::default() })
        };
        let traffic = vec![traffic(1, &[volume(2), Volume::default()]), traffic(4, &[]), None];
        let lines = lines(&[web, db, elsewhere], traffic, None);
        assert_eq!(1, lines.len(), "one network");
        let of = |v: &Volume| (v.packets_in, v.bytes_out);
        assert_eq!((7, 300), of(&lines[0].volume));
        let [web, db] = lines[0].endpoints.as_slice() else { panic!("two endpoints are served") };
        assert_eq!(((3, 200), (4, 100)), (of(&web.volume), of(&db.volume)));
        let ports: Vec<_> = web.publishes.iter().map(|p| (p.first_port, of(&p.volume))).collect();
        assert_eq!(vec![(80, (2, 100)), (81, (0, 0))], ports);
        let json = serde_json::to_value(&lines).expect("JSON");
        assert_eq!(7, json[0]["packets_in"]);
        assert_eq!(2, json[0]["endpoints"][0]["publishes"][0]["packets_in"]);
    }

    #[test]
    fn the_path_is_reported_with_its_reason() {
        let mine = Chain {
            table: "table inet firewalld".into(),
            name: "filter_FORWARD".into(),
            at: At::Forward,
            translates: false,
            drops: false,
            accepted: false,
        };
        assert_eq!("nothing on this host filters forwarded packets", why(TranslationPath::Auto, None));
        assert_eq!(
            "as the network asks: netpath.path=offload; past it, table inet firewalld chain filter_FORWARD filters \
             forwarded packets",
            why(TranslationPath::Offload, Some(&mine))
        );
    }
}
