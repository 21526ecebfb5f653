//! Programs of other software at netpath's hooks: they see their packets, and stay when netpath's are removed.

use crate::rig::{Path, Rig, Way, rig_on, serve};
use anyhow::Result;
use support::need;
use support::netavark::{Document, Rung};
use support::third_party::{Counter, Place, Side};
use support::topology::{Family, Topology};
use support::traffic::{Dial, Proto};

on_every_way!(
    programs_of_others_at_the_same_tcx_hooks_see_their_packets,
    filters_of_others_in_the_same_clsact_qdisc_see_their_packets,
);

/// Traffic to a published port and outbound, and the host's own, which netpath does not touch.
fn all(rig: &Rig<'_>, way: Way, what: &str) -> Result<()> {
    let web = rig.up("web", way.published(7, 5))?;
    let _servers = (
        serve(&web.0, 80, "web")?,
        serve(&rig.topology.client, 9000, "near")?,
        serve(&rig.topology.host, 9100, "host")?,
    );
    for family in Family::BOTH {
        for proto in Proto::BOTH {
            let dial = |ip, port| Dial::new(proto, ip, port).bytes(1_300);
            rig.sees(what, &rig.topology.client, &dial(family.host(), 8080), "web", family.client());
            rig.sees(what, &web.0, &dial(family.client(), 9000), "near", family.host());
            rig.sees(what, &rig.topology.client, &dial(family.host(), 9100), "host", family.client());
        }
    }
    rig.netavark.teardown(&web.0, &web.1)
}

struct ThirdParty {
    name: String,
    counter: Counter,
}

impl ThirdParty {
    fn new(name: String, counter: Result<Counter>) -> Result<Self> {
        Ok(Self { name, counter: counter? })
    }
}

fn all_see(rig: &Rig<'_>, third_party: &[ThirdParty], what: &str, traffic: impl FnOnce() -> Result<()>) -> Result<()> {
    let seen = || third_party.iter().map(|f| f.counter.seen()).collect::<Result<Vec<u64>>>();
    let before = seen()?;
    traffic()?;
    for ((f, before), after) in third_party.iter().zip(before).zip(seen()?) {
        rig.note(after > before, || format!("{what}: {} saw no packet", f.name));
    }
    Ok(())
}

/// Traffic between client and host, without netpath.
fn plain(rig: &Rig<'_>) -> Result<()> {
    let _server = serve(&rig.topology.host, 9100, "host")?;
    for family in Family::BOTH {
        let dial = Dial::new(Proto::Tcp, family.host(), 9100);
        rig.sees("netpath is gone", &rig.topology.client, &dial, "host", family.client());
    }
    Ok(())
}

fn programs_of_others_at_the_same_tcx_hooks_see_their_packets(way: Way) -> Result<()> {
    need!(need::bpf());
    need!(need::tcx());
    rig_on(Topology::new(), way, |rig| {
        let host = &rig.topology.host;
        let mut third_party = Vec::new();
        for side in Side::BOTH {
            let name = format!("at the uplink's {}, before", side.name());
            third_party.push(ThirdParty::new(name, Counter::tcx(host, "eth0", side, Place::First))?);
        }
        let keeper = rig.up("keeper", Document::new().on_dual(&way.network(7), "eth0", 7, 9))?;
        for side in Side::BOTH {
            let name = format!("at the uplink's {}, after", side.name());
            third_party.push(ThirdParty::new(name, Counter::tcx(host, "eth0", side, Place::Last))?);
        }
        for place in [Place::First, Place::Last] {
            let name = format!("at the bridge, {place:?}");
            third_party.push(ThirdParty::new(name, Counter::tcx(host, "podman7", Side::Ingress, place))?);
        }
        if way.rung == Rung::Tcx {
            let order = host.tcx_ingress("eth0")?;
            rig.note(order == ["third_party", "np_uplink_in", "third_party"], || format!("at the uplink: {order:?}"));
        }
        all_see(rig, &third_party, "beside netpath", || all(rig, way, "beside others"))?;
        // The bridge and its programs are removed with the last container.
        third_party.truncate(4);
        rig.netavark.teardown(&keeper.0, &keeper.1)?;
        all_see(rig, &third_party, "after netpath", || plain(rig))?;
        let order = host.tcx_ingress("eth0")?;
        rig.note(order == ["third_party", "third_party"], || format!("left at the uplink: {order:?}"));
        Ok(Vec::new())
    })
}

