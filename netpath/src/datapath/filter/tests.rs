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
    list().expect("the kernel's answer").iter().map(ToString::to_string).collect()
}

#[test]
#[ignore = "needs root"]
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
    assert!(run("nft add table ip other"));
    for chain in [
        "inet firewalld filter_INPUT { type filter hook input priority 0 ; }",
        "inet firewalld filter_FORWARD { type filter hook forward priority 10 ; }",
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
    assert_eq!(vec!["table ip other chain closed drops forwarded packets unless a rule accepts them"], found());
    assert!(run("nft add table ip other { flags dormant ; }"));
    assert_eq!(Vec::<String>::new(), found(), "the table is dormant");
}

/// Redirects bypass all of these, including those that translate.
#[test]
#[ignore = "needs root"]
fn nftables_chains_at_every_hook_of_forwarding_are_found() {
    let name = "nftables_chains_at_every_hook_of_forwarding_are_found";
    if !alone(name) {
        return;
    }
    if !run("nft add table inet guard") {
        println!("skip {name}: needs nft");
        return;
    }
    assert!(run("nft add table netdev edge") && run("nft add table bridge ports"));
    let chains = [
        ("inet guard", "blocked", "filter hook prerouting priority -300", "filters packets before they are forwarded"),
        (
            "inet guard",
            "to_containers",
            "nat hook prerouting priority -100",
            "translates packets before they are forwarded",
        ),
        ("inet guard", "marks", "filter hook postrouting priority -150", "filters packets after they are forwarded"),
        ("inet guard", "outward", "nat hook postrouting priority 100", "translates packets after they are forwarded"),
        (
            "inet guard",
            "early",
            "filter hook ingress device lo priority 0",
            "filters packets before they are forwarded",
        ),
        (
            "netdev edge",
            "first",
            "filter hook ingress device lo priority 0",
            "filters packets before they are forwarded",
        ),
        ("netdev edge", "last", "filter hook egress device lo priority 0", "filters packets after they are forwarded"),
        ("bridge ports", "forward", "filter hook forward priority 0", "filters frames of bridges"),
    ];
    for (table, chain, hook, does) in chains {
        // Not every kernel has each hook for devices.
        if !run(&format!("nft add chain {table} {chain} {{ type {hook} ; }}")) {
            println!("{table} {chain}: {hook} is not known here");
            continue;
        }
        assert_eq!(Vec::<String>::new(), found(), "{chain} is empty");
        assert!(run(&format!("nft add rule {table} {chain} counter")));
        assert_eq!(vec![format!("table {table} chain {chain} {does}")], found());
        assert!(run(&format!("nft delete chain {table} {chain}")) || run(&format!("nft flush chain {table} {chain}")));
    }
    for chain in ["in { type filter hook input priority 0 ; }", "out { type route hook output priority 0 ; }"] {
        assert!(run(&format!("nft add chain inet guard {chain}")), "{chain}");
    }
    assert!(run("nft add rule inet guard in drop") && run("nft add rule inet guard out meta mark set 1"));
    assert_eq!(Vec::<String>::new(), found(), "forwarded packets do not meet them");
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
    assert_eq!(vec![format!("{called} chain FORWARD drops forwarded packets unless a rule accepts them")], found());
    assert!(run(&format!("{tool} -P FORWARD ACCEPT")));
    assert_eq!(nothing, found(), "the policy is back");
    assert!(run(&format!("{tool} -N NETPATH_FORWARD")) && run(&format!("{tool} -A NETPATH_FORWARD -j ACCEPT")));
    assert!(run(&format!("{tool} -I FORWARD -j NETPATH_FORWARD")));
    assert_eq!(nothing, found(), "netpath's own jump");
    assert!(
        run(&format!("{tool} -N NETPATH_FORWARD_ACCEPT"))
            && run(&format!("{tool} -A NETPATH_FORWARD_ACCEPT -j ACCEPT"))
    );
    assert!(run(&format!("{tool} -A FORWARD -j NETPATH_FORWARD_ACCEPT")));
    assert_eq!(nothing, found(), "both of its jumps");
    assert!(run(&format!("{tool} -A FORWARD -p tcp --dport 25 -j DROP")));
    assert_eq!(vec![format!("{called} chain FORWARD filters forwarded packets")], found());
    assert!(run(&format!("{tool} -F FORWARD")));
    assert!(run(&format!("{tool} -t nat -A PREROUTING -p tcp --dport 1 -j REDIRECT --to-ports 2")));
    let nat = called.replace("filter", "nat");
    assert_eq!(vec![format!("{nat} chain PREROUTING translates packets before they are forwarded")], found());
    assert!(run(&format!("{tool} -t nat -F PREROUTING")));
    assert!(run(&format!("{tool} -t raw -A PREROUTING -p tcp --dport 25 -j DROP")));
    let raw = called.replace("filter", "raw");
    assert_eq!(vec![format!("{raw} chain PREROUTING filters packets before they are forwarded")], found());
}

#[test]
#[ignore = "needs root"]
fn iptables_in_nf_tables_is_found() {
    tool("iptables_in_nf_tables_is_found", "iptables-nft", "table ip filter");
}

#[test]
#[ignore = "needs root"]
fn ip6tables_in_nf_tables_is_found() {
    tool("ip6tables_in_nf_tables_is_found", "ip6tables-nft", "table ip6 filter");
}

#[test]
#[ignore = "needs root"]
fn legacy_iptables_is_found() {
    tool("legacy_iptables_is_found", "iptables-legacy", "legacy iptables table filter");
}

#[test]
#[ignore = "needs root"]
fn legacy_ip6tables_is_found() {
    tool("legacy_ip6tables_is_found", "ip6tables-legacy", "legacy ip6tables table filter");
}
