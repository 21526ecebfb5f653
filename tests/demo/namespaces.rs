//! The demo without an engine: three namespaces, and netpath called the way Podman calls its network backend.

use crate::steps::Steps;
use anyhow::{Context, Result, ensure};
use netpath_common::reason::Reason;
use std::io::{IsTerminal, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use support::host::Netns;
use support::maps;
use support::need;
use support::netavark::{Document, Netavark, Network, binary};
use support::residue::{Residue, netfilter};
use support::topology::{Container, Family, Topology};
use support::traffic::{ANY, Server};

const PORT: u16 = 8080;
const NETWORK: u8 = 1;
const HOST_PART: u8 = 5;

/// Runs the demo. `keep`: waits before the cleanup, so that the three namespaces can be inspected.
///
/// # Errors
/// A step has an unexpected result.
pub(crate) fn run(keep: bool) -> Result<()> {
    need::root().map_err(|what| anyhow::anyhow!("the demo needs {what}: it makes network namespaces"))?;
    println!("A container's port, published by eBPF\n");
    let mut steps = Steps::of(7);
    let [web4, web6] = Family::BOTH.map(|f| f.container(NETWORK, HOST_PART));
    let client = Family::V4.client();

    let step = steps.next("three network namespaces: a client, a host, a container");
    let topology = Topology::new()?;
    let container = topology.container("web")?;
    let residue = Residue::watch(&topology)?;
    step.done(&[format!("client {client} ── wire ── {} host          web (empty)", Family::V4.host())]);

    let step = steps.next("netavark setup <web>      netpath under that name, as Podman calls its network backend");
    // Forces eBPF: the demo shows the programs.
    let netavark = Netavark::with(&topology, &[("NETPATH_DATAPATH", "ebpf")])?;
    let document = document();
    let begun = Instant::now();
    netavark.setup(&container, &document)?;
    let took = begun.elapsed();
    step.done(&[
        format!("client {client} ── wire ── {} host ── podman1 ── {web4} web", Family::V4.host()),
        format!("port {PORT} of the host leads to port 80 of web; done in {} ms", took.as_millis()),
    ]);

    let step = steps.next("a web server in the container");
    let server = serve(&container)?;
    step.done(&[format!("listening on {web4}:80 and [{web6}]:80")]);

    let step = steps.next(&format!("the page, fetched through port {PORT}"));
    step.done(&[
        fetch(&topology.client, "from outside", Family::V4.host(), Some(client))?,
        fetch(&topology.client, "from outside", Family::V6.host(), Some(Family::V6.client()))?,
        fetch(&topology.host, "on the host", Family::V4.localhost(), None)?,
        fetch(&topology.host, "on the host", Family::V6.localhost(), None)?,
        fetch(&topology.host, "on the host", Family::V4.host(), None)?,
        outwards(&topology, &container)?,
    ]);

    let step = steps.next("netpath flows; netpath status      what carried it");
    step.done(&carried(&topology, SocketAddr::new(web4, 80))?);

    let step = steps.next("nft list ruleset; iptables-save      the firewall of this host");
    let rules = netfilter(&topology.host)?;
    ensure!(rules.is_empty(), "expected no rule of netfilter, found:\n{rules:#?}");
    step.done(&["not one rule".to_owned(), incumbent_rules(&document)?]);

    if keep && std::io::stdin().is_terminal() {
        for (name, netns) in [("client", &topology.client), ("host", &topology.host), ("web", &container.netns)] {
            println!("\nlook around on {name}:  nsenter --net={}", netns.path().display());
        }
        println!("Enter ends the demo");
        std::io::stdin().read_line(&mut String::new())?;
    }

    let step = steps.next("netavark teardown <web>");
    drop(server);
    netavark.teardown(&container, &document)?;
    residue.nothing_left(&topology, &[&container])?;
    step.done(&[
        "looked for links, addresses, routes, rules, programs, maps, pins, files, sysctls, processes".to_owned()
    ]);
    println!("\nnothing left behind");
    Ok(())
}

fn document() -> Document {
    let network = Network::dual(NETWORK);
    Document::new().on_dual(&network, "eth0", NETWORK, HOST_PART).publish("", PORT, 80, "tcp")
}

/// A page that shows its reader's address.
fn serve(netns: &Netns) -> Result<Server> {
    Server::tcp(netns, SocketAddr::new(ANY, 80), 2, |mut stream, peer, _| {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let _ = stream.read(&mut [0; 1024]);
        let page = format!("hello {}\n", peer.ip());
        let _ = write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{page}", page.len());
    })
}

/// Fetches the page; `expected` is the client address that the server must see.
fn fetch(netns: &Netns, place: &str, address: IpAddr, expected: Option<IpAddr>) -> Result<String> {
    let to = SocketAddr::new(address, PORT);
    let page = netns.run(|| get(to)).with_context(|| format!("{place}, http://{to}/"))?;
    let seen: IpAddr = page.strip_prefix("hello ").unwrap_or(&page).trim().parse().context("the page's text")?;
    if let Some(expected) = expected {
        ensure!(seen == expected, "{place}, http://{to}/: the server saw {seen} instead of {expected}");
    }
    Ok(format!("{place:<13} {:<30} {:?}", format!("http://{to}/"), page.trim_end()))
}

fn get(to: SocketAddr) -> Result<String> {
    let patience = Duration::from_secs(3);
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, page) = answer.split_once("\r\n\r\n").context("no end of the headers")?;
    ensure!(head.starts_with("HTTP/1.0 200"), "{head}");
    Ok(page.to_owned())
}

