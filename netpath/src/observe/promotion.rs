//! Which flows programs carry where netfilter translates, and why not the others.

use super::Host;
use crate::datapath::connection::{Direction, Transport};
use crate::datapath::inspect::Flow;
use crate::datapath::ladder;
use crate::datapath::promote::rules::Ruleset;
use crate::datapath::promote::{self, MOST_CARRIED, Promotions, THRESHOLD};
use crate::model::error::Result;
use crate::model::{Desired, TranslationPath};
use crate::state::agent::holder;
use crate::state::agent_socket;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

/// For an agent on a host that is busy.
const ANSWER_LIMIT: Duration = Duration::from_millis(500);
const NO_AGENT: &str = "no agent answers";
const ASKED: &str = "its network has netpath.path=kernel";

/// Promotion on a host whose netfilter translates.
#[derive(Serialize)]
pub struct Promotion {
    /// Why no flow is carried, whatever the rules are; `None`: flows may be carried.
    pub why_not: Option<String>,
    pub agent: bool,
    /// Flows that programs carry now.
    pub carried: usize,
    /// Rules that forbid it for the flows that can meet them.
    pub forbidding: Vec<Forbidding>,
    /// Why they cannot be listed.
    pub forbidding_error: Option<String>,
    /// What does not see the packets of carried flows.
    pub passed_by: Vec<String>,
    pub change: &'static str,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Forbidding {
    pub rule: String,
    pub why: String,
}

/// The flows of this host; `None`: its datapath has none.
///
/// # Errors
/// They cannot be read.
pub fn flows(host: &Host) -> Result<Option<Vec<Flow>>> {
    let desired = host.store.desired()?;
    let mut flows = host.inspect()?.flows(&desired)?;
    if let Some(flows) = &mut flows
        && is_through_netfilter(host)?
    {
        tell_carriers(flows, &desired, ask(host).as_ref());
    }
    Ok(flows)
}

/// How many flows programs carry; `None`: the datapath does not promote flows, or no agent answers.
///
/// # Errors
/// The state cannot be read.
pub(super) fn carried(host: &Host) -> Result<Option<usize>> {
    let told = is_through_netfilter(host)?.then(|| ask(host)).flatten();
    Ok(told.map(|promotions| promotions.carried.len()))
}

/// For a host whose netfilter translates, or will.
pub(super) fn examine(host: &Host, desired: &Desired, in_use: bool) -> Promotion {
    let promotions = ask(host);
    let carried = promotions.as_ref().map_or(0, |p| p.carried.len());
    let mut paths = desired.bridged().map(|(record, _)| record.network.path).peekable();
    let all_ask = paths.peek().is_some() && paths.all(|path| path == TranslationPath::Kernel);
    let why_not = match &promotions {
        _ if !in_use => Some("no container runs".to_owned()),
        _ if all_ask => Some("all networks have netpath.path=kernel".to_owned()),
        None => Some(NO_AGENT.to_owned()),
        Some(promotions) => promotions.why_not.clone(),
    };
    let ruleset = Ruleset::read();
    let (forbidding, passed_by, forbidding_error) = match &ruleset {
        Ok(ruleset) => {
            let forbidding = ruleset.forbidding().map(|(rule, why)| Forbidding { rule, why }).collect();
            (forbidding, promote::passed_by(desired, ruleset), None)
        }
        Err(e) => (Vec::new(), Vec::new(), Some(e.to_string())),
    };
    let change = match (&promotions, forbidding.is_empty()) {
        _ if !in_use => "a container whose flows last",
        (None, _) => "the next command starts an agent, unless NETPATH_AGENT=off",
        (_, false) => {
            "rules that accept established connections before these, or let only new ones meet them (ct state new)"
        }
        (_, true) => "netpath.path=kernel leaves all flows of a network to netfilter",
    };
    Promotion { why_not, agent: promotions.is_some(), carried, forbidding, forbidding_error, passed_by, change }
}

fn is_through_netfilter(host: &Host) -> Result<bool> {
    Ok(host.store.rung()?.is_some_and(|rung| ladder::backend(rung).through_netfilter))
}

/// `None`: there is no agent, or it does not answer.
fn ask(host: &Host) -> Option<Promotions> {
    holder(host.store.dir())?;
    serde_json::from_value(agent_socket::promotions(host.store.dir(), ANSWER_LIMIT)?).ok()
}

