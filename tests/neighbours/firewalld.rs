//! firewalld: its zones filter forwarded and incoming packets; container networks belong into `trusted`.

use crate::rig::{Rig, beside, each, plain, possible, published};
use anyhow::{Result, ensure};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use support::host::{SOON, patient, wait_for};
use support::long_lived::LongLived;
use support::need;
use support::neighbour::Firewalld;
use support::netavark::is_incumbent;
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto};

#[test]
fn beside_firewalld_with_its_defaults_all_is_served_and_a_reload_breaks_nothing() -> Result<()> {
    need!(possible(), Firewalld::need());
    let topology = Topology::new()?;
    let firewalld = Firewalld::start(&topology.host, &topology.dir().join("firewalld"))?;
    ensure!(firewalld.sources("trusted")?.is_empty(), "a zone trusted that is not empty");
    beside(&topology, &[firewalld.bus()], |rig| {
        let web = rig.up("web", published())?;
        let _servers = rig.serve(&web.0)?;
        rig.served("at first", &web.0);
        rig.unreached("by its own address")?;
        rig.own_port("firewalld holds", false);
        let sources = firewalld.sources("trusted")?;
        for family in Family::BOTH {
            let net = family.container(7, 0).to_string();
            rig.note(sources.iter().any(|s| s.starts_with(&net)), || {
                format!("zone trusted: {sources:?} without {net}")
            });
        }

        let mut streams = Vec::new();
        for family in Family::BOTH {
            streams.push(LongLived::start(&topology.client, &Dial::new(Proto::Tcp, family.host(), 8080))?);
            streams.push(LongLived::start(&web.0, &Dial::new(Proto::Tcp, family.client(), 9000))?);
        }
        let _follower = Follower::start(rig)?;
        firewalld.command(&["--reload"])?;
        let reloaded = Instant::now();
        for (family, proto) in each() {
            let dial = Dial::new(proto, family.host(), 8080).patience(patient(Duration::from_millis(200)));
            let served = wait_for(&format!("after a reload: {dial}"), SOON, || dial.ask(&topology.client).ok());
            rig.met("after a reload", served);
        }
        let took = reloaded.elapsed();
        rig.note(took < patient(Duration::from_secs(1)), || format!("served {} ms after a reload", took.as_millis()));
        for stream in streams {
            rig.met("a stream during a reload", stream.goes_on().and_then(|()| stream.finish()));
        }
        rig.served("after a reload", &web.0);
        rig.own_port("after a reload", false);
        firewalld.command(&["--add-port=9100/tcp", "--add-port=9100/udp"])?;
        rig.own_port("opened by firewalld", true);
        Ok(vec![web])
    })?;
    let left = firewalld.sources("trusted")?;
    ensure!(left.is_empty(), "left in zone trusted: {left:?}");
    Ok(())
}

#[test]
fn where_firewalld_is_strict_about_forwarded_ports_they_are_refused() -> Result<()> {
    need!(possible(), Firewalld::need_newer());
    let topology = Topology::new()?;
    let firewalld = Firewalld::strict(&topology.host, &topology.dir().join("firewalld"))?;
    beside(&topology, &[firewalld.bus()], |rig| {
        let refused = topology.container("refused")?;
        let error = rig.netavark.try_setup(&refused, &published().json(&refused))?.error()?;
        rig.note(error.contains("StrictForwardPorts"), || format!("the reason is missing: {error}"));
        // As Podman does; Netavark has not undone its setup.
        let undone = rig.netavark.teardown(&refused, &published());
        rig.note(is_incumbent() || undone.is_ok(), || format!("teardown of what was refused: {undone:?}"));
        let web = rig.up("web", plain())?;
        let _servers = rig.serve(&web.0)?;
        for family in Family::BOTH {
            rig.leaves("without ports", &web.0, family);
        }
        Ok(vec![web])
    })
}

/// Netavark's reload service, which re-applies its rules. netpath has its agent.
struct Follower(Child);

impl Follower {
    fn start(rig: &Rig<'_>) -> Result<Option<Self>> {
        if !is_incumbent() {
            return Ok(None);
        }
        let mut command = rig.netavark.command(&["firewalld-reload"]);
        let child = rig.topology.host.run(|| command.stdin(Stdio::null()).stdout(Stdio::null()).spawn())?;
        // It does not report readiness.
        std::thread::sleep(patient(Duration::from_millis(300)));
        Ok(Some(Self(child)))
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
