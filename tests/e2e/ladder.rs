//! The rung and the hooks that netpath chooses are the best that the kernel has; `doctor` names them and the reason.

use crate::rig::serve;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use support::denied;
use support::need;
use support::netavark::{Document, Netavark, Network, Rung, binary};
use support::residue::{Residue, netfilter};
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hooks {
    Tcx,
    Clsact,
    None,
}

/// Probed without netpath.
fn of_this_kernel() -> Hooks {
    let clsact = need::accepted("tc", "qdisc add dev v0 clsact");
    match (need::tcx(), clsact) {
        (Ok(()), _) => Hooks::Tcx,
        (Err(_), Ok(())) => Hooks::Clsact,
        (Err(_), Err(_)) => Hooks::None,
    }
}

fn doctor(topology: &Topology) -> Result<Value> {
    let mut command = std::process::Command::new(binary()?);
    command.args(["doctor", "--json"]).env_remove("NETPATH_DATAPATH").env_remove("NETPATH_TC");
    let out = topology.host.output(command, b"")?;
    serde_json::from_slice(&out.stdout)
        .with_context(|| format!("netpath doctor: {}", String::from_utf8_lossy(&out.stderr)))
}

#[test]
fn netpath_takes_the_best_rung_and_gives_the_reasons_against_better_ones() -> Result<()> {
    need!(need::netpath(), need::root(), need::bpf());
    let hooks = of_this_kernel();
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;

    let report = doctor(&topology)?;
    let rung = if hooks == Hooks::None { "nftables" } else { "ebpf" };
    ensure!(report["rung"] == rung, "hooks {hooks:?}, but doctor says {report:#}");
    let probe = |name: &str| report["probes"].as_array().into_iter().flatten().find(|p| p["name"] == name).cloned();
    for (name, there) in [("tcx", hooks == Hooks::Tcx), ("clsact", hooks != Hooks::None)] {
        let probe = probe(name).with_context(|| format!("doctor has no probe {name}"))?;
        // A kernel with TCX may lack clsact.
        ensure!(
            hooks == Hooks::Tcx && name == "clsact" || probe["answer"] == if there { "yes" } else { "no" },
            "{probe}"
        );
        ensure!(
            probe["answer"] == "yes" || probe["why"].is_string() && probe["without"].is_string(),
            "no reason: {probe}"
        );
    }
    let above = report["ladder"].as_array().and_then(|l| l.first()).context("doctor shows no ladder")?;
    let why_not = above["why_not"].as_str().unwrap_or_default();
    let reasons = hooks != Hooks::None || ["tcx", "clsact", "sch_ingress"].iter().all(|hook| why_not.contains(hook));
    ensure!(reasons, "nftables is taken, and for the reason {above}");
    need::say(&format!("this kernel has {hooks:?}; netpath takes {rung}; not the first rung: {why_not}"));

    let netavark = Netavark::with(&topology, &[])?;
    let container = topology.container("web")?;
    let document = Document::new()
        .on_dual(&Network::dual(7), "eth0", 7, 5)
        .publish("", 8080, 80, "tcp")
        .publish("", 8080, 80, "udp");
    netavark.setup(&container, &document)?;
    let tcx = topology.host.tcx_ingress("eth0").unwrap_or_default();
    let clsact = topology.host.command("tc", &["filter", "show", "dev", "eth0", "ingress"])?;
    let rules = netfilter(&topology.host)?;
    let so = match hooks {
        Hooks::Tcx => tcx.iter().any(|p| p.starts_with("np_uplink_in")),
        Hooks::Clsact => tcx.is_empty() && clsact.contains("np_uplink_in"),
        Hooks::None => !rules.is_empty(),
    };
    ensure!(so, "hooks {hooks:?}, but TCX has {tcx:?}, clsact {clsact:?}, netfilter {rules:?}");
    let servers = serve(&container, 80, "web")?;
    for family in Family::BOTH {
        for proto in Proto::BOTH {
            let seen = Dial::new(proto, family.host(), 8080).ask(&topology.client)?;
            let served = ("web", family.client()) == (seen.server.as_str(), seen.client.ip());
            ensure!(served, "{family:?} {proto:?}: {seen:?}");
        }
    }
    drop(servers);
    netavark.teardown(&container, &document)?;
    residue.nothing_left(&topology, &[&container])
}

/// Programs at the host's end of a container's veth, as the kernel reports: attached by TCX, and by clsact.
fn at_the_veth(topology: &Topology) -> Result<(bool, bool)> {
    let links = topology.host.ip_json(&["link", "show", "type", "veth"])?;
    let veth =
        links.as_array().into_iter().flatten().find(|l| l["master"].is_string()).context("no veth at a bridge")?;
    let name = veth["ifname"].as_str().context("no name")?;
    let tcx = topology.host.tcx_ingress(name).unwrap_or_default();
    let clsact = topology.host.command("tc", &["filter", "show", "dev", name, "ingress"])?;
    Ok((tcx.iter().any(|p| p.starts_with("np_veth_in")), clsact.contains("np_veth_in")))
}

