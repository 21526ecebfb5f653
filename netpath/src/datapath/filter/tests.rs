//! Against the kernel, in a network namespace of the test thread's own, with the real tools.

use super::*;
use nix::sched::{CloneFlags, unshare};
use std::process::Command;

/// A fresh namespace; false where the test cannot run.
fn alone(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("skip {test}: needs root");
        return false;
    }
    unshare(CloneFlags::CLONE_NEWNET).expect("own network namespace");
    true
}

/// Runs a command line; false where it fails or is not there.
fn run(line: &str) -> bool {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words).output().is_ok_and(|out| {
        if !out.status.success() {
            println!("{line}: {}", String::from_utf8_lossy(&out.stderr));
        }
        out.status.success()
    })
}

fn found() -> Vec<String> {
    foreign().expect("the kernel's answer").iter().map(ToString::to_string).collect()
}

#[test]
fn nftables_chains_at_forward_are_found_when_they_do_something() {
    let name = "nftables_chains_at_forward_are_found_when_they_do_something";
    if !alone(name) {
        return;
    }
    assert_eq!(Vec::<String>::new(), found(), "an empty namespace");
    if !run("nft add table inet firewalld") {
        println!("skip {name}: needs nft");
        return;
    }
    for other in ["ip other", "bridge other"] {
        assert!(run(&format!("nft add table {other}")));
    }
    for chain in [
        "inet firewalld filter_INPUT { type filter hook input priority 0 ; }",
        "inet firewalld filter_FORWARD { type filter hook forward priority 10 ; }",
        "bridge other forward { type filter hook forward priority 0 ; policy drop ; }",
        "ip other called",
    ] {
        assert!(run(&format!("nft add chain {chain}")), "{chain}");
    }
    assert!(run("nft add rule inet firewalld filter_INPUT drop"));
    assert!(run("nft add rule ip other called drop"));
    assert_eq!(Vec::<String>::new(), found(), "none of them filters forwarded packets");

    assert!(run("nft add rule inet firewalld filter_FORWARD ct state established accept"));
    assert_eq!(vec!["table inet firewalld chain filter_FORWARD filters forwarded packets"], found());
    assert!(run("nft flush chain inet firewalld filter_FORWARD"));
    assert_eq!(Vec::<String>::new(), found(), "its rules are gone");
    assert!(run("nft add chain ip other closed { type filter hook forward priority 0 ; policy drop ; }"));
    assert_eq!(vec!["table ip other chain closed drops forwarded packets unless told otherwise"], found());
    assert!(run("nft add table ip other { flags dormant ; }"));
    assert_eq!(Vec::<String>::new(), found(), "the table is switched off");
}

/// What the programs redirect would pass these by as well.
#[test]
fn nftables_chains_before_forward_are_found_when_they_filter() {
    let name = "nftables_chains_before_forward_are_found_when_they_filter";
    if !alone(name) {
        return;
    }
    if !run("nft add table inet guard") {
        println!("skip {name}: needs nft");
        return;
    }
    assert!(run("nft add table netdev edge"));
    for chain in [
        "inet guard blocked { type filter hook prerouting priority -300 ; }",
        "inet guard to_containers { type nat hook prerouting priority -100 ; }",
        "inet guard from_containers { type nat hook postrouting priority 100 ; }",
        "inet guard out { type route hook output priority 0 ; }",
        "netdev edge early { type filter hook ingress device lo priority 0 ; }",
    ] {
        assert!(run(&format!("nft add chain {chain}")), "{chain}");
    }
    assert!(run("nft add rule inet guard to_containers tcp dport 1 redirect to :2"));
    assert!(run("nft add rule inet guard from_containers masquerade"));
    assert!(run("nft add rule inet guard out meta mark set 1"));
    assert_eq!(Vec::<String>::new(), found(), "none of them filters");
    assert!(run("nft add rule inet guard blocked ip saddr 203.0.113.0/24 drop"));
    assert_eq!(vec!["table inet guard chain blocked filters packets before they are forwarded"], found());
    assert!(run("nft flush chain inet guard blocked"));
    assert!(run("nft add rule netdev edge early ip saddr 203.0.113.0/24 drop"));
    assert_eq!(vec!["table netdev edge chain early filters packets before they are forwarded"], found());
}

/// The same for each of the two iptables, as far as this kernel has them.
fn tool(test: &str, tool: &str, called: &str) {
    if !alone(test) {
        return;
    }
    if !run(&format!("{tool} -L FORWARD -n")) {
        println!("skip {test}: needs {tool}");
        return;
    }
    let nothing = Vec::<String>::new();
    assert_eq!(nothing, found(), "empty chains");
    assert!(run(&format!("{tool} -A INPUT -j DROP")) && run(&format!("{tool} -P INPUT DROP")));
    assert_eq!(nothing, found(), "input is not forward");
    assert!(run(&format!("{tool} -P FORWARD DROP")));
    assert_eq!(vec![format!("{called} chain FORWARD drops forwarded packets unless told otherwise")], found());
    assert!(run(&format!("{tool} -P FORWARD ACCEPT")));
    assert_eq!(nothing, found(), "the policy is back");
    assert!(run(&format!("{tool} -N NETPATH_FORWARD")) && run(&format!("{tool} -A NETPATH_FORWARD -j ACCEPT")));
    assert!(run(&format!("{tool} -I FORWARD -j NETPATH_FORWARD")));
    assert_eq!(nothing, found(), "netpath's own jump");
    assert!(run(&format!("{tool} -A FORWARD -p tcp --dport 25 -j DROP")));
    assert_eq!(vec![format!("{called} chain FORWARD filters forwarded packets")], found());
    assert!(run(&format!("{tool} -F FORWARD")));
    assert!(run(&format!("{tool} -t nat -A PREROUTING -p tcp --dport 1 -j REDIRECT --to-ports 2")));
    assert_eq!(nothing, found(), "a translation");
    assert!(run(&format!("{tool} -t raw -A PREROUTING -p tcp --dport 25 -j DROP")));
    let raw = called.replace("filter", "raw");
    assert_eq!(vec![format!("{raw} chain PREROUTING filters packets before they are forwarded")], found());
}

#[test]
fn iptables_in_nf_tables_is_found() {
    tool("iptables_in_nf_tables_is_found", "iptables-nft", "table ip filter");
}

#[test]
fn ip6tables_in_nf_tables_is_found() {
    tool("ip6tables_in_nf_tables_is_found", "ip6tables-nft", "table ip6 filter");
}

#[test]
fn legacy_iptables_is_found() {
    tool("legacy_iptables_is_found", "iptables-legacy", "legacy iptables table filter");
}

#[test]
fn legacy_ip6tables_is_found() {
    tool("legacy_ip6tables_is_found", "ip6tables-legacy", "legacy ip6tables table filter");
}
