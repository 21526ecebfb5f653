//! The rules of other software: of firewalld 1.3, ufw 0.36 and Docker 20.10 as they were listed on a host that runs them, without hooks
//! that forwarded packets do not meet; of libvirt, fw4 and fail2ban as they write them.

use super::*;

/// With LogDenied=all.
const FIREWALLD: &str = include_str!("fixtures/firewalld.nft");
const FW4: &str = include_str!("fixtures/fw4.nft");
/// With logging, and a port of routed packets allowed.
const UFW: &str = include_str!("fixtures/ufw.rules");
const DOCKER: &str = include_str!("fixtures/docker.rules");
const LIBVIRT: &str = include_str!("fixtures/libvirt.rules");

const FAIL2BAN: &str = "*filter
:FORWARD ACCEPT
:f2b-web -
-A FORWARD -p tcp -m multiport --dports 80,443 -j f2b-web
-A f2b-web -s 203.0.113.9/32 -j REJECT --reject-with icmp-port-unreachable
-A f2b-web -j RETURN
COMMIT
";

/// By nft, as fail2ban's action `nftables-multiport` writes them.
const FAIL2BAN_NFT: &str = "table inet f2b-table {
	set addr-set-web { type ipv4_addr; elements = { 203.0.113.9 } }
	chain f2b-chain {
		type filter hook forward priority filter - 1; policy accept;
		tcp dport { 80, 443 } ip saddr @addr-set-web reject with icmp port-unreachable
	}
}";

/// The last of them has a limit for new connections, and one for all packets of a guest network.
const ADMINISTRATOR: &str = "table inet filter {
	set guests { type ipv4_addr; flags interval; elements = { 10.89.8.0/24 } }
	chain forward {
		type filter hook forward priority filter; policy accept;
		ct state new limit rate over 100/second drop
		ip saddr @guests jump guests
		ip daddr @guests jump guests
	}
	chain guests { limit rate over 2 mbytes/second drop; }
}";

#[test]
#[ignore = "needs root"]
fn established_flows_are_carried_beside_software_whose_rules_decide_about_the_first_packet() {
    let test = "established_flows_are_carried_beside_software_whose_rules_decide_about_the_first_packet";
    if !alone(test) {
        return;
    }
    for (name, ruleset) in
        [("firewalld", FIREWALLD), ("fw4", FW4), ("fail2ban", FAIL2BAN_NFT), ("administrator", ADMINISTRATOR)]
    {
        if let Err(e) = nft(ruleset) {
            println!("skip {name}: {e}");
            continue;
        }
        for flow in flows() {
            assert_eq!(Judgement::Carried, judged(&flow), "{name}: {flow:?}");
        }
        let listed: Vec<_> = Ruleset::read().expect("the rules").forbidding().collect();
        assert_eq!(usize::from(name == "administrator"), listed.len(), "{name}: {listed:?}");
    }
    nft("").expect("an empty ruleset");
    for restore in ["iptables-nft-restore", "iptables-legacy-restore"] {
        for (name, rules) in [("ufw", UFW), ("libvirt", LIBVIRT), ("fail2ban", FAIL2BAN)] {
            if let Err(e) = feed(restore, rules) {
                println!("skip {name} with {restore}: {e}");
                continue;
            }
            for flow in flows() {
                assert_eq!(Judgement::Carried, judged(&flow), "{name} with {restore}: {flow:?}");
            }
        }
    }
}

/// Docker's FORWARD drops what is not Docker's, unless netpath accepts it at the end of the chain.
#[test]
#[ignore = "needs root"]
fn beside_docker_flows_are_carried_once_netpath_accepts_them() {
    let test = "beside_docker_flows_are_carried_once_netpath_accepts_them";
    if !alone(test) {
        return;
    }
    let accept = "*filter\n:NETPATH_FORWARD -\n-A FORWARD -j NETPATH_FORWARD\n-A NETPATH_FORWARD -i podman7 -j ACCEPT\n\
                  -A NETPATH_FORWARD -o podman7 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\nCOMMIT\n";
    if let Err(e) = feed("iptables-nft-restore", DOCKER) {
        println!("skip {test}: {e}");
        return;
    }
    let dropped = Judgement::Dropped { rule: "table ip filter chain FORWARD policy drop".to_owned() };
    assert_eq!(dropped, judged(&published()));
    feed("iptables-nft-restore --noflush", accept).expect("rules");
    for flow in flows() {
        assert_eq!(Judgement::Carried, judged(&flow), "{flow:?}");
    }
}

/// The same rulesets with a line that each packet meets.
#[test]
#[ignore = "needs root"]
fn a_limit_ahead_of_the_accept_for_established_packets_forbids() {
    let test = "a_limit_ahead_of_the_accept_for_established_packets_forbids";
    if !alone(test) {
        return;
    }
    let guest = Flow { original: tuple("10.89.8.5:50000", "198.51.100.7:443"), ..outbound() };
    nft(ADMINISTRATOR).expect("rules");
    assert!(is_forbidden(&judged(&guest)), "{:?}", judged(&guest));
    let first = |ruleset: &str, base: &str, rule: &str| ruleset.replacen(base, &format!("{base}\n{rule}"), 1);
    let cases = [
        (FIREWALLD, "priority filter + 10; policy accept;", "limit rate over 9/second drop"),
        (FW4, "priority filter; policy drop;", "log prefix \"all\""),
    ];
    for (ruleset, base, rule) in cases {
        let changed = first(ruleset, base, rule);
        assert_ne!(ruleset, changed);
        nft(&changed).expect("rules");
        assert!(is_forbidden(&judged(&published())), "{rule}");
    }
    nft("").expect("an empty ruleset");
    let established = "-A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n";
    for rule in ["", "-A ufw-before-forward -m limit --limit 9/s -j LOG\n"] {
        let changed = UFW.replacen(established, rule, 1);
        assert_ne!(UFW, changed);
        if let Err(e) = feed("iptables-nft-restore", &changed) {
            println!("skip {test}: {e}");
            return;
        }
        // Without the accept, published port 80 is accepted by its own rule, but in one direction alone.
        assert!(is_forbidden(&judged(&published())), "{rule:?}: {:?}", judged(&published()));
    }
}