/// The attach type can be forced; by default netpath uses TCX, and clsact filters at the veths, which come and go with
/// containers. A removed veth filter does no harm.
#[test]
fn programs_are_attached_as_is_asked_for() -> Result<()> {
    need!(need::netpath(), need::tcx(), need::accepted("tc", "qdisc add dev v0 clsact"));
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp");
    for (asked, expected) in [("", (false, true)), ("tcx", (true, false)), ("clsact", (false, true))] {
        let topology = Topology::new()?;
        let residue = Residue::watch(&topology)?;
        let netavark = Netavark::with(&topology, &[("NETPATH_DATAPATH", "ebpf"), ("NETPATH_TC", asked)])?;
        let container = topology.container("web")?;
        netavark.setup(&container, &document)?;
        let found = at_the_veth(&topology)?;
        ensure!(found == expected, "NETPATH_TC={asked:?}: TCX and clsact {found:?}");
        let uplink = topology.host.tcx_ingress("eth0")?.iter().any(|p| p.starts_with("np_uplink_in"));
        ensure!(uplink == (asked != "clsact"), "NETPATH_TC={asked:?}: TCX at the uplink: {uplink}");

        let _servers = serve(&container, 80, "web")?;
        let dial = Dial::new(Proto::Tcp, Family::V4.host(), 8080).bytes(100_000);
        dial.ask(&topology.client)?;
        if found.1 {
            let links = topology.host.ip_json(&["link", "show", "type", "veth"])?;
            for link in links.as_array().into_iter().flatten().filter(|l| l["master"].is_string()) {
                let name = link["ifname"].as_str().context("no name")?;
                topology.host.command("tc", &["qdisc", "del", "dev", name, "clsact"])?;
            }
            dial.ask(&topology.client)?;
        }
        netavark.teardown(&container, &document)?;
        residue.nothing_left(&topology, &[&container])?;
    }
    Ok(())
}

/// What a host or a container can lack, and the datapath that serves then.
struct Lack {
    what: &'static str,
    without: fn(Netavark<'_>) -> Netavark<'_>,
    rung: &'static str,
    /// The words of the log line that says why.
    line: &'static [&'static str],
}

const LACKS: [Lack; 3] = [
    Lack {
        what: "bpf() is blocked by seccomp",
        without: |n| n.without(denied::BPF),
        rung: "nftables",
        line: &["the datapath of this host is nftables", "ebpf: no bpf: "],
    },
    Lack {
        what: "no TCX",
        without: |n| n.without(denied::BPF_LINKS),
        rung: "ebpf",
        line: &["the kernel has no TCX, clsact is used"],
    },
    Lack {
        what: "neither bpf() nor nf_tables",
        without: |n| n.without(denied::BPF).without(denied::NF_TABLES),
        rung: "iptables",
        line: &["the datapath of this host is iptables", "ebpf: no bpf: ", "nftables: "],
    },
];

/// One line of the log says why.
fn is_said_once(log: &str, words: &[&str]) -> Result<()> {
    let lines = log.lines().filter(|line| words.iter().all(|word| line.contains(word))).count();
    ensure!(lines == 1, "{lines} lines with {words:?} in\n{log}");
    Ok(())
}

#[test]
fn without_a_feature_the_next_datapath_serves_and_one_line_says_why() -> Result<()> {
    need!(need::netpath(), need::root(), need::bpf(), need::tcx());
    need!(need::accepted("tc", "qdisc add dev v0 clsact"), need::accepted("iptables-legacy", "-t nat -L"));
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp");
    for Lack { what, without, rung, line } in LACKS {
        let topology = Topology::new()?;
        let residue = Residue::watch(&topology)?;
        let environment = [("RUST_LOG", "netpath=info"), ("NETPATH_AGENT", "off")];
        let netavark = without(Netavark::with(&topology, &environment)?);
        let container = topology.container("web")?;
        let answer = netavark.try_setup(&container, &document.json(&container))?;
        answer.json().with_context(|| what)?;
        is_said_once(&answer.stderr, line).with_context(|| what)?;
        let status = crate::chosen::says(&topology, "status")?;
        ensure!(status["rung"] == rung, "{what}: {status}");
        let _servers = serve(&container, 80, "web")?;
        for family in Family::BOTH {
            let seen = Dial::new(Proto::Tcp, family.host(), 8080).ask(&topology.client).with_context(|| what)?;
            ensure!(("web", family.client()) == (seen.server.as_str(), seen.client.ip()), "{what}: {seen:?}");
        }
        netavark.teardown(&container, &document)?;
        residue.nothing_left(&topology, &[&container]).with_context(|| what)?;
    }
    Ok(())
}

