//! The rung that netpath chooses: where the kernel denies bpf(2), and beside rules of other software.

use crate::rig::serve;
use anyhow::{Result, ensure};
use support::agent::{the_agent, watching};
use support::filter::Filter;
use support::host::{SOON, wait_for};
use support::long_lived::LongLived;
use support::need;
use support::netavark::{Document, Netavark, Network, Rung, write_program};
use support::residue::{Residue, netfilter};
use support::topology::{Family, Topology};
use support::traffic::{ANY, Dial, Proto, Server};

fn document() -> Document {
    Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
}

#[test]
fn where_bpf_is_refused_netfilter_serves_without_being_asked() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::Iptables));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?.without_bpf();
    let container = topology.container("web")?;
    netavark.setup(&container, &document())?;
    ensure!(!netfilter(&topology.host)?.is_empty(), "no rule of netfilter serves the container");
    let servers = serve(&container, 80, "web")?;
    for family in Family::BOTH {
        for proto in Proto::BOTH {
            let seen = Dial::new(proto, family.host(), 8080).ask(&topology.client)?;
            ensure!(
                ("web", family.client()) == (seen.server.as_str(), seen.client.ip()),
                "{family:?} {proto:?}: {seen:?}"
            );
        }
    }
    drop(servers);
    netavark.teardown(&container, &document())?;
    residue.nothing_left(&topology, &[&container])
}

/// The probes succeed, but the verifier rejects a program: here because the object calls helpers that its licence does not
/// permit.
#[test]
fn where_a_program_is_refused_the_next_rung_serves_and_says_why() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::rung(Rung::Iptables));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let mut bytes = std::fs::read(support::netavark::binary()?)?;
    let (open, closed) = (b"Dual MIT/GPL\0", b"Proprietary!\0");
    let places: Vec<usize> = bytes.windows(open.len()).enumerate().filter(|(_, w)| w == open).map(|(i, _)| i).collect();
    ensure!(!places.is_empty(), "the object's licence is not found in the binary");
    places.iter().for_each(|at| bytes[*at..*at + closed.len()].copy_from_slice(closed));
    let patched = topology.dir().join("netavark");
    write_program(&patched, &bytes)?;

    let netavark = Netavark::with(&topology, &[])?;
    let container = topology.container("web")?;
    let answer = netavark.try_setup(&container, &document().json(&container))?;
    answer.json()?;
    let said = answer.stderr.matches("the ebpf datapath cannot be used, nftables is").count();
    ensure!(said == 1 && answer.stderr.contains("cannot load program np_"), "{}", answer.stderr);
    ensure!(!netfilter(&topology.host)?.is_empty(), "no rule of netfilter serves the container");
    let servers = serve(&container, 80, "web")?;
    let seen = Dial::new(Proto::Tcp, Family::V4.host(), 8080).ask(&topology.client)?;
    ensure!(seen.server == "web", "{seen:?}");
    for verb in ["status", "doctor"] {
        let mut command = std::process::Command::new(support::netavark::binary()?);
        command.arg(verb);
        let out = topology.host.output(command, b"")?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        ensure!(text.contains("cannot load program np_"), "netpath {verb} does not say why:\n{text}");
    }
    drop(servers);
    netavark.teardown(&container, &document())?;

    let netavark = Netavark::with(&topology, &[("NETPATH_DATAPATH", "ebpf")])?;
    let error = netavark.try_setup(&container, &document().json(&container))?.error()?;
    ensure!(error.contains("cannot load program np_"), "{error}");
    std::fs::remove_file(&patched)?;
    residue.nothing_left(&topology, &[&container])
}

#[test]
fn where_bpf_is_refused_a_forced_ebpf_rung_is_an_error_that_changes_nothing() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[("NETPATH_DATAPATH", "ebpf")])?.without_bpf();
    let container = topology.container("web")?;
    let error = netavark.try_setup(&container, &document().json(&container))?.error()?;
    ensure!(error.contains("ebpf") && error.contains("nothing was changed"), "{error}");
    residue.nothing_left(&topology, &[&container])
}

