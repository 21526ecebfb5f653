//! Rules of Netavark's nftables driver (table `inet netavark`), for a container that netpath removes in its place.

use super::raw::{self, Attributes, Raw};
use crate::datapath::netfilter::nfnetlink;
use crate::model::publish::HostBind;
use crate::model::{Proto, Publish};
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_netfilter::nftables::{NfTablesMessage, RuleAttribute, RuleMessage, TableAttribute, TableMessage};
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use std::io;
use std::net::IpAddr;

const TABLE: &str = "netavark";
/// Jumps to the chains of subnets, one for each published port.
const HOST_PORTS: &str = "NETAVARK-HOSTPORT-DNAT";

// include/uapi/linux/netfilter/nf_tables.h
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_RANGE_FROM_DATA: u16 = 3;
const NFTA_RANGE_TO_DATA: u16 = 4;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CHAIN: u16 = 2;

/// What a rule compares with, and the chain that it jumps to.
#[derive(Default, PartialEq, Eq, Debug)]
struct Rule {
    chain: String,
    handle: u64,
    values: Vec<Vec<u8>>,
    target: Option<String>,
}

/// Deletes the rules of published ports of one container on one network; with `all` the table. Returns whether there was something.
///
/// # Errors
/// The kernel's.
pub(crate) fn forget(network: &str, publishes: &[Publish], all: bool) -> io::Result<bool> {
    if !nfnetlink::table_handle(TABLE).is_ok_and(|handle| handle.is_some()) {
        return Ok(false);
    }
    let mut netlink = raw::open()?;
    let changes = if all {
        let attributes = vec![TableAttribute::Name(TABLE.to_owned())];
        vec![inet(NfTablesMessage::DeleteTable(TableMessage { attributes }))]
    } else {
        let attributes = vec![RuleAttribute::Table(TABLE.to_owned())];
        let rules = netlink.dump(inet(NfTablesMessage::GetRule(RuleMessage { attributes })).into())?;
        let own = rules.iter().filter_map(read).filter(|rule| is_of(rule, network, publishes));
        own.map(|rule| {
            let (table, chain) = (RuleAttribute::Table(TABLE.to_owned()), RuleAttribute::Chain(rule.chain));
            let attributes = vec![table, chain, RuleAttribute::Handle(rule.handle)];
            inet(NfTablesMessage::DeleteRule(RuleMessage { attributes }))
        })
        .collect()
    };
    if changes.is_empty() {
        return Ok(false);
    }
    let changes = changes.into_iter().map(|m| (m, NLM_F_REQUEST | NLM_F_ACK)).collect();
    let batch = nfnetlink::transaction(changes).into_iter().map(|(m, flags)| (Raw::from(m), flags));
    netlink.batch(batch.collect()).map(|()| true)
}

fn inet(message: NfTablesMessage) -> NetfilterMessage {
    NetfilterMessage::new(NetfilterHeader::new(NetfilterProtoFamily::Inet, 0, 0), message)
}

fn read(answer: &Raw) -> Option<Rule> {
    let rule = answer.attributes();
    if rule.text(NFTA_RULE_TABLE) != Some(TABLE) {
        return None;
    }
    let mut found = Rule {
        chain: rule.text(NFTA_RULE_CHAIN)?.to_owned(),
        handle: rule.long_number(NFTA_RULE_HANDLE)?,
        ..Rule::default()
    };
    for (_, expression) in rule.nested(NFTA_RULE_EXPRESSIONS).into_iter().flat_map(Attributes::all) {
        let expression = Attributes(expression);
        let Some(data) = expression.nested(NFTA_EXPR_DATA) else { continue };
        let value = |kind| data.nested(kind).and_then(|d| d.get(NFTA_DATA_VALUE)).map(<[u8]>::to_vec);
        match expression.text(NFTA_EXPR_NAME) {
            Some("cmp") => found.values.extend(value(NFTA_CMP_DATA)),
            Some("range") => {
                found.values.extend([NFTA_RANGE_FROM_DATA, NFTA_RANGE_TO_DATA].into_iter().filter_map(value))
            }
            Some("immediate") => {
                let verdict = data.nested(NFTA_IMMEDIATE_DATA).and_then(|d| d.nested(NFTA_DATA_VERDICT));
                let target = verdict.and_then(|v| v.text(NFTA_VERDICT_CHAIN)).map(str::to_owned);
                found.target = target.or(found.target);
            }
            _ => {}
        }
    }
    Some(found)
}