fn filters_of_others_in_the_same_clsact_qdisc_see_their_packets(way: Way) -> Result<()> {
    need!(need::bpf());
    need!(need::program("tc"));
    rig_on(Topology::new(), way, |rig| {
        let host = &rig.topology.host;
        host.command("tc", &["qdisc", "add", "dev", "eth0", "clsact"])?;
        let keeper = rig.up("keeper", Document::new().on_dual(&way.network(7), "eth0", 7, 9))?;
        if host.command("tc", &["qdisc", "show", "dev", "podman7"])?.contains("clsact") {
            rig.note(way.rung == Rung::Clsact, || "netpath has put clsact at the bridge".to_owned());
        } else {
            host.command("tc", &["qdisc", "add", "dev", "podman7", "clsact"])?;
        }
        let mut third_party = Vec::new();
        for (order, preference) in [("before", 1), ("after", 60_000)] {
            for side in Side::BOTH {
                let name = format!("at the uplink's {}, {order}", side.name());
                third_party.push(ThirdParty::new(name, Counter::clsact(host, "eth0", side, preference))?);
            }
        }
        for (order, preference) in [("before", 1), ("after", 60_000)] {
            let name = format!("at the bridge, {order}");
            third_party.push(ThirdParty::new(name, Counter::clsact(host, "podman7", Side::Ingress, preference))?);
        }
        all_see(rig, &third_party, "beside netpath", || all(rig, way, "beside others"))?;
        third_party.truncate(4);
        rig.netavark.teardown(&keeper.0, &keeper.1)?;
        all_see(rig, &third_party, "after netpath", || plain(rig))?;
        for side in Side::BOTH {
            let shown = host.command("tc", &["filter", "show", "dev", "eth0", side.name()])?;
            let so = shown.contains("pref 1 ") && shown.contains("pref 60000 ") && !shown.contains("np_");
            rig.note(so, || format!("left at the uplink's {}: {shown}", side.name()));
        }
        host.command("tc", &["qdisc", "del", "dev", "eth0", "clsact"])?;
        Ok(Vec::new())
    })
}

/// Filters of others in the qdisc that netpath created: netpath may then no longer remove the qdisc.
#[test]
fn a_qdisc_that_netpath_has_made_stays_for_the_filters_of_others() -> Result<()> {
    need!(need::rung(Rung::Clsact));
    need!(need::program("tc"));
    let way = Way { rung: Rung::Clsact, path: Path::Auto, tracked: false };
    rig_on(Topology::new(), way, |rig| {
        let host = &rig.topology.host;
        let made = || Ok::<_, anyhow::Error>(host.command("tc", &["qdisc", "show", "dev", "eth0"])?.contains("clsact"));
        rig.note(!made()?, || "clsact is at the uplink before netpath".to_owned());
        let keeper = rig.up("keeper", Document::new().on_dual(&way.network(7), "eth0", 7, 9))?;
        rig.note(made()?, || "netpath has made no clsact at the uplink".to_owned());
        let third_party = Side::BOTH.map(|side| {
            let name = format!("in netpath's qdisc, {}", side.name());
            ThirdParty::new(name, Counter::clsact(host, "eth0", side, 60_000))
        });
        let third_party = third_party.into_iter().collect::<Result<Vec<_>>>()?;
        let filters = |what: &str, ours: bool| -> Result<()> {
            for side in Side::BOTH {
                let shown = host.command("tc", &["filter", "show", "dev", "eth0", side.name()])?;
                let so = shown.contains("pref 60000 ") && shown.contains("np_") == ours;
                rig.note(so, || format!("{what}, at the uplink's {}: {shown}", side.name()));
            }
            Ok(())
        };
        filters("beside netpath", true)?;
        all_see(rig, &third_party, "beside netpath", || all(rig, way, "beside others"))?;
        rig.netavark.teardown(&keeper.0, &keeper.1)?;
        filters("after netpath", false)?;
        all_see(rig, &third_party, "after netpath", || plain(rig))?;
        // From now on the qdisc belongs to others from the beginning.
        rig.netavark.setup(&keeper.0, &keeper.1)?;
        filters("beside netpath again", true)?;
        rig.netavark.teardown(&keeper.0, &keeper.1)?;
        filters("after netpath again", false)?;
        host.command("tc", &["qdisc", "del", "dev", "eth0", "clsact"])?;
        Ok(Vec::new())
    })
}