/// Outbound: the container fetches a page outside, whose server must see the host's address.
fn outwards(topology: &Topology, container: &Container) -> Result<String> {
    let outside = serve(&topology.client)?;
    let to = SocketAddr::new(Family::V4.outside(), 80);
    let page = container.run(|| get(to)).with_context(|| format!("from the container, http://{to}/"))?;
    drop(outside);
    ensure!(page.trim_end() == format!("hello {}", Family::V4.host()), "the server outside saw {page:?}");
    Ok(format!("{:<13} {:<30} {:?}, the host's address", "from web out", format!("http://{to}/"), page.trim_end()))
}

/// netpath's own report, checked against its maps.
fn carried(topology: &Topology, web: SocketAddr) -> Result<Vec<String>> {
    let pins = maps::pins(Path::new("/sys/fs/bpf"), Some(topology.host.cookie()))?;
    let flows = maps::flows(&pins)?;
    let published = flows.iter().any(|f| f.seen.0.ip() == Family::V4.client() && f.becomes.1 == web);
    ensure!(published, "no flow leads from {} to {web}: {flows:#?}", Family::V4.client());
    let counters = maps::counters(&pins)?;
    let redirected = counters.iter().find(|(r, _)| *r == Reason::Redirected).map_or(0, |(_, c)| c.packets);
    ensure!(redirected > 0, "the programs have redirected no packet: {counters:?}");
    let netpath = binary()?;
    let netpath = netpath.to_string_lossy();
    Ok(vec![
        topology.host.command(&netpath, &["flows"])?,
        String::from("\n"),
        topology.host.command(&netpath, &["status"])?,
    ])
}

/// Number of rules that the distribution's netavark creates for the same container, where it is installed.
fn incumbent_rules(document: &Document) -> Result<String> {
    const PLACES: [&str; 2] = ["/usr/lib/podman/netavark", "/usr/libexec/podman/netavark"];
    let Some(program) = PLACES.iter().find(|p| Path::new(p).exists()) else {
        return Ok("(the distribution's netavark is not installed: no comparison)".to_owned());
    };
    let topology = Topology::new()?;
    let container = topology.container("web")?;
    let call = |verb: &str| {
        let mut command = Command::new(program);
        command.arg("--config").arg(topology.config_dir()).arg(verb).arg(container.path());
        topology.host.output(command, document.json(&container).to_string().as_bytes())
    };
    let out = call("setup")?;
    if !out.status.success() {
        return Ok(format!("({program} fails on this host: no comparison)"));
    }
    let rules = netfilter(&topology.host)?.len();
    call("teardown")?;
    Ok(format!("({program} makes {rules} chains and rules for the same container)"))
}
