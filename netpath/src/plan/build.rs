//! The plans of the verbs.

use super::step::Step;
use crate::model::network::{Route, RouteKind};
use crate::model::{Network, Record};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Attaches one container to the networks of `records`. The slow work on links lies between two short stretches under
/// the lock.
pub fn attach(records: &[Record]) -> Vec<Step> {
    if records.is_empty() {
        return Vec::new();
    }
    let mut plan = vec![Step::Lock];
    plan.extend(records.iter().map(|r| Step::Keep(Box::new(r.clone()))));
    plan.extend(records.iter().map(|r| Step::Bridge(Box::new(r.network.clone()))));
    plan.push(Step::Unlock);
    plan.push(Step::Loopback);
    for (at, record) in records.iter().enumerate() {
        let interface = || record.endpoint.interface.clone();
        plan.push(Step::Veth { at, bridge: record.network.bridge.clone(), interface: interface() });
        plan.push(Step::Settings { at, interface: interface() });
        for &address in &record.endpoint.addresses {
            plan.push(Step::Address { at, interface: interface(), address });
        }
        plan.push(Step::Up { at, interface: interface() });
        for route in default_routes(&record.network).into_iter().chain(record.network.routes.iter().cloned()) {
            plan.push(Step::Route { interface: interface(), route });
        }
    }
    plan.push(Step::Lock);
    plan.extend((0..records.len()).map(|at| Step::Link { at }));
    plan.push(Step::Datapath);
    plan.push(Step::Unlock);
    if records.iter().any(|r| r.network.dns) {
        plan.push(Step::Names);
    }
    plan.push(Step::Settle);
    plan
}

/// Detaches one container. With `alone`, somebody else needs none of its bridges: they go together with the veths, in
/// one request and under the lock, so that the kernel's slowest work is waited for once. Otherwise the veths go without it.
pub fn detach(alone: bool) -> Vec<Step> {
    if alone {
        vec![Step::Unlink { bridges: true }, Step::Forget, Step::Unlock]
    } else {
        vec![
            Step::Unlock,
            Step::Unlink { bridges: false },
            Step::Lock,
            Step::Unlink { bridges: true },
            Step::Forget,
            Step::Unlock,
        ]
    }
}

/// Through the first gateway of each family.
pub fn default_routes(network: &Network) -> Vec<Route> {
    if network.internal || !network.default_route {
        return Vec::new();
    }
    let first = |v6: bool| network.gateways().map(|(g, _)| g).find(|g| g.is_ipv6() == v6);
    [first(false), first(true)]
        .into_iter()
        .flatten()
        .map(|gateway| Route {
            destination: match gateway {
                IpAddr::V4(_) => IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
                IpAddr::V6(_) => IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
            },
            gateway: Some(gateway),
            metric: network.metric,
            kind: RouteKind::Unicast,
        })
        .collect()
}