/// By what a rule compares: no other container can have the same port of the same address of the host.
fn is_of(rule: &Rule, network: &str, publishes: &[Publish]) -> bool {
    let prefix = format!("nv_{}_", network.get(..8).unwrap_or(network));
    let is_port_chain = |name: &str| name.starts_with(&prefix) && name.ends_with("_dnat");
    let is_there = match rule.chain.as_str() {
        HOST_PORTS => rule.target.as_deref().is_some_and(is_port_chain),
        chain => is_port_chain(chain),
    };
    is_there && publishes.iter().any(|p| compares(rule, p))
}

fn compares(rule: &Rule, publish: &Publish) -> bool {
    let has = |bytes: &[u8]| rule.values.iter().any(|v| v == bytes);
    let proto = match publish.proto {
        Proto::Tcp => libc::IPPROTO_TCP,
        Proto::Udp => libc::IPPROTO_UDP,
        Proto::Sctp => libc::IPPROTO_SCTP,
    };
    let address = match publish.bind {
        HostBind::Address(IpAddr::V4(a)) => has(&a.octets()),
        HostBind::Address(IpAddr::V6(a)) => has(&a.octets()),
        _ => true,
    };
    let (first, count) = (publish.host_port(), publish.count());
    let mut ports = rule.values.iter().filter_map(|v| <[u8; 2]>::try_from(v.as_slice()).ok()).map(u16::from_be_bytes);
    let mut any = false;
    let all = ports.all(|port| {
        any = true;
        port >= first && port - first < count
    });
    any && all && address && has(&[proto as u8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_belongs_to_the_published_port_that_it_compares() {
        let network = "a0000000000000001";
        let publish = |bind, port, count| [Publish::new(bind, Proto::Tcp, port, 80, count).expect("valid")];
        let address = [192, 0, 2, 1];
        let rule = |chain: &str, target: Option<&str>, values: &[&[u8]]| Rule {
            chain: chain.to_owned(),
            handle: 1,
            values: values.iter().map(|v| v.to_vec()).collect(),
            target: target.map(str::to_owned),
        };
        let own = "nv_a0000000_10_89_7_0_nm24_dnat";
        let jump = rule(HOST_PORTS, Some(own), &[&[2], &address, &[6], &8080_u16.to_be_bytes()]);
        let at = HostBind::Address(IpAddr::from(address));
        assert!(is_of(&jump, network, &publish(at, 8080, 1)));
        assert!(!is_of(&jump, network, &publish(at, 8081, 1)), "another port");
        assert!(!is_of(&jump, network, &publish(HostBind::Address([192, 0, 2, 9].into()), 8080, 1)), "another address");
        assert!(!is_of(&jump, "b0000000000000001", &publish(at, 8080, 1)), "another network");
        let range = rule(own, None, &[&[17], &9000_u16.to_be_bytes(), &9002_u16.to_be_bytes()]);
        let udp = |count| [Publish::new(HostBind::Any, Proto::Udp, 9000, 9000, count).expect("valid")];
        assert!(is_of(&range, network, &udp(3)));
        assert!(!is_of(&range, network, &udp(2)), "a longer range");
        assert!(!is_of(&rule(own, None, &[&[6]]), network, &publish(HostBind::Any, 8080, 1)), "no port");
        assert!(!is_of(&rule("FORWARD", None, &[&[6], &8080_u16.to_be_bytes()]), network, &publish(at, 8080, 1)));
    }
}
