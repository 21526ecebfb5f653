//! The residue check itself: it detects a leftover of each kind.

use anyhow::Result;
use std::fs;
use std::thread;
use std::time::Duration;
use support::need;
use support::residue::Snapshot;
use support::topology::{Topology, state_dirs};

#[test]
fn a_leftover_of_each_kind_is_seen() -> Result<()> {
    need!(need::root());
    let topology = Topology::new()?;
    let host = &topology.host;
    let web = topology.container("web")?;
    let before = Snapshot::take(&topology, &[&web])?;
    assert_eq!(Vec::<String>::new(), before.difference(&Snapshot::take(&topology, &[&web])?), "twice the same");

    host.ip("link add podman7 type bridge\naddr add 10.89.7.1/24 dev eth0\nroute add 10.90.0.0/16 via 192.0.2.2\n")?;
    host.ip("rule add fwmark 7 lookup 100\n")?;
    host.command("tc", &["qdisc", "add", "dev", "eth0", "clsact"])?;
    host.command("iptables", &["-t", "nat", "-A", "PREROUTING", "-j", "ACCEPT"])?;
    host.command("nft", &["add", "table", "inet", "netavark"])?;
    host.set_sysctl("net/ipv4/conf/lo/route_localnet", "1")?;
    web.ip("link add eth0 type veth peer name other\n")?;
    fs::write(topology.config_dir().join("left"), "")?;
    let state = &state_dirs(&format!("{:x}", host.cookie()))[0];
    fs::create_dir_all(state)?;
    let mut sleeper = host.run(|| std::process::Command::new("sleep").arg("60").spawn())?;

    let left = before.difference(&Snapshot::take(&topology, &[&web])?);
    sleeper.kill()?;
    sleeper.wait()?;
    for kind in
        ["link", "address", "route", "rule", "qdisc", "netfilter", "sysctl", "container", "config", "state", "process"]
    {
        assert!(left.iter().any(|l| l.starts_with(&format!("+ {kind} "))), "no {kind} in {left:#?}");
    }
    Ok(())
}

/// The agent writes its files at any time, perhaps during a snapshot.
#[test]
fn a_file_that_is_being_written_is_no_leftover_and_one_that_stays_so_is() -> Result<()> {
    need!(need::root());
    let topology = Topology::new()?;
    let state = state_dirs(&format!("{:x}", topology.host.cookie())).swap_remove(0);
    fs::create_dir_all(&state)?;
    let [whole, half] = ["memory", "memory.new"].map(|name| state.join(name));
    fs::write(&whole, "")?;
    let before = Snapshot::take(&topology, &[])?;
    fs::write(&half, "")?;
    let writer = thread::spawn({
        let half = half.clone();
        move || {
            thread::sleep(Duration::from_millis(300));
            fs::rename(half, whole)
        }
    });
    let meanwhile = Snapshot::take(&topology, &[])?;
    writer.join().expect("it does not panic")?;
    assert_eq!(Vec::<String>::new(), before.difference(&meanwhile));
    fs::write(&half, "")?;
    let left = before.difference(&Snapshot::take(&topology, &[])?);
    assert_eq!(vec![format!("+ state {}", half.display())], left);
    Ok(())
}
