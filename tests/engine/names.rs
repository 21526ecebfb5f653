//! Names of containers, as resolvers inside them see them: busybox's, glibc's (in busybox's wget), and `dig` and `host` where the
//! machine has them.

use super::*;
use anyhow::ensure;
use support::host::{SOON, wait_for};
use support::need;
use support::podman::image::PAGE;

/// The addresses of a name, as busybox's nslookup in the container prints them.
fn looked_up(m: &Machine, from: &str, name: &str) -> Result<Vec<String>> {
    let out = m.try_podman(&["exec", from, "nslookup", "-type=a", name])?;
    let answer = out.out.split("\n\n").skip(1);
    let mut found: Vec<String> =
        answer.flat_map(str::lines).filter_map(|l| l.strip_prefix("Address:").map(|a| a.trim().to_owned())).collect();
    found.sort();
    // It may ask each server of the container.
    found.dedup();
    Ok(found)
}

/// As if the program of the host ran inside the container's network namespace.
fn inside(m: &Machine, container: &str, command: &[&str]) -> Result<String> {
    let pid = m.podman(&["inspect", "-f", "{{.State.Pid}}", container])?;
    m.run_on_host("nsenter", &[&["-t", pid.as_str(), "-n"], command].concat())
}

pub(crate) fn names_of_several_networks_are_known_in_every_form(m: &Machine) -> Result<()> {
    m.podman(&["network", "create", "--subnet", "10.89.1.0/24", "one"])?;
    m.podman(&["network", "create", "--internal", "--subnet", "10.89.2.0/24", "two"])?;
    m.podman(&["network", "create", "--subnet", "10.89.3.0/24", "three"])?;
    run_httpd(m, "web", &["--network", "one,two", "--network-alias", "Store"])?;
    run_httpd(m, "app", &["--network", "one", "-h", "apphost"])?;
    run_httpd(m, "db", &["--network", "two"])?;
    run_httpd(m, "alien", &["--network", "three"])?;
    let address = |name: &str, network: &str| m.address(name, network).map(|a| a.to_string());
    let (on_one, on_two) = (address("web", "one")?, address("web", "two")?);
    let id = m.podman(&["inspect", "-f", "{{.Id}}", "web"])?[..12].to_owned();
    for name in ["web", "WEB", "web.dns.podman", "store", "STORE.dns.podman", &id, &format!("{id}.dns.podman")] {
        ensure!(looked_up(m, "app", name)? == [on_one.clone()], "{name} from app: {:?}", looked_up(m, "app", name)?);
        ensure!(looked_up(m, "db", name)? == [on_two.clone()], "{name} from db: {:?}", looked_up(m, "db", name)?);
    }
    ensure!(looked_up(m, "web", "app")? == [address("app", "one")?], "app from web");
    ensure!(looked_up(m, "web", "db")? == [address("db", "two")?], "db from web");
    for (from, name) in [("app", "db"), ("app", "alien"), ("db", "app"), ("alien", "web")] {
        ensure!(looked_up(m, from, &format!("{name}.dns.podman"))?.is_empty(), "{name} from {from}");
    }
    // By getaddrinfo of glibc.
    for (from, name) in [("app", "web"), ("web", "db"), ("web", "app.dns.podman")] {
        assert_eq!(PAGE.trim_end(), page_from(m, from, &format!("http://{name}/"))?);
    }
    if m.backend() == Backend::Netavark {
        return Ok(());
    }
    ensure!(looked_up(m, "web", "web.two")? == [on_two.clone()], "a name with its network");
    ensure!(looked_up(m, "app", "host.containers.internal")? == ["10.89.1.1"], "the host");
    if need::program("dig").is_ok() {
        let dig = |words: &[&str]| inside(m, "web", &[&["dig", "@10.89.1.1", "+short"], words].concat());
        assert_eq!(address("db", "two")?, dig(&["db"])?.trim());
        assert_eq!(address("db", "two")?, dig(&["+tcp", "db"])?.trim());
        assert_eq!("", dig(&["db", "MX"])?.trim());
        let reverse = dig(&["-x", &address("app", "one")?])?;
        ensure!(reverse.lines().any(|l| l == "app."), "{reverse}");
        let all = inside(m, "web", &["dig", "@10.89.2.1", "db", "HTTPS"])?;
        ensure!(all.contains("status: NOERROR") && all.contains("SOA"), "{all}");
    }
    if need::program("host").is_ok() {
        // Asks for A, AAAA and MX, and fails where one of them is an error.
        let said = inside(m, "web", &["host", "db", "10.89.1.1"])?;
        ensure!(said.contains(&address("db", "two")?), "{said}");
    }
    Ok(())
}

