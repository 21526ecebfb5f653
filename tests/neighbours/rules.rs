//! An administrator's rules that close a published port to all but one client, at every place for such rules.

use crate::rig::{Rig, beside, dial, possible, published};
use anyhow::Result;
use support::host::Netns;
use support::need;
use support::topology::{Family, Topology};
use support::traffic::Proto;

/// A rule that closes TCP 8080 of the host to all clients but one.
#[derive(Clone, Copy, Debug)]
enum Closer {
    /// In this table and chain of iptables, by the original destination.
    Iptables(&'static str, &'static str, &'static str),
    /// In a chain of nftables of this family, hook and priority.
    Nft(&'static str, &'static str, &'static str),
}

const BY_PORT: &str = "-p tcp --dport 8080";
const BY_ORIGINAL: &str = "-p tcp -m conntrack --ctorigdstport 8080 --ctdir ORIGINAL";

const CLOSERS: [Closer; 8] = [
    Closer::Iptables("raw", "PREROUTING", BY_PORT),
    Closer::Iptables("mangle", "PREROUTING", BY_PORT),
    Closer::Iptables("filter", "FORWARD", BY_ORIGINAL),
    Closer::Iptables("mangle", "FORWARD", BY_ORIGINAL),
    Closer::Nft("inet", "prerouting priority -300", "tcp dport 8080"),
    Closer::Nft("netdev", "ingress device eth0 priority 0", "tcp dport 8080"),
    Closer::Nft("inet", "forward priority 0", "ct direction original meta l4proto tcp ct original proto-dst 8080"),
    Closer::Nft("inet", "forward priority 10", "ct status dnat tcp dport 80"),
];

impl Closer {
    /// Adds or removes the rule.
    fn put(self, host: &Netns, family: Family, into: bool) -> Result<()> {
        let allowed = family.outside();
        match self {
            Self::Iptables(table, chain, what) => {
                let program = if allowed.is_ipv4() { "iptables" } else { "ip6tables" };
                let verb = if into { "-I" } else { "-D" };
                let line = format!("-t {table} {verb} {chain} {what} ! -s {allowed} -j DROP");
                host.command(program, &line.split(' ').collect::<Vec<_>>())?;
            }
            Self::Nft(of, _, _) if !into => drop(host.command("nft", &["delete", "table", of, "administrator"])?),
            Self::Nft(of, hook, what) => {
                let ip = if allowed.is_ipv4() { "ip" } else { "ip6" };
                let rules = format!(
                    "table {of} administrator {{\nchain closes {{\ntype filter hook {hook}; policy accept;\n\
                     {ip} saddr != {allowed} {what} drop\n}}\n}}\n"
                );
                host.feed("nft", &["-f", "-"], &rules)?;
            }
        }
        Ok(())
    }

    /// The port is closed, and no other.
    fn holds(self, rig: &Rig<'_>, family: Family, when: &str) {
        let what = format!("{self:?} {family:?}, {when}");
        rig.closed_but_to_one(&what, family, Proto::Tcp);
        let dial = dial(Proto::Udp, family.host(), 8080);
        rig.sees(&format!("{what}: the other protocol"), &rig.topology.client, &dial, "web", family.client());
    }
}

#[test]
fn a_rule_that_closes_a_port_holds_for_a_container_that_comes_after_it() -> Result<()> {
    need!(possible(), need::program("nft"));
    let topology = Topology::new()?;
    beside(&topology, &[], |rig| {
        for closer in CLOSERS {
            for family in Family::BOTH {
                closer.put(&topology.host, family, true)?;
                let web = rig.up("web", published())?;
                let servers = rig.serve(&web.0)?;
                closer.holds(rig, family, "before the container");
                drop(servers);
                rig.netavark.teardown(&web.0, &web.1)?;
                closer.put(&topology.host, family, false)?;
            }
        }
        Ok(Vec::new())
    })
}

#[test]
fn a_rule_that_closes_a_port_holds_for_a_container_that_was_there_before_it() -> Result<()> {
    need!(possible(), need::program("nft"));
    let topology = Topology::new()?;
    // A host with rules before its first container.
    for program in ["iptables", "ip6tables"] {
        topology.host.command(program, &["-A", "FORWARD", "-p", "tcp", "--dport", "25", "-j", "DROP"])?;
    }
    beside(&topology, &[], |rig| {
        let web = rig.up("web", published())?;
        let _servers = rig.serve(&web.0)?;
        rig.served("before all rules", &web.0);
        for closer in CLOSERS {
            for family in Family::BOTH {
                closer.put(&topology.host, family, true)?;
                closer.holds(rig, family, "after the container");
                closer.put(&topology.host, family, false)?;
            }
        }
        rig.served("after all rules", &web.0);
        Ok(vec![web])
    })
}

#[test]
fn a_rule_that_opens_the_published_port_alone_leaves_it_open() -> Result<()> {
    need!(possible(), need::program("nft"));
    let topology = Topology::new()?;
    let rules = "table inet administrator {\nchain opens {\ntype filter hook prerouting priority -300; policy accept;\n\
                 iifname eth0 tcp dport != 8080 drop\niifname eth0 udp dport != 8080 drop\n}\n}\n";
    topology.host.feed("nft", &["-f", "-"], rules)?;
    beside(&topology, &[], |rig| {
        let web = rig.up("web", published())?;
        let _servers = rig.serve(&web.0)?;
        rig.reached("the open port", 8080, "web");
        rig.own_port("a port that is not open", false);
        Ok(vec![web])
    })
}

#[test]
fn where_forwarding_is_dropped_but_what_was_translated_a_published_port_is_served() -> Result<()> {
    need!(possible(), need::program("nft"));
    let topology = Topology::new()?;
    let rules = "table inet administrator {\nchain forward {\ntype filter hook forward priority 0; policy drop;\n\
                 ct state established,related accept\nct status dnat accept\niifname podman7 accept\n}\n}\n";
    topology.host.feed("nft", &["-f", "-"], rules)?;
    beside(&topology, &[], |rig| {
        let web = rig.up("web", published())?;
        let _servers = rig.serve(&web.0)?;
        rig.served("translated", &web.0);
        rig.unreached("by its own address")?;
        Ok(vec![web])
    })
}