/// Output of a netpath verb on this host.
pub(crate) fn says(topology: &Topology, verb: &str) -> Result<serde_json::Value> {
    let mut command = std::process::Command::new(support::netavark::binary()?);
    command.args([verb, "--json"]);
    Ok(serde_json::from_slice(&topology.host.output(command, b"")?.stdout)?)
}

fn served(topology: &Topology, container: &support::host::Netns, what: &str) -> Result<()> {
    let _servers = serve(container, 80, "web")?;
    for family in Family::BOTH {
        for proto in Proto::BOTH {
            let seen = Dial::new(proto, family.host(), 8080).ask(&topology.client)?;
            ensure!(
                ("web", family.client()) == (seen.server.as_str(), seen.client.ip()),
                "{what}: {family:?} {proto:?}: {seen:?}"
            );
        }
    }
    Ok(())
}

/// One accepting rule each, in every chain that forwarded packets can meet: the command to add it, the chain as netpath names
/// it, and the command to remove it.
const RULES: [(&str, &str, &str); 8] = [
    (
        "nft add table inet a; nft add chain inet a f { type filter hook forward priority 0 ; }; nft add rule inet a f counter",
        "table inet a chain f filters forwarded packets",
        "nft delete table inet a",
    ),
    (
        "nft add table ip a; nft add chain ip a p { type filter hook prerouting priority -300 ; }; nft add rule ip a p tcp dport 1 drop",
        "table ip a chain p filters packets before they are forwarded",
        "nft delete table ip a",
    ),
    (
        "nft add table inet a; nft add chain inet a n { type nat hook postrouting priority 100 ; }; nft add rule inet a n ip saddr 192.168.55.0/24 masquerade",
        "table inet a chain n translates packets after they are forwarded",
        "nft delete table inet a",
    ),
    (
        "nft add table netdev a; nft add chain netdev a i { type filter hook ingress device eth0 priority 0 ; }; nft add rule netdev a i tcp dport 1 drop",
        "table netdev a chain i filters packets before they are forwarded",
        "nft delete table netdev a",
    ),
    (
        "iptables -t raw -A PREROUTING -p tcp --dport 1 -j DROP",
        "table ip raw chain PREROUTING filters packets before they are forwarded",
        "iptables -t raw -F; nft delete table ip raw",
    ),
    (
        "ip6tables -t mangle -A POSTROUTING -p tcp --dport 1 -j DROP",
        "table ip6 mangle chain POSTROUTING filters packets after they are forwarded",
        "ip6tables -t mangle -F; nft delete table ip6 mangle",
    ),
    (
        "iptables -P FORWARD DROP",
        "table ip filter chain FORWARD drops forwarded packets unless a rule accepts them",
        "iptables -P FORWARD ACCEPT; nft delete table ip filter",
    ),
    (
        "iptables-legacy -t nat -A PREROUTING -p tcp --dport 1 -j REDIRECT --to-ports 2",
        "legacy iptables table nat chain PREROUTING translates packets before they are forwarded",
        "iptables-legacy -t nat -F",
    ),
];

