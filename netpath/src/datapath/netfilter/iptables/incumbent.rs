//! Rules of Netavark's iptables driver (before 2.0), for a container that netpath removes in its place.

use super::tool::{Backend, Tool, find};
use crate::datapath::netfilter::nfnetlink;
use crate::datapath::netfilter::rules::Family;
use crate::model::error::Result;
use crate::model::{HostBind, Publish};
use ipnet::IpNet;
use std::collections::BTreeSet;
use std::fmt::Write;

const OWN: [&str; 2] = ["NETAVARK-", "NETAVARK_"];
const HOST_PORTS: &str = "NETAVARK-HOSTPORT-DNAT";
/// Of the ports of one network; the rest is that of the network's own chain.
const PORTS_OF: &str = "NETAVARK-DN-";
const NETWORK: &str = "NETAVARK-";

/// The container, on one network.
pub(crate) struct Leaving<'a> {
    pub container: &'a str,
    pub publishes: &'a [Publish],
    /// Of its network, if no other container is on that; otherwise none.
    pub subnets: &'a [IpNet],
}

/// Deletes its rules, and with the last network all of the driver. Returns whether there was something.
///
/// # Errors
/// The rules cannot be read or written.
pub(crate) fn forget(leaving: &Leaving<'_>) -> Result<bool> {
    let mut any = false;
    for family in [Family::V4, Family::V6] {
        for tool in find(family).iter().filter(|t| t.may_be_used()) {
            any |= forget_by(tool, leaving)?;
        }
    }
    Ok(any)
}

fn forget_by(tool: &Tool, leaving: &Leaving<'_>) -> Result<bool> {
    if tool.backend == Backend::Nft && !nfnetlink::has_chains(tool.family, "NETAVARK") {
        return Ok(false);
    }
    // A backend that the kernel does not support has no rules.
    let Ok(saved) = tool.save_text() else { return Ok(false) };
    let serves = |p: &&Publish| if tool.family == Family::V4 { p.bind.serves_v4() } else { p.bind.serves_v6() };
    let publishes: Vec<Publish> = leaving.publishes.iter().filter(serves).cloned().collect();
    let script = script(&saved, &Leaving { publishes: &publishes, ..*leaving });
    if script.is_empty() {
        return Ok(false);
    }
    tool.restore(&script).map(|()| true)
}

/// A rule as iptables-save prints it.
struct Rule<'a> {
    table: &'a str,
    /// Without `-A `.
    text: &'a str,
    chain: &'a str,
}

impl<'a> Rule<'a> {
    fn after(&self, flag: &str) -> Option<&'a str> {
        let mut words = self.text.split(' ');
        words.find(|w| *w == flag)?;
        words.next()
    }

    fn is_own(&self) -> bool {
        OWN.iter().any(|prefix| self.chain.starts_with(prefix))
    }

    fn names(&self, subnet: &IpNet) -> bool {
        let subnet = subnet.to_string();
        [self.after("-s"), self.after("-d")].into_iter().flatten().any(|net| net == subnet)
    }
}

fn rules(saved: &str) -> Vec<Rule<'_>> {
    let mut table = "";
    let mut found = Vec::new();
    for line in saved.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim();
        } else if let Some(text) = line.strip_prefix("-A ") {
            found.push(Rule { table, text, chain: text.split(' ').next().unwrap_or_default() });
        }
    }
    found
}