/// Writes into each flow what carries it, and why not programs.
fn tell_carriers(flows: &mut [Flow], desired: &Desired, promotions: Option<&Promotions>) {
    let asking = desired.bridged().filter(|(record, _)| record.network.path == TranslationPath::Kernel);
    let asking: HashSet<IpAddr> = asking.flat_map(|(record, _)| &record.endpoint.addresses).map(|a| a.addr()).collect();
    let why_not = match promotions {
        None => NO_AGENT.to_owned(),
        Some(Promotions { why_not: Some(why), .. }) => why.clone(),
        Some(p) if p.carried.len() >= MOST_CARRIED => format!("{MOST_CARRIED} flows are carried, which is the limit"),
        Some(_) => format!("short so far: fewer than {THRESHOLD} packets within a second"),
    };
    let nothing = Promotions::default();
    let promotions = promotions.unwrap_or(&nothing);
    let carried: HashSet<_> = promotions.carried.iter().collect();
    let refused: HashMap<_, _> = promotions.refused.iter().map(|(id, why)| (id, why)).collect();
    for flow in flows {
        let transport = if flow.protocol == "tcp" { Transport::Tcp } else { Transport::Udp };
        let original = (transport, Direction::of(flow.source, flow.destination));
        let reply = (transport, Direction::of(flow.translated_destination, flow.translated_source));
        if carried.contains(&original) {
            (flow.carrier, flow.why) = ("programs", None);
            continue;
        }
        let is_asked = asking.contains(&flow.source.ip()) || asking.contains(&flow.translated_destination.ip());
        flow.why = Some(match refused.get(&original).or_else(|| refused.get(&reply)) {
            _ if is_asked => ASKED.to_owned(),
            Some(why) => (*why).clone(),
            None => why_not.clone(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::record;

    fn flow(ends: [&str; 4]) -> Flow {
        let [source, destination, translated_source, translated_destination] =
            ends.map(|end| end.parse().expect("an address"));
        Flow {
            protocol: "tcp",
            origin: "published",
            source,
            destination,
            translated_source,
            translated_destination,
            state: "established",
            idle_s: None,
            expires_s: 9,
            whole: true,
            carrier: "kernel",
            why: None,
        }
    }

    fn published(port: u16) -> Flow {
        let client = format!("192.0.2.9:{port}");
        flow([&client, "192.0.2.1:8080", &client, "10.88.0.2:80"])
    }

    fn direction(flow: &Flow) -> (Transport, Direction) {
        (Transport::Tcp, Direction::of(flow.source, flow.destination))
    }

    #[test]
    fn a_flow_is_told_by_either_of_its_directions() {
        let mut flows = [1, 2, 3, 4].map(published);
        let reply = Direction::of(flows[2].translated_destination, flows[2].translated_source);
        let promotions = Promotions {
            why_not: None,
            carried: vec![direction(&flows[0])],
            refused: vec![(direction(&flows[1]), "a limit".into()), ((Transport::Tcp, reply), "a queue".into())],
        };
        let desired = Desired { records: vec![record(1, &["10.88.0.2/16"], vec![])] };
        let told = |flows: &[Flow]| -> Vec<(&str, String)> {
            flows.iter().map(|f| (f.carrier, f.why.clone().unwrap_or_default())).collect()
        };
        tell_carriers(&mut flows, &desired, Some(&promotions));
        let all = told(&flows);
        let expected = [("programs", ""), ("kernel", "a limit"), ("kernel", "a queue")];
        assert_eq!(expected.map(|(by, why)| (by, why.to_owned())), all[..3]);
        assert!(all[3].1.starts_with("short so far"), "{all:?}");

        // The other protocol is another flow.
        let mut other = [Flow { protocol: "udp", ..published(1) }];
        tell_carriers(&mut other, &desired, Some(&promotions));
        assert_eq!("kernel", other[0].carrier);

        let mut alone = [published(1)];
        tell_carriers(&mut alone, &desired, None);
        assert_eq!(vec![("kernel", NO_AGENT.to_owned())], told(&alone));
        let failed = Promotions { why_not: Some("no bpf()".into()), ..Promotions::default() };
        tell_carriers(&mut alone, &desired, Some(&failed));
        assert_eq!(vec![("kernel", "no bpf()".to_owned())], told(&alone));
    }

    #[test]
    fn a_network_that_asks_for_netfilter_is_the_reason() {
        let mut web = record(1, &["10.88.0.2/16"], vec![]);
        web.network.path = TranslationPath::Kernel;
        let mut flows = [published(1)];
        tell_carriers(&mut flows, &Desired { records: vec![web] }, Some(&Promotions::default()));
        assert_eq!(Some(ASKED), flows[0].why.as_deref());
    }
}