#[test]
fn without_any_datapath_a_container_starts_with_its_links_and_one_line_says_why() -> Result<()> {
    let is_there = std::path::Path::new("/usr/local/sbin").is_dir();
    let to_hide =
        if is_there { Ok(()) } else { Err("/usr/local/sbin, which is hidden with the programs in it".to_owned()) };
    need!(need::netpath(), need::root(), to_hide);
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[("NETPATH_AGENT", "off")])?.without_iptables();
    let netavark = netavark.without(denied::BPF).without(denied::NF_TABLES);
    let container = topology.container("web")?;
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp");
    let answer = netavark.try_setup(&container, &document.json(&container))?;
    answer.json()?;
    let line = ["no datapath can be used", "ebpf: no bpf: ", "nftables: ", "iptables: "];
    is_said_once(&answer.stderr, &line)?;
    let _servers = serve(&container, 80, "web")?;
    let seen = Dial::new(Proto::Tcp, Family::V4.container(7, 5), 80).ask(&topology.host)?;
    ensure!(seen.server == "web", "{seen:?}");
    netavark.teardown(&container, &document)?;
    residue.nothing_left(&topology, &[&container])
}

/// CAP_SYS_ADMIN, without which no container can be attached, includes it.
#[test]
fn without_cap_bpf_the_programs_serve_by_cap_sys_admin() -> Result<()> {
    const CAP_BPF: libc::c_ulong = 39;
    let hooks = need::tcx().or_else(|_| need::accepted("tc", "qdisc add dev v0 clsact"));
    need!(need::netpath(), need::rung(Rung::best_hooks()), hooks);
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let container = topology.container("web")?;
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp");
    let netavark = Netavark::with(&topology, &[])?.without_capability(CAP_BPF);
    netavark.setup(&container, &document)?;
    let status = crate::chosen::says(&topology, "status")?;
    ensure!(status["rung"] == "ebpf", "{status}");
    let _servers = serve(&container, 80, "web")?;
    let seen = Dial::new(Proto::Tcp, Family::V4.host(), 8080).ask(&topology.client)?;
    ensure!(seen.server == "web", "{seen:?}");
    netavark.teardown(&container, &document)?;
    residue.nothing_left(&topology, &[&container])
}

/// Pins need it: without, no program outlives the command.
#[test]
fn without_bpffs_nftables_serves_and_one_line_says_why() -> Result<()> {
    need!(need::netpath(), need::rung(Rung::best_hooks()));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let container = topology.container("web")?;
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp");
    let environment = [("RUST_LOG", "netpath=info"), ("NETPATH_AGENT", "off")];
    let netavark = Netavark::with(&topology, &environment)?.without_bpffs();
    let answer = netavark.try_setup(&container, &document.json(&container))?;
    answer.json()?;
    is_said_once(
        &answer.stderr,
        &["the datapath of this host is nftables", "ebpf: no bpffs: /sys/fs/bpf does not exist"],
    )?;
    let servers = serve(&container, 80, "web")?;
    let seen = Dial::new(Proto::Tcp, Family::V4.host(), 8080).ask(&topology.client)?;
    ensure!(seen.server == "web", "{seen:?}");
    drop(servers);
    netavark.teardown(&container, &document)?;
    residue.nothing_left(&topology, &[&container])
}

/// A bpffs of its own would hide the programs that serve other containers from it, and its own from other commands.
#[test]
fn a_command_that_must_not_look_for_the_hosts_bpffs_steps_down_and_says_why() -> Result<()> {
    const CAP_SYS_PTRACE: libc::c_ulong = 19;
    need!(need::netpath(), need::rung(Rung::best_hooks()));
    need!(need::tcx().or_else(|_| need::accepted("tc", "qdisc add dev v0 clsact")));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let container = topology.container("web")?;
    let document = Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp");
    let environment = [("RUST_LOG", "netpath=info"), ("NETPATH_AGENT", "off")];
    let near = Netavark::with(&topology, &environment)?;
    let apart = Netavark::with(&topology, &environment)?.apart();
    let blind = Netavark::with(&topology, &environment)?.apart().without_capability(CAP_SYS_PTRACE);
    let served_by = |rung: &str| -> Result<()> {
        let status = crate::chosen::says(&topology, "status")?;
        ensure!(status["rung"] == rung, "not {rung}: {status}");
        let _servers = serve(&container, 80, "web")?;
        let seen = Dial::new(Proto::Tcp, Family::V4.host(), 8080).ask(&topology.client)?;
        ensure!(seen.server == "web", "{seen:?}");
        Ok(())
    };

    let answer = blind.try_setup(&container, &document.json(&container))?;
    answer.json()?;
    let why = "ebpf: no bpffs: cannot reach the host's /sys/fs/bpf";
    is_said_once(&answer.stderr, &["the datapath of this host is nftables", why, "give it CAP_SYS_PTRACE"])?;
    served_by("nftables")?;
    blind.teardown(&container, &document)?;

    near.setup(&container, &document)?;
    served_by("ebpf")?;
    let error = blind.try_teardown(&container, &document.json(&container))?.error()?;
    ensure!(error.contains("cannot reach the host's /sys/fs/bpf"), "{error}");
    near.teardown(&container, &document)?;

    if std::fs::metadata("/proc/1/ns/mnt").is_ok() {
        apart.setup(&container, &document)?;
        served_by("ebpf")?;
        near.teardown(&container, &document)?;
    } else {
        need::say("the same with the capability: PID 1 of this machine is closed even so");
    }
    residue.nothing_left(&topology, &[&container])
}
