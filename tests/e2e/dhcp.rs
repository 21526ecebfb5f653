//! Addresses by DHCP, from a real dnsmasq on the client, for containers on the host's links.

mod v6;

use anyhow::{Context, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::cell::{Ref, RefCell};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::dhcp::{DhcpServer, end_proxy, proxy, proxy_dir};
use support::host::{SOON, patience, wait_for};
use support::need;
use support::need::Need;
use support::netavark::{Document, Netavark, Network};
use support::residue::Residue;
use support::topology::{CLIENT4, Container, Topology};
use support::traffic::{Dial, Proto, Server};

const MACVLAN: &str = "link add link v0 name mv0 type macvlan mode bridge";
const IPVLAN: &str = "link add link v0 name iv0 type ipvlan mode l2";
const RANGE: &str = "192.0.2.100,192.0.2.119";
const OTHER_RANGE: &str = "192.0.2.150,192.0.2.169";
const OPTIONS: [&str; 3] =
    ["--dhcp-option=option:router,192.0.2.2", "--dhcp-option=option:dns-server,192.0.2.53", "--domain=lab.test"];

fn ready(link: &str) -> Need {
    need::root()?;
    need::netpath()?;
    need::program("dnsmasq")?;
    need::accepted("ip", link)
}

/// A host with a server beside it.
struct Lab {
    topology: Topology,
    server: RefCell<Option<DhcpServer>>,
    dir: PathBuf,
}

impl Lab {
    fn new() -> Result<Self> {
        let topology = Topology::new()?;
        let dir = topology.dir().join("dnsmasq");
        Ok(Self { topology, server: RefCell::new(None), dir })
    }

    fn serving() -> Result<Self> {
        let lab = Self::new()?;
        lab.serve(RANGE, &OPTIONS)?;
        Ok(lab)
    }

    /// In place of the server before, with its leases.
    fn serve(&self, range: &str, options: &[&str]) -> Result<()> {
        self.away();
        *self.server.borrow_mut() = Some(DhcpServer::start(&self.topology.client, &self.dir, "eth0", range, options)?);
        Ok(())
    }

    fn away(&self) {
        *self.server.borrow_mut() = None;
    }

    fn server(&self) -> Result<Ref<'_, DhcpServer>> {
        Ref::filter_map(self.server.borrow(), Option::as_ref).map_err(|_| anyhow!("no server runs"))
    }

    fn proxy_dir(&self) -> PathBuf {
        proxy_dir(&self.topology)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = end_proxy(&self.proxy_dir(), Signal::SIGKILL);
    }
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Seen {
    addresses: Vec<String>,
    /// `VIA METRIC`
    defaults: Vec<String>,
}

fn seen(container: &Container) -> Result<Seen> {
    let addresses = container.ip_json(&["-4", "addr", "show", "dev", "eth0"])?;
    let text = |a: &Value| format!("{}/{}", a["local"].as_str().unwrap_or(""), a["prefixlen"]);
    let routes = container.ip_json(&["-4", "route", "show", "default"])?;
    let route = |r: &Value| format!("{} {}", r["gateway"].as_str().unwrap_or(""), r["metric"]);
    Ok(Seen {
        addresses: addresses[0]["addr_info"].as_array().into_iter().flatten().map(text).collect(),
        defaults: routes.as_array().into_iter().flatten().map(route).collect(),
    })
}

fn lan(driver: &str) -> Network {
    let network = Network::new("lan", "eth0").set("driver", driver).set("ipam_options", json!({"driver": "dhcp"}));
    network.set("subnets", Value::Null)
}

fn document(container: &Container, network: &Network) -> Value {
    let document = Document::new().attach(network, json!({"interface_name": "eth0"}));
    let mut json = document.json(container);
    json["container_hostname"] = json!("web01");
    json
}

/// The address that setup has answered, without its prefix.
fn address_of(answer: &Value) -> Result<String> {
    let net =
        answer["lan"]["interfaces"]["eth0"]["subnets"][0]["ipnet"].as_str().with_context(|| answer.to_string())?;
    Ok(net.split('/').next().unwrap_or_default().to_owned())
}

fn wait_until(what: &str, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(what, Duration::from_secs(40), || match so() {
        Ok(true) => Some(Ok(())),
        Ok(false) => None,
        Err(e) => Some(Err(e)),
    })?
}

/// A whole life on `link`, in `network`.
fn lives(lab: &Lab, network: &Network, metric: u32, peer: &str) -> Result<()> {
    let netavark = Netavark::with(&lab.topology, &[])?;
    let web = lab.topology.container("web")?;
    let residue = Residue::watch(&lab.topology)?;
    let json = document(&web, network);
    let answer = netavark.try_setup(&web, &json)?.json()?;
    let address = address_of(&answer)?;
    let granted = lab.server()?.leases();
    ensure!(granted.len() == 1 && granted[0].address == address, "{address}: {granted:?}");
    assert_eq!("web01", granted[0].host_name);
    let id: String = web.id.bytes().map(|b| format!(":{b:02x}")).collect();
    assert_eq!(format!("00{id}"), granted[0].client_id, "type 0 and the container's id");
    assert_eq!(granted[0].mac, answer["lan"]["interfaces"]["eth0"]["mac_address"].as_str().unwrap_or(""));
    let expected = json!({
        "dns_search_domains": ["lab.test"], "dns_server_ips": ["192.0.2.53"],
        "interfaces": {"eth0": {
            "mac_address": granted[0].mac, "subnets": [{"ipnet": format!("{address}/24"), "gateway": "192.0.2.2"}],
        }},
    });
    assert_eq!(expected, answer["lan"]);
    let own = Seen { addresses: vec![format!("{address}/24")], defaults: vec![format!("{CLIENT4} {metric}")] };
    assert_eq!(own, seen(&web)?);
    let ip: IpAddr = address.parse()?;
    let _server = Server::echo(&web, Proto::Tcp, ip, 80, "web")?;
    let dialled = Dial::new(Proto::Tcp, ip, 80).ask(&lab.topology.client)?;
    assert_eq!(peer, dialled.client.ip().to_string());
    wait_until("an extension", || Ok(lab.server()?.count("DHCPACK", &address) >= 2))?;
    assert_eq!(own, seen(&web)?);
    netavark.try_teardown(&web, &json)?.done()?;
    netavark.try_teardown(&web, &json)?.done()?;
    // By teardown, and not by the proxy, which would notice later that the interface is gone.
    wait_for("the release", SOON, || lab.server().is_ok_and(|s| s.leases().is_empty()).then_some(()))?;
    ensure!(lab.server()?.count("DHCPRELEASE", &address) == 1, "{}", lab.server()?.log());
    wait_for("the end of an idle proxy", Duration::from_secs(15), || proxy(&lab.proxy_dir()).is_none().then_some(()))?;
    let left: Vec<_> = std::fs::read_dir(lab.proxy_dir())?.collect::<Result<_, _>>()?;
    ensure!(left.is_empty(), "the proxy has left {left:?}");
    residue.nothing_left(&lab.topology, &[&web])
}

#[test]
fn a_macvlan_gets_its_address_by_dhcp_keeps_it_and_gives_it_back() -> Result<()> {
    need!(ready(MACVLAN));
    lives(&Lab::serving()?, &lan("macvlan"), 99, "192.0.2.2")
}

#[test]
fn an_ipvlan_gets_its_address_by_dhcp_keeps_it_and_gives_it_back() -> Result<()> {
    need!(ready(IPVLAN));
    lives(&Lab::serving()?, &lan("ipvlan"), 99, "192.0.2.2")
}

#[test]
fn a_container_on_an_unmanaged_bridge_gets_its_address_by_dhcp_keeps_it_and_gives_it_back() -> Result<()> {
    need!(ready("link add name br9 type bridge"));
    let lab = Lab::serving()?;
    lab.topology
        .host
        .ip("link add lan0 type bridge\naddr flush dev eth0\nlink set eth0 master lan0\nlink set lan0 up\n")?;
    let network = lan("bridge").option("mode", "unmanaged").set("network_interface", "lan0");
    lives(&lab, &network, 100, "192.0.2.2")
}

#[test]
fn metric_and_default_route_are_the_networks() -> Result<()> {
    need!(ready(MACVLAN));
    let lab = Lab::serving()?;
    let netavark = Netavark::with(&lab.topology, &[])?;
    for (network, defaults) in [
        (lan("macvlan").option("metric", "7"), vec![format!("{CLIENT4} 7")]),
        (lan("macvlan").option("no_default_route", "true"), Vec::new()),
        (lan("macvlan").set("internal", true), Vec::new()),
    ] {
        let web = lab.topology.container("web")?;
        let json = document(&web, &network);
        netavark.try_setup(&web, &json)?.json()?;
        assert_eq!(defaults, seen(&web)?.defaults);
        // Nothing has time to find the server's hardware address before the interface goes.
        web.ip("neigh flush dev eth0\n")?;
        lab.topology.client.set_sysctl("net/ipv4/conf/eth0/arp_ignore", "8")?;
        netavark.try_teardown(&web, &json)?.done()?;
        wait_for("the release", SOON, || lab.server().is_ok_and(|s| s.leases().is_empty()).then_some(()))?;
        lab.topology.client.set_sysctl("net/ipv4/conf/eth0/arp_ignore", "0")?;
    }
    // `--dns` takes precedence.
    let web = lab.topology.container("web")?;
    let mut json = document(&web, &lan("macvlan"));
    json["dns_servers"] = json!(["192.0.2.9"]);
    let answer = netavark.try_setup(&web, &json)?.json()?;
    assert_eq!(
        (json!([]), json!(["lab.test"])),
        (answer["lan"]["dns_server_ips"].clone(), answer["lan"]["dns_search_domains"].clone())
    );
    netavark.try_teardown(&web, &json)?.done()
}

#[test]
fn a_container_follows_its_server_to_another_gateway_and_by_a_refusal_to_another_range() -> Result<()> {
    need!(ready(MACVLAN));
    let lab = Lab::serving()?;
    let netavark = Netavark::with(&lab.topology, &[])?;
    let web = lab.topology.container("web")?;
    let json = document(&web, &lan("macvlan"));
    let address = address_of(&netavark.try_setup(&web, &json)?.json()?)?;
    lab.serve(RANGE, &["--dhcp-option=option:router,192.0.2.77"])?;
    let moved = Seen { addresses: vec![format!("{address}/24")], defaults: vec!["192.0.2.77 99".to_owned()] };
    wait_until("the other gateway", || Ok(seen(&web)? == moved))?;
    lab.serve(OTHER_RANGE, &OPTIONS)?;
    let is_other =
        |s: &Seen| matches!(s.addresses.as_slice(), [a] if a.starts_with("192.0.2.15") || a.starts_with("192.0.2.16"));
    wait_until("an address of the other range", || Ok(is_other(&seen(&web)?)))?;
    wait_until("its default route", || Ok(seen(&web)?.defaults == [format!("{CLIENT4} 99")]))?;
    ensure!(lab.server()?.count("DHCPNAK", &address) > 0, "no refusal: {}", lab.server()?.log());
    netavark.try_teardown(&web, &json)?.done()?;
    wait_until("the release", || Ok(lab.server()?.leases().is_empty()))
}

#[test]
fn setup_waits_for_a_server_that_comes_and_fails_in_time_without_one() -> Result<()> {
    need!(ready(MACVLAN));
    let lab = Lab::new()?;
    let web = lab.topology.container("web")?;
    let json = document(&web, &lan("macvlan"));
    let residue = Residue::watch(&lab.topology)?;
    let told = {
        let answer = Netavark::with(&lab.topology, &[])?.try_setup(&web, &json)?;
        ensure!(answer.took < Duration::from_secs(10) * patience(), "an engine waited {:?}", answer.took);
        answer.error()?
    };
    ensure!(
        told.contains("unable to obtain lease") && told.contains("Timeout on acquiring DHCPv4 lease on eth0"),
        "{told}"
    );
    ensure!(told.contains("none left behind"), "{told}");
    end_proxy(&lab.proxy_dir(), Signal::SIGTERM)?;
    residue.nothing_left(&lab.topology, &[&web])?;
    let command = Netavark::with(&lab.topology, &[])?.command(&["setup", &web.path().to_string_lossy()]);
    let (host, text) = (support::host::Netns::at(lab.topology.host.path())?, json.to_string());
    let setup = std::thread::spawn(move || host.output(command, text.as_bytes()));
    std::thread::sleep(Duration::from_secs(2));
    lab.serve(RANGE, &OPTIONS)?;
    let out = setup.join().map_err(|_| anyhow!("setup panicked"))??;
    let answer: Value = serde_json::from_slice(&out.stdout)?;
    let address = address_of(&answer)?;
    // A server that is away is none either: the lease stays, and is extended when the server is back.
    lab.away();
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(vec![format!("{address}/24")], seen(&web)?.addresses);
    lab.serve(RANGE, &OPTIONS)?;
    let before = lab.server()?.count("DHCPACK", &address);
    wait_until("an extension by the server that is back", || Ok(lab.server()?.count("DHCPACK", &address) > before))?;
    Netavark::with(&lab.topology, &[])?.try_teardown(&web, &json)?.done()
}

#[test]
fn leases_survive_a_proxy_that_is_killed() -> Result<()> {
    need!(ready(MACVLAN));
    let lab = Lab::serving()?;
    let netavark = Netavark::with(&lab.topology, &[])?;
    let [web, db] = [lab.topology.container("web")?, lab.topology.container("db")?];
    let [of_web, of_db] = [document(&web, &lan("macvlan")), document(&db, &lan("macvlan"))];
    let address = address_of(&netavark.try_setup(&web, &of_web)?.json()?)?;
    let first = proxy(&lab.proxy_dir()).context("no proxy runs")?;
    end_proxy(&lab.proxy_dir(), Signal::SIGKILL)?;
    // The next container starts another.
    netavark.try_setup(&db, &of_db)?.json()?;
    ensure!(proxy(&lab.proxy_dir()).is_some_and(|second| second != first), "the same proxy");
    let before = lab.server()?.count("DHCPACK", &address);
    wait_until("an extension by the other proxy", || Ok(lab.server()?.count("DHCPACK", &address) > before))?;
    // So does teardown, to give the address back.
    end_proxy(&lab.proxy_dir(), Signal::SIGKILL)?;
    netavark.try_teardown(&web, &of_web)?.done()?;
    wait_until("the release", || Ok(lab.server()?.leases().len() == 1))?;
    // A container that is gone with its namespace: the host tells the server.
    let remaining = lab.server()?.leases();
    end_proxy(&lab.proxy_dir(), Signal::SIGKILL)?;
    let mut gone = of_db.clone();
    gone["container_name"] = json!("db");
    let path = db.path().to_owned();
    drop(db);
    let answer = netavark.call(&["teardown", &path.to_string_lossy()], gone.to_string().as_bytes())?;
    answer.done()?;
    wait_until("the release by the host", || Ok(lab.server()?.leases().is_empty()))?;
    ensure!(lab.server()?.count("DHCPRELEASE", &remaining[0].address) == 1, "{}", lab.server()?.log());
    Ok(())
}

#[test]
fn two_networks_of_a_container_on_one_server_have_an_address_each() -> Result<()> {
    need!(ready(MACVLAN));
    let lab = Lab::serving()?;
    let netavark = Netavark::with(&lab.topology, &[])?;
    let web = lab.topology.container("web")?;
    let second = Network::new("lan2", "eth0").set("driver", "macvlan").set("ipam_options", json!({"driver": "dhcp"}));
    let document = Document::new()
        .attach(&lan("macvlan"), json!({"interface_name": "eth0"}))
        .attach(&second.set("subnets", Value::Null), json!({"interface_name": "eth1"}));
    netavark.setup(&web, &document)?;
    let mut ids: Vec<String> = lab.server()?.leases().into_iter().map(|l| l.client_id).collect();
    ids.sort();
    let id: String = web.id.bytes().map(|b| format!(":{b:02x}")).collect();
    assert_eq!(vec![format!("00{id}"), format!("00{id}:20:65:74:68:31")], ids, "the container's id, and with the name");
    let seen: Vec<Value> = ["eth0", "eth1"]
        .map(|link| web.ip_json(&["-4", "addr", "show", "dev", link]).map(|a| a[0]["addr_info"][0]["local"].clone()))
        .into_iter()
        .collect::<Result<_>>()?;
    ensure!(seen[0] != seen[1] && seen.iter().all(Value::is_string), "{seen:?}");
    netavark.teardown(&web, &document)?;
    wait_for("the release", SOON, || lab.server().is_ok_and(|s| s.leases().is_empty()).then_some(()))
}

/// It was idle, or killed, just when the call came.
#[test]
fn a_proxy_that_ends_before_it_answers_is_replaced() -> Result<()> {
    need!(ready(MACVLAN));
    let lab = Lab::serving()?;
    let netavark = Netavark::with(&lab.topology, &[])?;
    let web = lab.topology.container("web")?;
    let json = document(&web, &lan("macvlan"));
    std::fs::create_dir_all(lab.proxy_dir())?;
    let socket = lab.proxy_dir().join("nv-proxy.sock");
    let ending = |call: &dyn Fn() -> Result<()>| -> Result<()> {
        let listener = UnixListener::bind(&socket)?;
        let last = std::thread::spawn(move || listener.accept().map(drop));
        call()?;
        last.join().map_err(|_| anyhow!("the listener panicked"))?.context("no call came")
    };
    ending(&|| netavark.try_setup(&web, &json)?.json().map(drop))?;
    ensure!(lab.server()?.leases().len() == 1, "{}", lab.server()?.log());
    end_proxy(&lab.proxy_dir(), Signal::SIGKILL)?;
    std::fs::remove_file(&socket)?;
    ending(&|| netavark.try_teardown(&web, &json)?.done())?;
    wait_for("the release", SOON, || lab.server().is_ok_and(|s| s.leases().is_empty()).then_some(()))
}

/// As systemd does: the socket is there before the proxy, which ends without a lease and leaves the socket.
#[test]
fn the_proxy_takes_a_socket_over_and_ends_when_idle() -> Result<()> {
    need!(ready(MACVLAN));
    let lab = Lab::serving()?;
    let dir = lab.proxy_dir();
    std::fs::create_dir_all(&dir)?;
    let socket = dir.join("nv-proxy.sock");
    let listener = UnixListener::bind(&socket)?;
    let mut command = Command::new(support::netavark::binary()?);
    command.args(["dhcp-proxy", "-a", "1", "--dir"]).arg(&dir).env("LISTEN_FDS", "1").env_remove("LISTEN_PID");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let fd = listener.as_raw_fd();
    // SAFETY: between fork and exec only a bare system call is made.
    unsafe {
        command.pre_exec(move || match libc::dup2(fd, 3) {
            3 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        });
    }
    let mut child = lab.topology.host.run(move || command.spawn())?;
    let netavark = Netavark::with(&lab.topology, &[])?;
    let web = lab.topology.container("web")?;
    let json = document(&web, &lan("macvlan"));
    netavark.try_setup(&web, &json)?.json()?;
    assert_eq!(Some(child.id() as i32), proxy(&dir), "another proxy was started");
    std::thread::sleep(Duration::from_secs(2));
    ensure!(child.try_wait()?.is_none(), "it ended with a lease");
    let begun = Instant::now();
    netavark.try_teardown(&web, &json)?.done()?;
    let status = wait_for("the end of the idle proxy", SOON, || child.try_wait().ok().flatten())?;
    ensure!(status.success() && begun.elapsed() > Duration::from_millis(500), "{status} after {:?}", begun.elapsed());
    ensure!(socket.exists(), "the socket is systemd's");
    // Another proxy replaces one that runs, with its leases.
    let start = || -> Result<std::process::Child> {
        let mut command = Command::new(support::netavark::binary()?);
        command.args(["dhcp-proxy", "-a", "0", "--dir"]).arg(&dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        lab.topology.host.run(move || command.spawn()).context("cannot start the proxy")
    };
    drop(listener);
    let mut first = start()?;
    wait_for("the first proxy", SOON, || (proxy(&dir) == Some(first.id() as i32)).then_some(()))?;
    // Once it answers it handles signals.
    netavark.try_teardown(&web, &json)?.done()?;
    let mut second = start()?;
    wait_for("the second proxy", SOON, || (proxy(&dir) == Some(second.id() as i32)).then_some(()))?;
    ensure!(
        wait_for("the end of the first", SOON, || first.try_wait().ok().flatten())?.success(),
        "it did not end well"
    );
    netavark.try_teardown(&web, &json)?.done()?;
    end_proxy(&dir, Signal::SIGTERM)?;
    ensure!(
        wait_for("the end of the second", SOON, || second.try_wait().ok().flatten())?.success(),
        "it did not end well"
    );
    ensure!(!socket.exists(), "its own socket is left");
    Ok(())
}

/// Takes as long as the shortest lease that dnsmasq grants.
#[test]
fn a_lease_that_ends_takes_the_address_away_and_another_one_comes() -> Result<()> {
    need!(ready(MACVLAN));
    if !need::is_full() {
        need!(Err::<(), _>("NETPATH_SOAK=full: it takes more than two minutes".to_owned()));
    }
    let lab = Lab::serving()?;
    let netavark = Netavark::with(&lab.topology, &[])?;
    let web = lab.topology.container("web")?;
    let json = document(&web, &lan("macvlan"));
    netavark.try_setup(&web, &json)?.json()?;
    lab.away();
    let begun = Instant::now();
    wait_for("the end of the lease", Duration::from_secs(150), || (seen(&web).ok()? == Seen::default()).then_some(()))?;
    ensure!(begun.elapsed() > Duration::from_secs(100), "the address went after {:?}", begun.elapsed());
    lab.serve(RANGE, &OPTIONS)?;
    wait_until("another lease", || Ok(seen(&web)?.defaults == [format!("{CLIENT4} 99")]))?;
    netavark.try_teardown(&web, &json)?.done()
}
