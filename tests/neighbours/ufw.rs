//! ufw: incoming and forwarded packets are dropped by policy, after all rules.

use crate::rig::{Rig, beside, dial, possible, published};
use anyhow::Result;
use support::need;
use support::neighbour::Ufw;
use support::topology::{Family, Topology};
use support::traffic::Proto;

#[test]
fn beside_ufw_with_its_defaults_all_is_served_and_its_rules_hold() -> Result<()> {
    // Where a chain of iptables drops by policy, accepting in Netavark's nftables table has no effect.
    need!(possible(), need::netpath(), Ufw::need());
    let topology = Topology::new()?;
    let ufw = Ufw::start(&topology.host, &topology.dir().join("ufw"))?;
    beside(&topology, &[], |rig| {
        let web = rig.up("web", published())?;
        let _servers = rig.serve(&web.0)?;
        rig.served("with its defaults", &web.0);
        rig.unreached("by its own address")?;
        rig.own_port("an incoming port that ufw denies", false);

        rig.others_change.set(true);
        for family in Family::BOTH {
            ufw.command(&format!("route allow proto tcp from {} to any port 80", family.outside()))?;
        }
        ufw.command("route deny proto tcp from any to any port 80")?;
        for family in Family::BOTH {
            rig.closed_but_to_one("a denied route", family, Proto::Tcp);
            udp_is_open(rig, family);
        }
        ufw.command("route delete deny proto tcp from any to any port 80")?;
        rig.served("allowed again", &web.0);
        Ok(vec![web])
    })
}

/// The rule concerns TCP only.
fn udp_is_open(rig: &Rig<'_>, family: Family) {
    let to = dial(Proto::Udp, family.host(), 8080);
    rig.sees("the other protocol", &rig.topology.client, &to, "web", family.client());
}