#[test]
fn beside_rules_of_others_nftables_serves_and_says_why() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::rung(Rung::Iptables));
    need!(need::program("nft"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let container = topology.container("web")?;
    netavark.setup(&container, &document())?;
    ensure!(says(&topology, "status")?["rung"] == "ebpf", "without rules of others: {}", says(&topology, "status")?);
    netavark.teardown(&container, &document())?;
    for (make, chain, remove) in RULES {
        if make.starts_with("iptables-legacy") && topology.host.command("sh", &["-c", make]).is_err() {
            need::say(&format!("without {chain}: this kernel has no legacy iptables"));
            continue;
        }
        topology.host.command("sh", &["-ec", &make.replace('{', "'{").replace('}', "}'")])?;
        let before = says(&topology, "doctor")?;
        ensure!(before["rung"] == "nftables", "{chain}: doctor predicts {}", before["rung"]);
        netavark.setup(&container, &document())?;
        let status = says(&topology, "status")?;
        ensure!(status["rung"] == "nftables", "{chain}: {status}");
        let why = status["rejected_rungs"][0]["why"].as_str().unwrap_or_default();
        ensure!(why.contains(chain), "{chain}: {why}");
        served(&topology, &container, chain)?;
        netavark.teardown(&container, &document())?;
        topology.host.command("sh", &["-ec", remove])?;
    }
    netavark.setup(&container, &document())?;
    ensure!(says(&topology, "status")?["rung"] == "ebpf", "the rules are gone");
    netavark.teardown(&container, &document())?;
    residue.nothing_left(&topology, &[&container])
}

pub(crate) const THIRD_PARTY: &str = "nft add table inet a; nft add chain inet a n '{ type nat hook postrouting priority 100 ; }'; \
                       nft add rule inet a n ip saddr 192.168.55.0/24 masquerade";

fn on_path(path: &str, host: u8) -> Document {
    let document = Document::new().on_dual(&Network::dual(7).option("netpath.path", path), "eth0", 7, host);
    document.publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
}

/// The network's request decides, and netpath names the rules that it bypasses.
#[test]
fn a_network_that_asks_for_offload_gets_ebpf_beside_rules_of_others() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let filter = Filter::forward(&topology.host, &["tcp dport 80 drop", "udp dport 80 drop"])?;
    let netavark = Netavark::with(&topology, &[])?;
    let container = topology.container("web")?;
    let document = on_path("offload", 5);
    netavark.setup(&container, &document)?;
    let status = says(&topology, "status")?;
    ensure!(status["rung"] == "ebpf" && status["networks"][0]["path"] == "offload", "{status}");
    ensure!(status["bypassed"][0] == "table inet administrator chain forward filters forwarded packets", "{status}");
    served(&topology, &container, "offload")?;
    netavark.teardown(&container, &document)?;
    drop(filter);
    residue.nothing_left(&topology, &[&container])
}

