//! Addresses by DHCPv6 and by router advertisements.

use super::{IPVLAN, Lab, MACVLAN, OPTIONS, RANGE, address_of, document, lan, ready, wait_until};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;
use support::dhcp::{end_proxy, proxy};
use support::host::{SOON, wait_for};
use support::need;
use support::netavark::{Netavark, Network};
use support::residue::Residue;
use support::traffic::{Dial, Proto, Server};

/// The server of the client advertises itself as a router, for the host too.
fn advertising(more: &[&str]) -> Result<Lab> {
    let lab = Lab::new()?;
    lab.topology.host.set_sysctl("net/ipv6/conf/eth0/accept_ra", "0")?;
    lab.serve(
        RANGE,
        &[&OPTIONS[..], &["--enable-ra", "--dhcp-option=option6:dns-server,[2001:db8::53]"], more].concat(),
    )?;
    Ok(lab)
}

/// A whole life on `link` with all of IPv4, DHCPv6 and SLAAC, in `network`.
fn lives_with_v6(lab: &Lab, network: &Network, metric: u32) -> Result<()> {
    let network = network.clone().option("netpath.dhcp6", "on").option("netpath.slaac", "on");
    let netavark = Netavark::with(&lab.topology, &[])?;
    let web = lab.topology.container("web")?;
    let residue = Residue::watch(&lab.topology)?;
    let json = document(&web, &network);
    let answer = netavark.try_setup(&web, &json)?.json()?;
    let subnets = &answer["lan"]["interfaces"]["eth0"]["subnets"];
    ensure!(subnets[0]["gateway"] == "192.0.2.2" && subnets[1]["gateway"].is_null(), "{answer}");
    let net6 = subnets[1]["ipnet"].as_str().with_context(|| answer.to_string())?.to_owned();
    let address6 = net6.strip_suffix("/128").with_context(|| answer.to_string())?;
    ensure!(address6.starts_with("2001:db8:1::1"), "{answer}");
    assert_eq!(json!(["192.0.2.53", "2001:db8::53"]), answer["lan"]["dns_server_ips"]);
    ensure!(lab.server()?.leases().iter().any(|l| l.address == address6), "{}", lab.server()?.log());
    // By a router: an address of its prefix, and the default route.
    wait_until("an address by SLAAC", || {
        let all = web.ip_json(&["-6", "addr", "show", "dev", "eth0", "scope", "global"])?;
        let all: Vec<&Value> = all[0]["addr_info"].as_array().into_iter().flatten().collect();
        Ok(all.iter().any(|a| a["local"] == address6 && a["prefixlen"] == 128)
            && all.iter().any(|a| a["local"] != address6 && a["prefixlen"] == 64 && a["dynamic"] == true))
    })?;
    wait_until("a default route", || {
        let all = web.ip_json(&["-6", "route", "show", "default"])?;
        Ok(all[0]["metric"] == metric && all[0]["gateway"].as_str().is_some_and(|g| g.starts_with("fe80::")))
    })?;
    let ip: IpAddr = address6.parse()?;
    let _server = Server::echo(&web, Proto::Tcp, ip, 80, "web")?;
    wait_until("an answer", || Ok(Dial::new(Proto::Tcp, ip, 80).ask(&lab.topology.client).is_ok()))?;
    // Also by a proxy that has found the lease on disk.
    end_proxy(&lab.proxy_dir(), Signal::SIGKILL)?;
    netavark.try_teardown(&web, &json)?.done()?;
    wait_for("the release", SOON, || lab.server().is_ok_and(|s| s.leases().is_empty()).then_some(()))?;
    wait_for("the end of an idle proxy", Duration::from_secs(15), || proxy(&lab.proxy_dir()).is_none().then_some(()))?;
    residue.nothing_left(&lab.topology, &[&web])
}

const RANGE6: &str = "--dhcp-range=2001:db8:1::100,2001:db8:1::11f,slaac,64,2m";

#[test]
fn a_macvlan_gets_addresses_by_dhcp6_and_slaac_too() -> Result<()> {
    need!(ready(MACVLAN));
    lives_with_v6(&advertising(&[RANGE6])?, &lan("macvlan"), 99)
}