pub(crate) fn names_outlive_a_killed_agent_and_are_listed(m: &Machine) -> Result<()> {
    m.podman(&["network", "create", "--subnet", "10.89.1.0/24", "one"])?;
    run_httpd(m, "web", &["--network", "one"])?;
    run_httpd(m, "app", &["--network", "one"])?;
    let web = m.address("web", "one")?.to_string();
    ensure!(looked_up(m, "app", "web")? == [web.clone()], "before");
    if m.backend() == Backend::Netavark {
        return Ok(());
    }
    let binary = support::netavark::binary()?.display().to_string();
    let listed = m.run_on_host(&binary, &["dns"])?;
    ensure!(listed.contains("web") && listed.contains(&web) && listed.contains("queries"), "{listed}");
    let told = m.run_on_host(&binary, &["dns", "web", "--as", "app"])?;
    ensure!(told.contains("NoError, from netpath") && told.contains(&web), "{told}");
    let json: serde_json::Value = serde_json::from_str(&m.run_on_host(&binary, &["dns", "--json"])?)?;
    ensure!(
        json["networks"][0]["name"] == "one" && json["servers"][0]["counts"]["udp_queries"].as_u64() > Some(0),
        "{json}"
    );
    m.run_on_host("sh", &["-c", "kill -9 $(cat /run/containers/networks/aardvark-dns/aardvark.pid)"])?;
    ensure!(looked_up(m, "app", "web")?.is_empty(), "a server is still there");
    // Any command brings it back.
    run_httpd(m, "late", &["--network", "one"])?;
    wait_for("names after the agent was killed", SOON, || {
        (looked_up(m, "app", "web").ok()? == [web.clone()]).then_some(())
    })?;
    ensure!(looked_up(m, "web", "late")?.len() == 1, "the new one");
    m.podman(&["rm", "-f", "-t", "0", "late"])?;
    ensure!(looked_up(m, "web", "late")?.is_empty(), "a removed container keeps its name");
    Ok(())
}

/// Podman's conmon holds the published port on all addresses of the host.
pub(crate) fn a_published_port_53_leaves_names_alone(m: &Machine) -> Result<()> {
    if m.backend() != Backend::Netpath(None) {
        // There the DNS server is at port 53 of the gateway, and Podman gets no port.
        return Ok(());
    }
    m.podman(&["network", "create", "--subnet", "10.89.1.0/24", "one"])?;
    run_httpd(m, "web", &["--network", "one"])?;
    run_peer(m, "pihole", &["53"], &["--network", "one", "-p", "53:53/udp", "-p", "53:53/tcp"])?;
    let (web, pihole) = (m.address("web", "one")?.to_string(), m.address("pihole", "one")?.to_string());
    for from in ["web", "pihole"] {
        ensure!(
            looked_up(m, from, "pihole")? == [pihole.clone()] && looked_up(m, from, "web")? == [web.clone()],
            "{from}"
        );
    }
    for ask in [reach::udp, reach::udp_connected, reach::tcp] {
        assert_eq!(format!("pihole:53 sees {CLIENT}"), m.client(|| ask(SocketAddr::new(HOST, 53)))??);
    }
    let bound = m.run_on_host("cat", &["/proc/net/udp", "/proc/net/udp6"])?;
    ensure!(bound.contains(":0035 "), "the control: the engine does not hold the port: {bound}");
    check_rung(m)
}