/// Input of iptables-restore.
fn script(saved: &str, leaving: &Leaving<'_>) -> String {
    let rules = rules(saved);
    let is_networks = |rule: &Rule<'_>| leaving.subnets.iter().any(|s| rule.names(s));
    // Chains of the network, which go with it.
    let gone: BTreeSet<String> = rules
        .iter()
        .filter(|r| is_networks(r))
        .filter_map(network_jump)
        .flat_map(|name| [name.to_owned(), name.replacen(NETWORK, PORTS_OF, 1)])
        .collect();
    let is_last = rules.iter().filter_map(network_jump).all(|name| gone.contains(name));
    let id = format!(" id: {}\"", leaving.container);
    let goes = |rule: &Rule<'_>| {
        let is_ports = rule.chain == HOST_PORTS && rule.text.contains(&id);
        let is_translation = rule.chain.starts_with(PORTS_OF) && leaving.publishes.iter().any(|p| is_of(rule, p));
        let is_of_network = is_networks(rule) && (rule.is_own() || own_target(rule).is_some());
        let is_rest = is_last && (rule.is_own() || own_target(rule).is_some());
        is_ports || is_translation || is_of_network || is_rest
    };
    let mut script = String::new();
    for table in ["filter", "nat"] {
        let here = || rules.iter().filter(|r| r.table == table);
        let mut lines: String = here().filter(|r| goes(r)).map(|r| format!("-D {}\n", r.text)).collect();
        let chains = chains(saved, table).filter(|name| is_last || gone.contains(*name));
        let chains: Vec<&str> = chains.filter(|name| OWN.iter().any(|own| name.starts_with(own))).collect();
        // What is left in them, and jumps between them, goes first.
        for verb in ["-F", "-X"] {
            chains.iter().for_each(|name| _ = writeln!(lines, "{verb} {name}"));
        }
        if !lines.is_empty() {
            let _ = write!(script, "*{table}\n{lines}COMMIT\n");
        }
    }
    script
}

/// The chain of a network, which its packets take after routing.
fn network_jump<'a>(rule: &Rule<'a>) -> Option<&'a str> {
    if rule.chain == "POSTROUTING" && rule.after("-s").is_some() { own_target(rule) } else { None }
}

/// The chain of Netavark's that a rule jumps to.
fn own_target<'a>(rule: &Rule<'a>) -> Option<&'a str> {
    rule.after("-j").filter(|to| OWN.iter().any(|own| to.starts_with(own)))
}

fn is_of(rule: &Rule<'_>, publish: &Publish) -> bool {
    let (first, last) = (publish.host_port(), publish.host_port() + (publish.count() - 1));
    let ports = if first == last { first.to_string() } else { format!("{first}:{last}") };
    // Another container may have the same port on another address.
    let has_address = match publish.bind {
        HostBind::Address(a) if !a.is_unspecified() => rule.after("-d") == Some(&IpNet::from(a).to_string()),
        _ => rule.after("-d").is_none(),
    };
    has_address && rule.after("-p") == Some(&publish.proto.to_string()) && rule.after("--dport") == Some(&ports)
}

/// The chains of a table.
fn chains<'a>(saved: &'a str, table: &str) -> impl Iterator<Item = &'a str> {
    let begin = format!("*{table}");
    let lines = saved.lines().skip_while(move |line| line.trim() != begin).skip(1);
    let lines = lines.take_while(|line| *line != "COMMIT").filter_map(|line| line.strip_prefix(':'));
    lines.filter_map(|line| line.split(' ').next())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Proto;

    /// Of netavark 1.4, with two networks.
    const SAVED: &str = r#"*filter