/// netfilter translates where a network asks for it, and rules that appear later hold. Containers that run on the programs are
/// taken over with their connections, and a network that asks for offload beside it is told so.
#[test]
fn a_network_that_asks_for_kernel_gets_netfilter_for_the_host() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let [web, other, third] = ["web", "other", "third"].map(|name| topology.container(name));
    let (web, other, third) = (web?, other?, third?);
    netavark.setup(&web, &on_path("auto", 5))?;
    ensure!(says(&topology, "status")?["rung"] == "ebpf", "{}", says(&topology, "status")?);
    let echo = Server::echo_for(&web, 20, ANY, 80, "web")?;
    let streams = Family::BOTH
        .map(|family| LongLived::start(&topology.client, &Dial::new(Proto::Tcp, family.host(), 8080)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let kernel =
        |n: u8, path: &str| Document::new().on_dual(&Network::dual(n).option("netpath.path", path), "eth0", n, 5);
    netavark.setup(&other, &kernel(8, "kernel"))?;
    let status = says(&topology, "status")?;
    ensure!(status["rung"] == "nftables", "{status}");
    let why = status["rejected_rungs"][0]["why"].as_str().unwrap_or_default();
    ensure!(why == "network net8 has netpath.path=kernel", "{why}");
    streams.iter().try_for_each(LongLived::goes_on)?;
    let answer = netavark.try_setup(&third, &kernel(9, "offload").json(&third))?;
    let named = ["netpath.path=offload of network net9 has no effect", "network net8 has netpath.path=kernel"];
    ensure!(named.iter().all(|words| answer.stderr.contains(words)), "{}", answer.stderr);
    answer.json()?;
    streams.into_iter().try_for_each(LongLived::finish)?;
    drop(echo);
    served(&topology, &web, "kernel")?;
    let filter = Filter::forward(&topology.host, &["tcp dport 80 drop", "udp dport 80 drop"])?;
    ensure!(served(&topology, &web, "filtered").is_err(), "the filter does not hold");
    drop(filter);
    for (container, document) in
        [(&third, kernel(9, "offload")), (&other, kernel(8, "kernel")), (&web, on_path("auto", 5))]
    {
        netavark.teardown(container, &document)?;
    }
    residue.nothing_left(&topology, &[&web, &other, &third])
}

/// The programs serve no more than 256 uplinks. The agent goes on looking at a host that has more.
#[test]
fn a_filter_holds_on_a_host_with_more_uplinks_than_the_programs_serve() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let container = topology.container("web")?;
    netavark.setup(&container, &document())?;
    ensure!(says(&topology, "status")?["rung"] == "ebpf", "{}", says(&topology, "status")?);
    let agent = watching(&topology)?;
    let link = |n: u32| {
        let (high, low) = (n / 256, n % 256);
        format!(
            "link add more{n} up type veth peer name peer{n}\nlink set peer{n} up\n\
             addr add 172.20.{high}.{low}/32 dev more{n}\naddr add 172.21.{high}.{low}/32 dev peer{n}\n"
        )
    };
    topology.host.ip(&(0..150).map(link).collect::<String>())?;
    let said = || std::fs::read_to_string(format!("/run/netpath/{:x}/agent.log", topology.host.cookie())).ok();
    let looked = || said()?.contains("the host has more than 256 uplinks").then_some(());
    wait_for("a look at the new interfaces", SOON * 2, looked)?;
    served(&topology, &container, "with 300 more interfaces")?;
    let filter = Filter::forward(&topology.host, &["tcp dport 80 drop", "udp dport 80 drop"])?;
    let servers = serve(&container, 80, "web")?;
    let passes = |family: Family, proto| Dial::new(proto, family.host(), 8080).ask(&topology.client).is_ok();
    // The programs leave 300 interfaces one by one.
    wait_for("a filter that holds", SOON * 6, || {
        let nothing_passes = Family::BOTH.into_iter().all(|f| Proto::BOTH.into_iter().all(|p| !passes(f, p)));
        nothing_passes.then_some(())
    })?;
    ensure!(says(&topology, "status")?["rung"] == "nftables", "{}", says(&topology, "status")?);
    drop(servers);
    ensure!(the_agent(&topology)? == agent, "it is not the agent that has looked");
    drop(filter);
    topology.host.ip(&(0..150).map(|n| format!("link del more{n}\n")).collect::<String>())?;
    netavark.teardown(&container, &document())?;
    residue.nothing_left(&topology, &[&container])
}

/// A forced datapath is more explicit than an option of one network.
#[test]
fn a_forced_ebpf_rung_serves_a_network_that_asks_for_kernel_and_says_so() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[("NETPATH_DATAPATH", "ebpf")])?;
    let container = topology.container("web")?;
    let document = on_path("kernel", 5);
    let answer = netavark.try_setup(&container, &document.json(&container))?;
    ensure!(answer.stderr.contains("netpath.path=kernel of network net7 has no effect"), "{}", answer.stderr);
    answer.json()?;
    ensure!(says(&topology, "status")?["rung"] == "ebpf", "{}", says(&topology, "status")?);
    served(&topology, &container, "forced")?;
    netavark.teardown(&container, &document)?;
    residue.nothing_left(&topology, &[&container])
}

#[test]
fn nftables_needs_no_program_of_the_host() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let container = topology.container("web")?;
    topology.host.command("sh", &["-ec", THIRD_PARTY])?;
    let hidden = Netavark::with(&topology, &[("NETPATH_AGENT", "off")])?.without_iptables();
    let answer = hidden.try_setup(&container, &document().json(&container))?;
    ensure!(!answer.stderr.contains("bypass"), "nothing is bypassed: {}", answer.stderr);
    answer.json()?;
    ensure!(says(&topology, "status")?["rung"] == "nftables", "{}", says(&topology, "status")?);
    served(&topology, &container, "without iptables")?;
    hidden.teardown(&container, &document())?;
    topology.host.command("nft", &["delete", "table", "inet", "a"])?;
    residue.nothing_left(&topology, &[&container])
}

