//! The rung that netpath takes by itself where the kernel refuses bpf(2).

use crate::rig::serve;
use anyhow::{Result, ensure};
use kit::need;
use kit::netavark::{Document, Netavark, Network, Rung, is_incumbent};
use kit::residue::{Residue, netfilter};
use kit::topology::{Family, Topology};
use kit::traffic::{Dial, Proto};

fn document() -> Document {
    Document::new().on_dual(&Network::dual(7), "eth0", 7, 5).publish("", 8080, 80, "tcp").publish("", 8080, 80, "udp")
}

#[test]
fn where_bpf_is_refused_iptables_serves_without_being_asked() -> Result<()> {
    need!(kit::need::netpath());
    need!(kit::need::rung(Rung::Iptables));
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

/// The kernel's answers promise everything, and then the verifier refuses a program: here because the object calls helpers
/// that its licence does not open.
#[test]
fn where_a_program_is_refused_the_next_rung_serves_and_says_why() -> Result<()> {
    need!(kit::need::netpath());
    need!(kit::need::rung(Rung::best_hooks()));
    need!(kit::need::rung(Rung::Iptables));
    if is_incumbent() {
        return Ok(());
    }
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let mut bytes = std::fs::read(kit::netavark::binary()?)?;
    let (open, closed) = (b"Dual MIT/GPL\0", b"Proprietary!\0");
    let places: Vec<usize> = bytes.windows(open.len()).enumerate().filter(|(_, w)| w == open).map(|(i, _)| i).collect();
    ensure!(!places.is_empty(), "the object's licence is not found in the binary");
    places.iter().for_each(|at| bytes[*at..*at + closed.len()].copy_from_slice(closed));
    let patched = topology.dir().join("netavark");
    std::fs::write(&patched, bytes)?;
    std::fs::set_permissions(&patched, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;

    let netavark = Netavark::with(&topology, &[])?;
    let container = topology.container("web")?;
    netavark.setup(&container, &document())?;
    ensure!(!netfilter(&topology.host)?.is_empty(), "no rule of netfilter serves the container");
    let servers = serve(&container, 80, "web")?;
    let seen = Dial::new(Proto::Tcp, Family::V4.host(), 8080).ask(&topology.client)?;
    ensure!(seen.server == "web", "{seen:?}");
    for verb in ["status", "doctor"] {
        let mut command = std::process::Command::new(kit::netavark::binary()?);
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
    need!(kit::need::netpath());
    if is_incumbent() {
        return Ok(());
    }
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[("NETPATH_DATAPATH", "ebpf")])?.without_bpf();
    let container = topology.container("web")?;
    let error = netavark.try_setup(&container, &document().json(&container))?.error()?;
    ensure!(error.contains("ebpf") && error.contains("nothing was changed"), "{error}");
    residue.nothing_left(&topology, &[&container])
}
