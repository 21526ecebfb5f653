//! The plans of the verbs.

use super::step::Step;
use crate::model::network::{Route, RouteKind};
use crate::model::{Network, Record};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The steps that attach one endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Steps {
    /// On links that it shares with other endpoints, under the lock.
    pub shared: Vec<Step>,
    pub own: Vec<Step>,
}

/// The steps that connect an interface `to` a link and give it the addresses and routes of its endpoint.
pub fn connect(at: usize, record: &Record, to: String) -> Vec<Step> {
    let interface = || record.endpoint.interface.clone();
    let mut steps =
        vec![Step::Connect { at, interface: interface(), to }, Step::Settings { at, interface: interface() }];
    for &address in &record.endpoint.addresses {
        steps.push(Step::Address { at, interface: interface(), address });
    }
    steps.push(Step::Up { at, interface: interface() });
    if record.network.dhcp || record.network.dhcp6 {
        steps.push(Step::Lease { at, interface: interface() });
    }
    // A container that is itself the gateway has no route through it.
    let is_own = |r: &Route| record.endpoint.addresses.iter().any(|a| Some(a.addr()) == r.gateway);
    let default = default_routes(&record.network).into_iter().filter(|r| !is_own(r));
    for route in default.chain(record.network.routes.iter().cloned()) {
        steps.push(Step::Route { at, interface: interface(), route });
    }
    steps
}

/// Attaches one container to the networks of `records`, each with the steps of its driver. The lock is held twice, for a short time
/// each; the slow work on links is done in between.
pub fn attach(records: &[Record], steps: Vec<Steps>) -> Vec<Step> {
    if records.is_empty() {
        return Vec::new();
    }
    let mut plan = vec![Step::Lock];
    plan.extend(records.iter().map(|r| Step::Keep(Box::new(r.clone()))));
    let (shared, own): (Vec<_>, Vec<_>) = steps.into_iter().map(|s| (s.shared, s.own)).unzip();
    plan.extend(shared.into_iter().flatten());
    plan.push(Step::Unlock);
    plan.push(Step::Loopback);
    plan.extend(own.into_iter().flatten());
    plan.push(Step::Lock);
    plan.extend((0..records.len()).map(|at| Step::Link { at }));
    plan.push(Step::Datapath);
    plan.push(Step::Unlock);
    if records.iter().any(|r| r.network.dns) {
        plan.push(Step::Names);
    }
    plan.push(Step::Commit);
    plan
}

/// Detaches one container. With `alone`, no other endpoint needs the links that it shares: they are deleted together with its own, in
/// one request and under the lock, so that it waits for the kernel once. Otherwise its own are deleted without the lock.
pub fn detach(alone: bool) -> Vec<Step> {
    if alone {
        vec![Step::LinkCleanup { shared: true }, Step::Forget, Step::Unlock]
    } else {
        vec![
            Step::Unlock,
            Step::LinkCleanup { shared: false },
            Step::Lock,
            Step::LinkCleanup { shared: true },
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