/// Only the programs of iptables can accept at the end of its chains.
#[test]
fn a_chain_of_iptables_that_drops_by_policy_is_named_where_its_programs_are_missing() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::rung(Rung::Iptables));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let container = topology.container("web")?;
    topology.host.command("iptables", &["-P", "FORWARD", "DROP"])?;
    let environment = [("NETPATH_AGENT", "off")];
    let hidden = Netavark::with(&topology, &environment)?.without_iptables();
    let answer = hidden.try_setup(&container, &document().json(&container))?;
    ensure!(answer.stderr.contains("cannot accept for containers"), "no warning: {}", answer.stderr);
    answer.json()?;
    ensure!(served(&topology, &container, "dropped").is_err(), "the policy does not hold");
    hidden.teardown(&container, &document())?;
    let netavark = Netavark::with(&topology, &environment)?;
    netavark.setup(&container, &document())?;
    served(&topology, &container, "accepted")?;
    netavark.teardown(&container, &document())?;
    topology.host.command("sh", &["-ec", "iptables -P FORWARD ACCEPT; nft delete table ip filter"])?;
    residue.nothing_left(&topology, &[&container])
}

/// No other table can accept for a chain of nftables that drops by policy: the commands that open it are printed.
#[test]
fn a_chain_of_nftables_that_drops_by_policy_is_named_with_the_commands_that_open_it() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    need!(need::program("nft"));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let drop = "nft add table inet a; nft add chain inet a f '{ type filter hook forward priority 0 ; policy drop ; }'";
    topology.host.command("sh", &["-ec", drop])?;
    let netavark = Netavark::with(&topology, &[])?;
    let container = topology.container("web")?;
    let answer = netavark.try_setup(&container, &document().json(&container))?;
    let named = "table inet a chain f drops forwarded packets unless a rule accepts them";
    ensure!(answer.stderr.contains(named) && answer.stderr.contains("nft add rule inet a f"), "{answer}");
    answer.json()?;
    ensure!(served(&topology, &container, "closed").is_err(), "the policy does not hold");
    let doctor = says(&topology, "doctor")?;
    ensure!(doctor["translation"]["owner"] == "netfilter" && doctor["translation"]["why"] == named, "{doctor}");
    let finding = &doctor["findings"][0];
    ensure!(finding["what"].as_str().is_some_and(|what| what.starts_with(named)), "{doctor}");
    let (_, commands) = finding["next"].as_str().unwrap_or_default().split_once("each bridge: ").unwrap_or_default();
    ensure!(commands.contains("BRIDGE"), "{doctor}");
    topology.host.command("sh", &["-ec", &commands.replace("BRIDGE", "podman7")])?;
    served(&topology, &container, "opened")?;
    netavark.teardown(&container, &document())?;
    topology.host.command("nft", &["delete", "table", "inet", "a"])?;
    residue.nothing_left(&topology, &[&container])
}

/// Another service finds forwarding on, and relies on it.
#[test]
fn forwarding_stays_on_and_doctor_says_who_switched_it_on() -> Result<()> {
    need!(need::netpath());
    need!(need::rung(Rung::best_hooks()));
    let topology = Topology::new()?;
    let netavark = Netavark::on(&topology, Rung::best_hooks())?;
    let container = topology.container("web")?;
    let forwarding = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];
    for (round, noted) in [("off before", true), ("on before", false)] {
        netavark.setup(&container, &document())?;
        let notes = says(&topology, "doctor")?["notes"].to_string();
        for path in forwarding {
            ensure!(topology.host.sysctl(path)? == "1", "{round}: {path} is off beside a container");
            ensure!(notes.contains(&path.replace('/', ".")) == noted, "{round}: {notes}");
        }
        netavark.teardown(&container, &document())?;
        for path in forwarding {
            ensure!(topology.host.sysctl(path)? == "1", "{round}: {path} is off after the last container");
        }
    }
    Ok(())
}
