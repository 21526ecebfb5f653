//! The demo with a real Podman: `podman run -p`, and which component carried the packets.

use crate::steps::Steps;
use anyhow::{Context, Result, ensure};
use netpath_common::layout::{PROTO_TCP, SIDE_UPLINK};
use netpath_common::reason::Reason;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use support::maps;
use support::podman::{Backend, CLIENT, HOST, Machine, image::PAGE, reach};

const PORT: u16 = 8080;

/// Runs the demo. `keep`: waits before the cleanup, so that the machine can be inspected.
///
/// # Errors
/// A step has an unexpected result.
pub(crate) fn run(keep: bool) -> Result<()> {
    let backend = Backend::Netpath(None);
    if let Err(missing) = Machine::need(backend) {
        anyhow::bail!("the demo with Podman needs {missing}");
    }
    println!("A container of a real Podman, its port published by eBPF\n");

    let mut steps = Steps::of(6);
    let step = steps.next("a host of its own, with Podman and a client beyond a wire");
    let machine = Machine::start(backend, None)?;
    let version = machine.podman(&["version", "--format", "{{.Version}}"])?;
    let network = machine.run_on_host(&machine.helper("netavark"), &["--version"])?;
    step.done(&[format!("podman {version}; in the place of its netavark: {}", network.trim())]);

    let step = steps.next(&format!("podman run -d --name web -p {PORT}:80 bb httpd"));
    let publish = format!("{PORT}:80");
    machine.podman(&[
        "run", "-d", "--name", "web", "-p", &publish, "bb", "httpd", "-f", "-vv", "-p", "80", "-h", "/www",
    ])?;
    let web = machine.address("web", "podman")?;
    step.done(&[format!("web has the address {web}")]);

    let step = steps.next("the page, from everywhere");
    let host = SocketAddr::new(HOST.into(), PORT);
    let outside = machine.client(|| fetch(host))?.context("from outside")?;
    let logs = reach::eventually(Duration::from_secs(3), || server_saw(&machine, &format!("[::ffff:{CLIENT}]")))?;
    let line = |place: &str, to: SocketAddr, page: &str| {
        format!("{place:<13} {:<30} {:?}", format!("http://{to}/"), page.trim_end())
    };
    let mut lines = vec![line("from outside", host, &outside) + &format!(", and its log shows {logs}")];
    for address in [Ipv4Addr::LOCALHOST.into(), IpAddr::from(Ipv6Addr::LOCALHOST), HOST.into()] {
        let to = SocketAddr::new(address, PORT);
        let page = machine.host(|| fetch(to))?.with_context(|| format!("from the host, {to}"))?;
        lines.push(line("on the host", to, &page));
    }
    step.done(&lines);

    let step = steps.next("netpath ports; netpath flows      what carried it");
    let mut lines = carried_by_ebpf(&machine, SocketAddr::new(web, 80), host)?;
    let netpath = support::netavark::binary()?;
    for verb in ["ports", "flows"] {
        lines.extend([" ".to_owned(), machine.run_on_host(&netpath.to_string_lossy(), &[verb])?]);
    }
    step.done(&lines);

    let step = steps.next("nft list ruleset; iptables-save      the firewall of this host");
    let rules = machine.netfilter()?;
    ensure!(rules.is_empty(), "expected none, found:\n{}", rules.join("\n"));
    step.done(&["not one rule".to_owned(), incumbent_rules()?]);

    if keep && std::io::stdin().is_terminal() {
        println!("\nLook around with:  {}", machine.shell());
        println!("Enter ends the demo.");
        std::io::stdin().read_line(&mut String::new())?;
    }

    let step = steps.next("podman rm -f web");
    machine.podman(&["rm", "-f", "-t", "0", "web"])?;
    machine.client(|| reach::silent(host))??;
    machine.nothing_left()?;
    drop(machine);
    step.done(&[
        "looked for: links, routes, rules, namespaces, pins, programs, maps, files, mounts, sysctls, processes"
            .to_owned(),
    ]);
    println!("\nnothing left behind");
    Ok(())
}

fn fetch(to: SocketAddr) -> Result<String> {
    let page = reach::eventually(Duration::from_secs(3), || reach::page(to))?;
    ensure!(page == PAGE, "expected {PAGE:?}, got {page:?}");
    Ok(page)
}

/// `client` as logged by the server.
fn server_saw(machine: &Machine, client: &str) -> Result<String> {
    let logs = machine.try_podman(&["logs", "web"])?;
    let text = logs.out + &logs.err;
    let line = text.lines().find(|l| l.contains(client)).with_context(|| format!("{client} is not in {text:?}"))?;
    Ok(line.split("]:").next().unwrap_or(line).trim_start_matches("[::ffff:").trim_end_matches(']').to_owned())
}

/// The flow of the page fetched from outside, and the counters of the programs.
fn carried_by_ebpf(machine: &Machine, web: SocketAddr, host: SocketAddr) -> Result<Vec<String>> {
    let pins = maps::pins(&machine.root("/sys/fs/bpf"), None)?;
    let flows = maps::flows(&pins)?;
    let client = IpAddr::from(CLIENT);
    let fetched = flows.iter().find(|f| {
        f.proto == PROTO_TCP
            && f.side == SIDE_UPLINK
            && f.seen.0.ip() == client
            && f.seen.1 == host
            && f.becomes.1 == web
    });
    let fetched = fetched.with_context(|| format!("no flow of {client} to {host} in {flows:#?}"))?;
    let counters = maps::counters(&pins)?;
    let packets = |reason| counters.iter().find(|(r, _)| *r == reason).map_or(0, |(_, c)| c.packets);
    let (redirected, connected) = (packets(Reason::Redirected), packets(Reason::Connected));
    ensure!(redirected > 0, "no packet was redirected: {counters:?}");
    ensure!(connected > 0, "no socket of the host was led to the container: {counters:?}");
    let bytes = counters.iter().find(|(r, _)| *r == Reason::Redirected).map_or(0, |(_, c)| c.bytes);
    Ok(vec![
        format!("flow      {fetched}"),
        format!("counters  {redirected} packets ({bytes} bytes) redirected past bridge and netfilter"),
        format!("          {connected} sockets of the host led straight to the container"),
    ])
}

/// Number of rules that the distribution's netavark needs for the same, where it is installed.
fn incumbent_rules() -> Result<String> {
    if Machine::need(Backend::Netavark).is_err() {
        return Ok("(the distribution's netavark is not installed: no comparison)".to_owned());
    }
    let machine = Machine::start(Backend::Netavark, None)?;
    let version = machine.run_on_host(&machine.helper("netavark"), &["--version"])?;
    let publish = format!("{PORT}:80");
    machine.podman(&["run", "-d", "-p", &publish, "bb", "sleep", "60"])?;
    Ok(format!("{} makes {} chains and rules for the same container", version.trim(), machine.netfilter()?.len()))
}
