//! User-defined networks: several at once, names, fixed addresses, and closed networks.

use super::*;
use anyhow::ensure;
use support::podman::image::PAGE;

pub(crate) fn a_container_is_reached_on_both_of_its_networks(m: &Machine) -> Result<()> {
    m.podman(&["network", "create", "--subnet", "10.89.1.0/24", "one"])?;
    m.podman(&["network", "create", "--subnet", "10.89.2.0/24", "two"])?;
    run_httpd(m, "web", &["--network", "one,two", "-p", "8080:80"])?;
    run_httpd(m, "first", &["--network", "one"])?;
    run_httpd(m, "second", &["--network", "two"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    assert_eq!(PAGE, page_inside(m, LOCALHOST, 8080)?);
    for (network, from) in [("one", "first"), ("two", "second")] {
        let ip = m.address("web", network)?;
        assert_eq!(PAGE.trim_end(), page_from(m, from, &format!("http://{ip}/"))?);
        assert_eq!(PAGE, page_inside(m, ip, 80)?);
    }
    check_rung(m)?;
    // The port has two owners now; the second must serve after the first is gone.
    m.podman(&["network", "disconnect", "one", "web"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    assert_eq!(PAGE, page_inside(m, LOCALHOST, 8080)?);
    Ok(())
}

pub(crate) fn a_network_is_connected_and_disconnected_while_running(m: &Machine) -> Result<()> {
    m.podman(&["network", "create", "--subnet", "10.89.1.0/24", "one"])?;
    m.podman(&["network", "create", "--subnet", "10.89.2.0/24", "two"])?;
    run_httpd(m, "web", &["--network", "one", "-p", "8080:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    m.podman(&["network", "connect", "two", "web"])?;
    let ip = m.address("web", "two")?;
    assert_eq!(PAGE, page_inside(m, ip, 80)?);
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    let links = m.podman(&["exec", "web", "ip", "-o", "link"])?;
    ensure!(links.contains("eth0") && links.contains("eth1"), "{links}");
    m.podman(&["network", "disconnect", "two", "web"])?;
    let links = m.podman(&["exec", "web", "ip", "-o", "link"])?;
    ensure!(links.contains("eth0") && !links.contains("eth1"), "{links}");
    let bridges = m.run_on_host("ip", &["-o", "link", "show", "type", "bridge"])?;
    assert_eq!(1, bridges.lines().count(), "{bridges}");
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    m.podman(&["network", "connect", "two", "web"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    check_rung(m)
}

pub(crate) fn containers_find_each_other_by_name(m: &Machine) -> Result<()> {
    m.podman(&["network", "create", "named"])?;
    run_httpd(m, "front", &["--network", "named"])?;
    run_httpd(m, "back", &["--network", "named", "--network-alias", "store"])?;
    for (from, name) in [("front", "back"), ("front", "store"), ("back", "front"), ("front", "back.dns.podman")] {
        let url = format!("http://{name}/");
        let page = reach::eventually(Duration::from_secs(3), || page_from(m, from, &url));
        assert_eq!(PAGE.trim_end(), page.with_context(|| format!("{name} from {from}"))?);
    }
    let resolv = m.podman(&["exec", "front", "cat", "/etc/resolv.conf"])?;
    ensure!(resolv.contains("dns.podman"), "{resolv}");
    m.podman(&["rm", "-f", "-t", "0", "back"])?;
    ensure!(page_from(m, "front", "http://back/").is_err(), "a removed container still has its name");
    run_httpd(m, "late", &["--network", "named"])?;
    let page = reach::eventually(Duration::from_secs(9), || page_from(m, "front", "http://late/"));
    assert_eq!(PAGE.trim_end(), page?);
    Ok(())
}

pub(crate) fn a_fixed_address_and_mac_are_what_the_container_has(m: &Machine) -> Result<()> {
    m.podman(&["network", "create", "--subnet", "10.89.3.0/24", "--gateway", "10.89.3.254", "fixed"])?;
    let fixed = ["--network", "fixed", "--ip", "10.89.3.7", "--mac-address", "0a:11:22:33:44:55"];
    run_httpd(m, "web", &[&fixed[..], &["-p", "8080:80"]].concat())?;
    let link = m.podman(&["exec", "web", "ip", "address", "show", "eth0"])?;
    ensure!(link.contains("10.89.3.7/24") && link.contains("0a:11:22:33:44:55"), "{link}");
    let route = m.podman(&["exec", "web", "ip", "route"])?;
    ensure!(route.contains("default via 10.89.3.254"), "{route}");
    let settings =
        "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.IPPrefixLen}} {{.Gateway}} {{.MacAddress}}{{end}}";
    let inspected = m.podman(&["inspect", "--format", settings, "web"])?;
    assert_eq!("10.89.3.7 24 10.89.3.254 0a:11:22:33:44:55", inspected);
    assert_eq!("80/tcp -> 0.0.0.0:8080", m.podman(&["port", "web"])?);
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    Ok(())
}

pub(crate) fn an_internal_network_has_no_way_out(m: &Machine) -> Result<()> {
    m.podman(&["network", "create", "--internal", "--subnet", "10.89.4.0/24", "shut"])?;
    run_httpd(m, "inside", &["--network", "shut"])?;
    run_httpd(m, "friend", &["--network", "shut"])?;
    run_httpd(m, "outsider", &[])?;
    let ip = m.address("inside", "shut")?;
    assert_eq!(PAGE.trim_end(), page_from(m, "friend", &format!("http://{ip}/"))?);
    let listener = m.client(|| std::net::TcpListener::bind((support::podman::FAR, 8000)))??;
    ensure!(page_from(m, "inside", &format!("http://{}:8000/", support::podman::FAR)).is_err(), "there is a way out");
    ensure!(page_from(m, "outsider", &format!("http://{ip}/")).is_err(), "there is a way in from another network");
    drop(listener);
    let route = m.podman(&["exec", "inside", "ip", "route"])?;
    ensure!(!route.contains("default"), "{route}");
    Ok(())
}

pub(crate) fn isolated_networks_do_not_reach_each_other(m: &Machine) -> Result<()> {
    m.podman(&["network", "create", "--opt", "isolate=true", "left"])?;
    m.podman(&["network", "create", "--opt", "isolate=true", "right"])?;
    m.podman(&["network", "create", "open"])?;
    run_httpd(m, "l", &["--network", "left"])?;
    run_httpd(m, "r", &["--network", "right"])?;
    run_httpd(m, "o", &["--network", "open"])?;
    run_httpd(m, "p", &["--network", "open"])?;
    let url = |name, network| m.address(name, network).map(|ip| format!("http://{ip}/"));
    ensure!(page_from(m, "l", &url("r", "right")?).is_err(), "two isolated networks reach each other");
    ensure!(page_from(m, "r", &url("l", "left")?).is_err(), "two isolated networks reach each other");
    assert_eq!(PAGE.trim_end(), page_from(m, "p", &url("o", "open")?)?);
    assert_eq!(PAGE.trim_end(), page_from(m, "o", &url("l", "left")?)?);
    check_rung(m)
}

/// `podman network create -d macvlan`, twice, and a bridge, on one container: clients on the wire reach it there.
pub(crate) fn a_container_is_on_two_macvlans_and_a_bridge(m: &Machine) -> Result<()> {
    let create = ["network", "create", "-d", "macvlan", "-o", "parent=eth0"];
    m.podman(&[&create[..], &["--subnet", "192.0.2.0/24", "--gateway", "192.0.2.2", "lan"]].concat())?;
    m.podman(&[&create[..], &["--subnet", "198.51.100.0/24", "--internal", "lan2"]].concat())?;
    m.podman(&["network", "create", "--subnet", "10.89.1.0/24", "one"])?;
    run_httpd(m, "web", &["--network", "one", "-p", "8080:80"])?;
    m.podman(&["network", "connect", "--ip", "192.0.2.50", "lan", "web"])?;
    m.podman(&["network", "connect", "--ip", "198.51.100.50", "lan2", "web"])?;
    let on_lan = Ipv4Addr::new(192, 0, 2, 50);
    assert_eq!(PAGE, page_outside(m, on_lan, 80)?);
    assert_eq!(PAGE, page_inside(m, LOCALHOST, 8080)?);
    let addresses = || m.podman(&["exec", "web", "ip", "-o", "-4", "address"]);
    for address in ["10.89.1.", "192.0.2.50/24", "198.51.100.50/24"] {
        ensure!(addresses()?.contains(address), "{address} is not in {}", addresses()?);
    }
    assert_eq!(IpAddr::V4(on_lan), m.address("web", "lan")?);
    // Before 2.0 Netavark gave both default routes the same metric.
    if m.backend() != Backend::Netavark {
        let listener = m.client(|| std::net::TcpListener::bind((support::podman::FAR, 8000)))??;
        listener.set_nonblocking(true)?;
        ensure!(page_from(m, "web", &format!("http://{}:8000/", support::podman::FAR)).is_err(), "there is no page");
        let (_, client) = listener.accept().context("it has not come")?;
        assert_eq!(IpAddr::V4(on_lan), client.ip(), "the way out is not the macvlan");
    }
    check_rung(m)?;
    m.podman(&["network", "disconnect", "lan", "web"])?;
    ensure!(!addresses()?.contains("192.0.2.50"), "{}", addresses()?);
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    m.podman(&["rm", "-f", "-t", "0", "web"])?;
    let fixed = ["--network", "lan", "--ip", "192.0.2.51", "--mac-address", "0a:11:22:33:44:55"];
    run_httpd(m, "alone", &fixed)?;
    let link = m.podman(&["exec", "alone", "ip", "address", "show", "eth0"])?;
    ensure!(link.contains("192.0.2.51/24") && link.contains("0a:11:22:33:44:55"), "{link}");
    let fixed = Ipv4Addr::new(192, 0, 2, 51);
    assert_eq!(PAGE, page_outside(m, fixed, 80)?);
    m.podman(&["restart", "-t", "0", "alone"])?;
    assert_eq!(PAGE, page_outside(m, fixed, 80)?);
    Ok(())
}

/// `podman network create -d macvlan --ipam-driver dhcp`, with a real server on the wire: the backend's own proxy, which nothing has started.
pub(crate) fn a_container_on_a_macvlan_gets_its_address_by_dhcp(m: &Machine) -> Result<()> {
    if m.backend() == Backend::Netavark {
        return Err(
            support::harness::Skipped("netpath: Netavark's proxy is a service that is to be enabled".into()).into()
        );
    }
    let dir = tempdir()?;
    let options = ["--dhcp-option=option:router,192.0.2.2", "--dhcp-option=option:dns-server,192.0.2.2"];
    let server = m.dhcp(&dir.0, "192.0.2.100,192.0.2.119", &options)?;
    let created =
        m.try_podman(&["network", "create", "-d", "macvlan", "-o", "parent=eth0", "--ipam-driver", "dhcp", "lan"])?;
    if created.err.contains("not yet supported with netavark") {
        // Podman before 4.5 creates no such network, but runs containers on it.
        let network = serde_json::json!({
            "name": "lan", "id": "ab".repeat(32), "driver": "macvlan", "network_interface": "eth0",
            "created": "2026-01-01T00:00:00Z", "ipv6_enabled": false, "internal": false, "dns_enabled": false,
            "ipam_options": {"driver": "dhcp"},
        });
        let write = format!("mkdir -p /etc/containers/networks && echo '{network}' >/etc/containers/networks/lan.json");
        m.run_on_host("sh", &["-c", &write])?;
    } else {
        ensure!(created.code == Some(0), "{}", created.err);
    }
    run_httpd(m, "web", &["--network", "lan"])?;
    let granted = server.leases();
    ensure!(granted.len() == 1, "{granted:?}\n{}", server.log());
    assert_eq!(granted[0].address.parse::<IpAddr>()?, m.address("web", "lan")?, "podman inspect");
    let routes = m.podman(&["exec", "web", "ip", "route"])?;
    ensure!(routes.contains("default via 192.0.2.2 "), "{routes}");
    assert_eq!(PAGE, page_outside(m, granted[0].address.parse::<IpAddr>()?, 80)?);
    // It is the same container for the server.
    m.podman(&["restart", "-t", "0", "web"])?;
    let again = server.leases();
    ensure!(again.len() == 1 && again[0].client_id == granted[0].client_id, "{again:?}");
    assert_eq!(PAGE, page_outside(m, again[0].address.parse::<IpAddr>()?, 80)?);
    m.podman(&["rm", "-f", "-t", "0", "web"])?;
    reach::eventually(Duration::from_secs(5), || {
        ensure!(server.leases().is_empty(), "not given back: {}", server.log());
        Ok(())
    })
}

/// Removed with what is in it.
struct Dir(std::path::PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn tempdir() -> Result<Dir> {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let serial = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("netpath-engine-dhcp-{}-{serial}", std::process::id()));
    std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(Dir(dir))
}