#[test]
fn an_ipvlan_gets_addresses_by_dhcp6_and_slaac_too() -> Result<()> {
    need!(ready(IPVLAN));
    lives_with_v6(&advertising(&[RANGE6])?, &lan("ipvlan"), 99)
}

#[test]
fn a_container_on_an_unmanaged_bridge_gets_addresses_by_dhcp6_and_slaac_too() -> Result<()> {
    need!(ready("link add name br9 type bridge"));
    let lab = advertising(&[RANGE6])?;
    let host = &lab.topology.host;
    host.ip("link add lan0 type bridge\naddr flush dev eth0\nlink set eth0 master lan0\n")?;
    host.set_sysctl("net/ipv6/conf/lan0/accept_ra", "0")?;
    host.ip("link set lan0 up\n")?;
    lives_with_v6(&lab, &lan("bridge").option("mode", "unmanaged").set("network_interface", "lan0"), 100)
}

#[test]
fn each_of_dhcp_dhcp6_and_slaac_is_an_option_of_its_own() -> Result<()> {
    need!(ready(MACVLAN));
    let lab = advertising(&[RANGE6])?;
    let netavark = Netavark::with(&lab.topology, &[])?;
    // Whether a lease of IPv4, one of IPv6, and an address by SLAAC are there; and a default route by IPv6.
    for (options, expected) in [
        (&[("netpath.dhcp4", "off"), ("netpath.dhcp6", "on")][..], (false, true, false, true)),
        (&[("netpath.slaac", "on")], (true, false, true, true)),
        (&[("netpath.slaac", "on"), ("no_default_route", "true")], (true, false, true, false)),
    ] {
        let web = lab.topology.container("web")?;
        let network = options.iter().fold(lan("macvlan"), |network, (key, value)| network.option(key, value));
        let json = document(&web, &network);
        netavark.try_setup(&web, &json)?.json()?;
        let found = || -> Result<(bool, bool, bool, bool)> {
            let leases = lab.server()?.leases();
            let has = |v6: bool| leases.iter().any(|l| l.address.contains(':') == v6);
            let all = web.ip_json(&["-6", "addr", "show", "dev", "eth0", "scope", "global"])?;
            let by_router = all[0]["addr_info"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|a| a["prefixlen"] == 64 && a["dynamic"] == true);
            let routes = web.ip_json(&["-6", "route", "show", "default"])?;
            Ok((has(false), has(true), by_router, routes.as_array().is_some_and(|r| !r.is_empty())))
        };
        // What does not come has had the time of what does.
        wait_until("what was asked for", || Ok(found()? == expected))
            .with_context(|| format!("{options:?}: {:?}", found()))?;
        netavark.try_teardown(&web, &json)?.done()?;
        wait_for("the release", SOON, || lab.server().is_ok_and(|s| s.leases().is_empty()).then_some(()))?;
    }
    Ok(())
}

/// Takes half of the shortest lease that dnsmasq grants.
#[test]
fn a_lease_by_dhcp6_is_extended() -> Result<()> {
    need!(ready(MACVLAN));
    if !need::is_full() {
        need!(Err::<(), _>("NETPATH_SOAK=full: it takes more than a minute".to_owned()));
    }
    let lab = advertising(&[RANGE6])?;
    let netavark = Netavark::with(&lab.topology, &[])?;
    let web = lab.topology.container("web")?;
    let json = document(&web, &lan("macvlan").option("netpath.dhcp4", "off").option("netpath.dhcp6", "on"));
    let address = address_of(&netavark.try_setup(&web, &json)?.json()?)?;
    wait_for("an extension", Duration::from_secs(100), || {
        lab.server().is_ok_and(|s| s.log().contains("DHCPRENEW(eth0)")).then_some(())
    })?;
    lab.away();
    std::thread::sleep(Duration::from_secs(75));
    ensure!(
        web.ip_json(&["-6", "addr", "show", "dev", "eth0"])?.to_string().contains(&address),
        "it ended at its first end"
    );
    lab.serve(RANGE, &["--enable-ra", RANGE6])?;
    netavark.try_teardown(&web, &json)?.done()
}
