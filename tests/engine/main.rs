//! A real Podman with netpath in netavark's place: commands of a user, and the observations of a client.
//!
//! Each case runs three times: `ebpf::` and `iptables::` on netpath's rungs, and with `NETPATH_PEER=1` `netavark::` on the
//! distribution's netavark, which validates the case itself. Each has a machine of its own, and leaves nothing on it.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

#[macro_use]
extern crate support;

mod faults;
mod lifecycle;
mod names;
mod networks;
mod publish;
mod rootless;

use anyhow::{Context, Result, anyhow};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use support::podman::{Backend, Machine, reach};

const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCALHOST6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);
const HOST: IpAddr = IpAddr::V4(support::podman::HOST);
const HOST6: IpAddr = IpAddr::V6(support::podman::HOST6);
const CLIENT: IpAddr = IpAddr::V4(support::podman::CLIENT);
const CLIENT6: IpAddr = IpAddr::V6(support::podman::CLIENT6);

macro_rules! cases {
    ($($room:ident: $($case:ident)*;)*) => {
        cases!(@ ebpf Backend::Netpath(None), support::need::Need::Ok(()), $($($room $case)*)*);
        cases!(@ iptables Backend::Netpath(Some("iptables")), support::need::Need::Ok(()), $($($room $case)*)*);
        cases!(@ netavark Backend::Netavark, support::need::peer(), $($($room $case)*)*);
    };
    (@ $module:ident $backend:expr, $asked:expr, $($room:ident $case:ident)*) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $case() -> Result<()> {
                support::need!($asked, Machine::need($backend));
                run($backend, super::$room::$case)
            })*
        }
    };
}

cases! {
    publish:
        a_page_is_fetched_from_outside_and_from_the_host
        a_udp_port_answers_from_the_address_that_was_asked
        a_range_leads_each_port_to_its_own
        a_port_of_localhost_is_not_reached_from_outside
        an_ipv6_client_is_seen_with_its_own_address
        a_udp_client_reaches_the_container_that_took_the_place
        a_container_reaches_published_ports_by_the_host_address
        a_container_reaches_the_outside_as_the_host
        a_container_that_speaks_first_keeps_its_published_port;
    lifecycle:
        a_stopped_container_serves_again_after_start_and_restart
        a_paused_container_goes_on_after_unpause
        a_container_that_ends_by_itself_leaves_nothing
        a_pod_shares_one_network
        reload_keeps_a_container_reachable
        many_containers_start_and_go_at_once
        commands_in_mount_namespaces_of_their_own_share_the_programs;
    names:
        names_of_several_networks_are_known_in_every_form
        names_outlive_a_killed_agent_and_are_listed
        a_published_port_53_leaves_names_alone;
    networks:
        a_container_is_reached_on_both_of_its_networks
        a_network_is_connected_and_disconnected_while_running
        containers_find_each_other_by_name
        a_fixed_address_and_mac_are_what_the_container_has
        an_internal_network_has_no_way_out
        isolated_networks_do_not_reach_each_other
        a_container_is_on_two_macvlans_and_a_bridge
        a_container_on_a_macvlan_gets_its_address_by_dhcp;
    faults:
        a_killed_container_is_removed_and_replaced
        a_taken_host_port_is_refused_without_harm_to_others
        an_error_of_setup_names_its_cause_and_leaves_nothing
        a_container_is_removed_after_its_conmon_was_killed
        a_backend_killed_during_setup_is_repaired_by_the_next_container;
}

fn main() -> std::process::ExitCode {
    support::harness::run()
}

/// Runs one case on a machine of its own; on failure, reports the state of the machine.
fn run(backend: Backend, case: fn(&Machine) -> Result<()>) -> Result<()> {
    let machine =
        Machine::start(backend, Some(Path::new(env!("CARGO_BIN_EXE_peer")))).context("start of the machine")?;
    let outcome = case(&machine).and_then(|()| remove_everything(&machine)).and_then(|()| machine.nothing_left());
    outcome.map_err(|e| anyhow!("{e:#}\n--- the machine then\n{}", machine.picture()))
}