:FORWARD ACCEPT [0:0]
:NETAVARK_FORWARD - [0:0]
-A FORWARD -j MINE
-A FORWARD -m comment --comment "netavark firewall plugin rules" -j NETAVARK_FORWARD
-A NETAVARK_FORWARD -d 10.89.7.0/24 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A NETAVARK_FORWARD -s 10.89.7.0/24 -j ACCEPT
-A NETAVARK_FORWARD -s 10.89.8.0/24 -j ACCEPT
COMMIT
*nat
:POSTROUTING ACCEPT [0:0]
:NETAVARK-3E - [0:0]
:NETAVARK-4F - [0:0]
:NETAVARK-DN-3E - [0:0]
:NETAVARK-HOSTPORT-DNAT - [0:0]
:NETAVARK-HOSTPORT-MASQ - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j NETAVARK-HOSTPORT-DNAT
-A POSTROUTING -j NETAVARK-HOSTPORT-MASQ
-A POSTROUTING -s 10.89.7.0/24 -j NETAVARK-3E
-A POSTROUTING -s 10.89.8.0/24 -j NETAVARK-4F
-A NETAVARK-3E -d 10.89.7.0/24 -j ACCEPT
-A NETAVARK-DN-3E -s 10.89.7.0/24 -p tcp -m tcp --dport 8080 -j NETAVARK-HOSTPORT-SETMARK
-A NETAVARK-DN-3E -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.89.7.5:80
-A NETAVARK-DN-3E -p udp -m udp --dport 9000:9002 -j DNAT --to-destination 10.89.7.6:9000-9002/9000
-A NETAVARK-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -m comment --comment "dnat name: net7 id: 5d2f" -j NETAVARK-DN-3E
-A NETAVARK-HOSTPORT-DNAT -p udp -m udp --dport 9000:9002 -m comment --comment "dnat name: net7 id: 5d2f0" -j NETAVARK-DN-3E
COMMIT
"#;

    fn of(saved: &str, subnets: &[&str]) -> String {
        let subnets: Vec<IpNet> = subnets.iter().map(|s| s.parse().expect("a subnet")).collect();
        let publishes = [Publish::new(HostBind::Any, Proto::Tcp, 8080, 80, 1).expect("valid")];
        script(saved, &Leaving { container: "5d2f", publishes: &publishes, subnets: &subnets })
    }

    #[test]
    fn only_the_containers_own_ports_go_while_its_network_has_others() {
        let expected = "*nat\n\
             -D NETAVARK-DN-3E -s 10.89.7.0/24 -p tcp -m tcp --dport 8080 -j NETAVARK-HOSTPORT-SETMARK\n\
             -D NETAVARK-DN-3E -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.89.7.5:80\n\
             -D NETAVARK-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -m comment --comment \"dnat name: net7 id: 5d2f\" -j NETAVARK-DN-3E\n\
             COMMIT\n";
        assert_eq!(expected, of(SAVED, &[]));
    }

    #[test]
    fn the_same_port_on_another_address_stays() {
        let rule =
            "-A NETAVARK-DN-3E -d 192.0.2.2/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.89.7.6:80\n";
        let (head, tail) = SAVED.split_once("-A NETAVARK-DN-3E -p tcp").expect("a rule");
        let saved = format!("{head}{rule}-A NETAVARK-DN-3E -p tcp{tail}");
        assert!(!of(&saved, &[]).contains("192.0.2.2"), "of another container");
        let at = [Publish::new(HostBind::Address([192, 0, 2, 2].into()), Proto::Tcp, 8080, 80, 1).expect("valid")];
        let script = script(&saved, &Leaving { container: "none", publishes: &at, subnets: &[] });
        assert!(script.contains("192.0.2.2/32") && !script.contains("10.89.7.5:80"), "{script}");
    }

    #[test]
    fn a_networks_rules_go_with_its_last_container_and_the_others_stay() {
        let text = of(SAVED, &["10.89.7.0/24"]);
        for gone in [
            "-D POSTROUTING -s 10.89.7.0/24 -j NETAVARK-3E\n",
            "-X NETAVARK-3E\n",
            "-X NETAVARK-DN-3E\n",
            "-D NETAVARK_FORWARD -s 10.89.7.0/24 -j ACCEPT\n",
        ] {
            assert!(text.contains(gone), "{gone}: {text}");
        }
        assert!(
            !text.contains("10.89.8.0") && !text.contains("-X NETAVARK-HOSTPORT") && !text.contains("-D FORWARD"),
            "{text}"
        );
    }

    #[test]
    fn the_last_network_takes_everything_of_the_driver_and_nothing_else() {
        let saved = SAVED.lines().filter(|l| !l.contains("10.89.8.0")).fold(String::new(), |all, l| all + l + "\n");
        let text = of(&saved, &["10.89.7.0/24"]);
        for gone in [
            "-D PREROUTING -m addrtype",
            "-X NETAVARK-HOSTPORT-MASQ\n",
            "-X NETAVARK_FORWARD\n",
            "-D FORWARD -m comment",
        ] {
            assert!(text.contains(gone), "{gone}: {text}");
        }
        assert!(!text.contains("MINE"), "{text}");
    }
}
