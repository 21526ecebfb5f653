//! A host whose containers run: those of a real Netavark are removed and reloaded by netpath, without a restart, and back.

use crate::rig::serve;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::path::Path;
use support::incumbent::{built, version};
use support::need;
use support::netavark::{Document, Netavark, Network};
use support::residue::Residue;
use support::topology::{CLIENT4, Container, Family, Topology};
use support::traffic::{Dial, Proto, wait_until_answered};

/// The distribution's, whose firewall is iptables before 2.0.
const PACKAGED: [&str; 2] = ["/usr/lib/podman/netavark", "/usr/libexec/podman/netavark"];

struct Host<'t> {
    netavark: Netavark<'t>,
    netpath: Netavark<'t>,
    topology: &'t Topology,
}

impl Host<'_> {
    /// As `podman network reload`.
    fn reload(&self, container: &Container, document: &Document) -> Result<()> {
        self.netpath.teardown(container, document)?;
        self.netpath.setup(container, document).map(drop)
    }

    fn reached(&self, what: &str, proto: Proto, port: u16, server: &str) -> Result<()> {
        for family in Family::BOTH {
            let seen = Dial::new(proto, family.host(), port).ask(&self.topology.client);
            let seen = seen.with_context(|| format!("{what}: {proto:?} {family:?} {port}"))?;
            assert_eq!(server, seen.server, "{what}");
            ensure!(family == Family::V6 || seen.client.ip() == CLIENT4, "{what}: from {}", seen.client);
        }
        Ok(())
    }

    /// Every line of the host's rules that Netavark has made.
    fn rules_of_netavark(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (program, words) in [("nft", &["list", "ruleset"][..]), ("iptables-save", &[]), ("ip6tables-save", &[])] {
            let text = self.topology.host.command(program, words)?;
            let lines = text.lines().filter(|l| l.to_lowercase().contains("netavark") || l.contains(" nv_"));
            found.extend(lines.map(|l| l.trim().to_owned()));
        }
        Ok(found)
    }

    fn state_of_netavark(&self) -> usize {
        let dir = self.topology.config_dir().join("firewall");
        let count = |dir: &str| std::fs::read_dir(dir).into_iter().flatten().count();
        ["ports", "networks"].iter().map(|name| count(&dir.join(name).to_string_lossy())).sum()
    }
}

fn is_taken_over(program: &Path) -> Result<()> {
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let host = Host {
        netavark: Netavark::of(&topology, program)?,
        netpath: Netavark::with(&topology, &[])?,
        topology: &topology,
    };
    let [web, db] = [topology.container("web")?, topology.container("db")?];
    let of_web = Document::new()
        .on_dual(&Network::dual(7), "eth0", 7, 5)
        .publish("", 8080, 80, "tcp")
        .publish_range("", 9000, 9000, 3, "udp");
    // With a hardware address of its own: Netavark leaves an earlier one in the host's neighbour cache.
    let addresses = Family::BOTH.map(|f| f.container(7, 6));
    let options = json!({"interface_name": "eth0", "static_ips": addresses, "static_mac": "0a:11:22:33:44:66"});
    let of_db = Document::new().attach(&Network::dual(7), options).publish("", 8081, 80, "tcp");
    host.netavark.setup(&web, &of_web)?;
    host.netavark.setup(&db, &of_db)?;
    // They go on through everything: nothing is restarted.
    let servers = [serve(&web, 80, "web")?, serve(&web, 9001, "web")?, serve(&db, 80, "db")?];
    let all = |when: &str| -> Result<()> {
        host.reached(when, Proto::Tcp, 8080, "web")?;
        host.reached(when, Proto::Udp, 9001, "web")?;
        host.reached(when, Proto::Tcp, 8081, "db")
    };
    all("by Netavark")?;
    ensure!(!host.rules_of_netavark()?.is_empty(), "the control sees no rules");

    host.reload(&web, &of_web)?;
    let rules = host.rules_of_netavark()?;
    let ports = ["8080", "9000", "9001", "9002", "9000:9002", "9000-9002"];
    let of_ports = |l: &&String| l.split(' ').any(|word| ports.contains(&word));
    let left: Vec<&String> = rules.iter().filter(of_ports).collect();
    ensure!(left.is_empty(), "rules of the container that was taken over: {left:#?}");
    ensure!(
        rules.iter().any(|l| l.split(' ').any(|word| word == "8081")),
        "the other container has lost its rules: {rules:#?}"
    );
    all("one by netpath, the other by Netavark")?;

    host.reload(&db, &of_db)?;
    assert_eq!(Vec::<String>::new(), host.rules_of_netavark()?);
    assert_eq!(0, host.state_of_netavark(), "its services would make the rules again");
    all("by netpath")?;

    // And back, as far as Netavark can: what it does not know of, the next command of netpath removes.
    let told = host.netavark.try_teardown(&db, &of_db.json(&db))?;
    let _ = told.stdout;
    let netpath = support::netavark::binary()?.to_string_lossy().into_owned();
    topology.host.command(&netpath, &["gc"])?;
    let status = topology.host.command(&netpath, &["ports", "--json"])?;
    ensure!(!status.contains("8081") && status.contains("8080"), "{status}");
    host.netavark.setup(&db, &of_db)?;
    // Its rules are others' for netpath, which gives the translation to netfilter: by the agent, a moment later.
    for family in Family::BOTH {
        wait_until_answered(&topology.client, &Dial::new(Proto::Tcp, family.host(), 8081))?;
    }
    host.reached("by Netavark again", Proto::Tcp, 8081, "db")?;
    host.reached("beside Netavark again", Proto::Tcp, 8080, "web")?;

    host.netpath.teardown(&db, &of_db)?;
    host.netpath.teardown(&web, &of_web)?;
    assert_eq!(Vec::<String>::new(), host.rules_of_netavark()?);
    let _ = std::fs::remove_dir_all(topology.config_dir().join("firewall"));
    drop(servers);
    residue.nothing_left(&topology, &[&web, &db])
}

#[test]
fn containers_of_netavark_on_nftables_are_taken_over_and_given_back() -> Result<()> {
    need!(need::root(), need::netpath(), need::program("nft"), version(&built()?, 2));
    is_taken_over(&built()?)
}

#[test]
fn containers_of_netavark_on_iptables_are_taken_over_and_given_back() -> Result<()> {
    let program = PACKAGED.iter().map(Path::new).find(|p| p.exists()).unwrap_or(Path::new(PACKAGED[0]));
    need!(need::root(), need::netpath(), need::program("iptables-save"), version(program, 1));
    is_taken_over(program)
}