/// Control of the final check: it detects each kind of leftover.
#[test]
fn leftovers_are_detected() -> Result<()> {
    let backend = Backend::Netpath(None);
    support::need!(Machine::need(backend));
    let machine = Machine::start(backend, None)?;
    machine.nothing_left().context("an unused machine")?;
    let leave = [
        ("link left: left0", "ip link add left0 type bridge"),
        ("namespace left: left", "ip netns add left"),
        ("route left: blackhole 198.51.100.0/24", "ip route add blackhole 198.51.100.0/24"),
        ("policy rule left:", "ip rule add from 198.51.100.0/24 table 77"),
        ("file left: netpath/1234/", "mkdir -p /run/netpath/1234"),
        ("pin left: netpath/", "mount -t bpf bpf /sys/fs/bpf; mkdir /sys/fs/bpf/netpath"),
        ("sysctl left: ipv4/conf/lo/route_localnet:1", "echo 1 >/proc/sys/net/ipv4/conf/lo/route_localnet"),
        ("mount left: cgroup2 on /mnt", "mount -t cgroup2 cgroup2 /mnt"),
        ("process left: sleep 77", "sleep 77 >/dev/null 2>&1 &"),
        ("netfilter rule left: iptables-save: -A INPUT", "iptables -A INPUT -s 198.51.100.1 -j DROP"),
    ];
    for (_, how) in leave {
        machine.run_on_host("sh", &["-c", how])?;
    }
    let found = machine.nothing_left().err().context("no leftover was found")?.to_string();
    for (what, _) in leave {
        anyhow::ensure!(found.contains(what), "{what:?} was not found: {found}");
    }
    Ok(())
}

/// Removes what a case has left in Podman: containers, pods, networks.
fn remove_everything(machine: &Machine) -> Result<()> {
    machine.podman(&["pod", "rm", "-fa", "-t", "0"])?;
    machine.podman(&["rm", "-fa", "-t", "0"])?;
    machine.podman(&["network", "prune", "-f"]).map(drop)
}

/// A container named `name` that serves the page on port 80, with additional options of `podman run`.
fn run_httpd(machine: &Machine, name: &str, options: &[&str]) -> Result<()> {
    let command = ["bb", "httpd", "-f", "-vv", "-p", "80", "-h", "/www"];
    machine.podman(&[&["run", "-d", "--name", name, "--hostname", name], options, &command].concat()).map(drop)
}

/// A container named `name` that answers on `ports`, TCP and UDP, with its name and the client's address.
fn run_peer(machine: &Machine, name: &str, ports: &[&str], options: &[&str]) -> Result<()> {
    machine.podman(&[&["run", "-d", "--name", name, "--hostname", name], options, &["bb", "peer"], ports].concat())?;
    logs_until(machine, name, "serving").map(drop)
}

/// The container's output once it contains `text`.
fn logs_until(machine: &Machine, name: &str, text: &str) -> Result<String> {
    reach::eventually(Duration::from_secs(5), || {
        let output = machine.try_podman(&["logs", name])?;
        let logs = output.out + &output.err;
        anyhow::ensure!(logs.contains(text), "{text:?} is not in the output of {name}: {logs}");
        Ok(logs)
    })
}

/// A page fetched by the client beyond the wire; the server may still be starting.
fn page_outside(machine: &Machine, ip: impl Into<IpAddr>, port: u16) -> Result<String> {
    let to = SocketAddr::new(ip.into(), port);
    machine.client(|| reach::eventually(Duration::from_secs(3), || reach::page(to)))?.context("from outside")
}

/// A page fetched by a process of the host.
fn page_inside(machine: &Machine, ip: impl Into<IpAddr>, port: u16) -> Result<String> {
    let to = SocketAddr::new(ip.into(), port);
    machine.host(|| reach::eventually(Duration::from_secs(3), || reach::page(to)))?.context("from the host itself")
}

/// A page fetched by busybox wget inside the container `from`.
fn page_from(machine: &Machine, from: &str, url: &str) -> Result<String> {
    // Not `wget -T 3`: it crashes in Debian's static busybox.
    machine.podman(&["exec", from, "timeout", "3", "wget", "-q", "-O", "-", url])
}

/// Invariants while containers run: the requested rung, and on eBPF no rule of netfilter.
fn check_rung(machine: &Machine) -> Result<()> {
    let rules = machine.netfilter()?;
    match machine.backend() {
        Backend::Netpath(None) => {
            anyhow::ensure!(rules.is_empty(), "rules of netfilter on the eBPF rung: {rules:#?}");
            anyhow::ensure!(machine.has_pinned_programs(), "no program is pinned: not the eBPF rung");
        }
        _ => anyhow::ensure!(!rules.is_empty(), "no rule of netfilter: another rung than requested?"),
    }
    Ok(())
}
