//! Docker: it forwards for its own containers, and drops other forwarded packets by policy.

use crate::rig::{Rig, Up, beside, dial, possible, published};
use anyhow::{Result, anyhow, ensure};
use std::cell::OnceCell;
use support::host::Netns;
use support::need;
use support::neighbour::Docker;
use support::topology::{CLIENT4, Family, HOST4, OUTSIDE4, Topology};
use support::traffic::{ANY, Proto, Server};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Starts {
    First,
    Second,
}

#[test]
fn beside_docker_that_was_first_both_serve_and_its_users_rules_hold() -> Result<()> {
    // Netavark 2 has no rules in iptables, and no other table can accept what a chain drops by policy.
    need!(possible(), need::netpath(), Docker::need());
    both(Starts::First)
}

#[test]
fn beside_docker_that_came_second_both_serve_and_its_users_rules_hold() -> Result<()> {
    need!(possible(), Docker::need());
    both(Starts::Second)
}

fn both(starts: Starts) -> Result<()> {
    let topology = Topology::new()?;
    topology.host.set_sysctl("net/ipv4/ip_forward", "0")?;
    let start = || Docker::start(&topology.host, &topology.dir().join("docker"));
    if starts == Starts::First {
        let docker = start()?;
        let policy = topology.host.command("iptables", &["-S", "FORWARD"])?;
        ensure!(policy.starts_with("-P FORWARD DROP"), "Docker does not drop foreign packets: {policy}");
        return beside(&topology, &[], |rig| together(rig, &docker, &rig.up("web", published())?, starts));
    }
    let docker = OnceCell::new();
    beside(&topology, &[], |rig| {
        let web = rig.up("web", published())?;
        rig.others_change.set(true);
        let docker = docker.get_or_init(start).as_ref().map_err(|e| anyhow!("{e:#}"))?;
        together(rig, docker, &web, starts)
    })
}

fn together(rig: &Rig<'_>, docker: &Docker, web: &Up, starts: Starts) -> Result<Vec<Up>> {
    let host = &rig.topology.host;
    let mut servers = rig.serve(&web.0)?;
    let docked = docker.container("docked", &["-p", "8081:80", "-p", "8081:80/udp"])?;
    for proto in Proto::BOTH {
        servers.push(Server::echo(&docked, proto, ANY, 80, "docked")?);
    }
    rig.served("netpath's", &web.0);
    of_docker(rig, "Docker's", &docked);
    rig.unreached("by its own address")?;
    if starts == Starts::Second {
        // The new rules count from the host's next first container on.
        rig.netavark.teardown(&web.0, &web.1)?;
        of_docker(rig, "Docker's while netpath has no container", &docked);
        rig.netavark.setup(&web.0, &web.1)?;
        rig.served("netpath's, once more", &web.0);
        of_docker(rig, "Docker's, once more", &docked);
    }

    let rule = |verb| {
        let from = OUTSIDE4.to_string();
        let words = ["-p", "tcp", "-m", "conntrack", "--ctorigdstport", "8080", "--ctdir", "ORIGINAL"];
        host.command("iptables", &[&[verb, "DOCKER-USER"], &words[..], &["!", "-s", &from, "-j", "DROP"]].concat())
    };
    rule("-I")?;
    rig.closed_but_to_one("a user's rule", Family::V4, Proto::Tcp);
    rule("-D")?;
    rig.served("without the rule", &web.0);

    rig.netavark.teardown(&web.0, &web.1)?;
    let forwards = host.sysctl("net/ipv4/ip_forward")?;
    rig.note(forwards == "1", || format!("ip_forward is {forwards} after netpath's last container"));
    of_docker(rig, "Docker's after netpath's last container", &docked);
    docker.command(&["rm", "-f", "docked"])?;
    Ok(Vec::new())
}

/// Docker's own container is reachable, and reaches the outside.
fn of_docker(rig: &Rig<'_>, what: &str, docked: &Netns) {
    for proto in Proto::BOTH {
        let client = &rig.topology.client;
        rig.sees(what, client, &dial(proto, HOST4, 8081), "docked", CLIENT4);
        rig.sees(what, docked, &dial(proto, CLIENT4, 9000), "outside", HOST4);
    }
}
