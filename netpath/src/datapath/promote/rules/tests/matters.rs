//! Each kind of rule once, where the flows of the tests meet it.

use super::*;

/// Rules of nftables that depend on the flow alone.
const HARMLESS: [&str; 40] = [
    "counter",
    "counter name hits",
    "accept",
    "ct state established,related accept",
    "ct state new limit rate 1/second accept",
    "ct state invalid log",
    "ct state vmap { established : accept, new : jump limited }",
    "ct status dnat accept",
    "ct direction original counter",
    "ct mark 7 log",
    "ct mark set 7",
    "ct original ip saddr 203.0.113.9 log",
    "ct zone 3 counter",
    "meta mark 7 counter",
    "iifname \"wlan*\" log",
    "iifname { \"wlan0\", \"wlan1\" } log",
    "iifname . oifname vmap { \"wlan0\" . \"eth0\" : jump limited }",
    "oifname != { \"podman7\", \"eth0\" } log",
    "ip saddr 203.0.113.0/24 log",
    "ip saddr { 203.0.113.0/24, 203.0.113.77-203.0.114.5 } log",
    "ip saddr @banned drop",
    "ip saddr != { 198.51.100.0/24, 10.89.7.0-10.89.7.255 } log",
    "ip6 saddr 2001:db8:9::/48 log",
    "ip protocol udp log",
    "meta l4proto { udp, icmp } log",
    "udp dport 80 log",
    "tcp dport { 22, 5000-6000 } log",
    "tcp dport 1-79 log",
    "tcp dport vmap { 22 : jump limited, 1000-2000 : jump limited }",
    "ip saddr . tcp dport { 203.0.113.9 . 80, 203.0.113.0/24 . 1-100 } log",
    "tcp flags syn log",
    "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu",
    "tcp flags & (fin | syn | rst | ack) == ack counter",
    "meta nfproto ipv6 ip saddr 1.2.3.4 log",
    "fib saddr . iif oif missing drop",
    "meta skuid 0 log",
    "pkttype host counter",
    "jhash ip saddr mod 2 0 counter",
    "meta protocol arp log",
    "ether type vlan log",
];

/// Rules of nftables that depend on more, or do something with each packet: with a word of the reason.
const HARMFUL: [(&str, &str); 41] = [
    ("limit rate 10/second accept", "rate"),
    ("ct state established limit rate over 1 mbytes/second drop", "rate"),
    ("limit name slow accept", "rate"),
    ("quota over 1 mbytes drop", "quota"),
    ("quota name month drop", "quota"),
    ("ct count over 20 drop", "connections"),
    ("queue num 0", "program"),
    ("numgen random mod 2 0 drop", "chance"),
    ("meta random 7 drop", "chance"),
    ("meta length > 1400 drop", "size"),
    ("ip length 100 drop", "reads more"),
    ("ip ttl 1 drop", "reads more"),
    ("ip dscp ef counter", "reads more"),
    ("ip ecn ce counter", "reads more"),
    ("ip6 hoplimit 1 drop", "reads more"),
    ("@th,160,32 0x47455420 drop", "reads more"),
    ("tcp flags & psh == psh counter", "flags"),
    ("tcp option sack-perm exists counter", "options"),
    ("tcp option maxseg size set 1360", "options"),
    ("exthdr frag exists drop", "options"),
    ("add @seen { ip saddr }", "set"),
    ("update @seen { ip saddr timeout 60s }", "set"),
    ("ip saddr @seen drop", "packets change"),
    ("ip saddr @temporary accept", "expire"),
    ("dup to 192.0.2.9", "copies"),
    ("log", "logs"),
    ("log group 2", "logs"),
    ("meta nftrace set 1", "traces"),
    ("ct helper set \"ftp\"", "helper"),
    ("meta hour \"09:00\"-\"17:00\" accept", "time"),
    ("meta day \"Monday\" accept", "time"),
    ("meta priority set \"1:2\"", "priority"),
    ("meta mark set 7", "mark"),
    ("meta mark set ct mark", "mark"),
    ("ip dscp set cs1", "payload"),
    ("ip ttl set 64", "payload"),
    ("notrack", "tracked"),
    ("last", "last"),
    ("ct bytes > 1000000 drop", "carried"),
    ("ct expiration < 10s drop", "time"),
    ("ether saddr 00:11:22:33:44:55 drop", "link layer"),
];

/// A chain at forward with one rule, and what rules name.
fn around(rule: &str) -> String {
    let rule = rule.replace("; ", "\n");
    format!(
        "table inet t {{
            counter hits {{ }}
            limit slow {{ rate 1/second }}
            quota month {{ over 1 mbytes }}
            ct helper ftp {{ type \"ftp\" protocol tcp; }}
            set banned {{ type ipv4_addr; flags interval; elements = {{ 203.0.113.0/24, 203.0.114.1-203.0.114.7 }} }}
            set seen {{ type ipv4_addr; flags dynamic,timeout; timeout 1m; }}
            set temporary {{ type ipv4_addr; flags timeout; elements = {{ 198.51.100.7 timeout 1h }} }}
            chain refused {{ jump inner; }}
            chain inner {{ log; limit rate 1/second log; drop; }}
            chain half {{ log; meta mark 8 return; jump inner; }}
            chain limited {{ limit rate 1/second accept; }}
            chain forward {{ type filter hook forward priority 0; {rule}; }}
        }}"
    )
}

/// Loads a rule; false, with the reason, where this kernel or nft does not have it.
fn has(rule: &str, skipped: &mut Vec<String>) -> bool {
    let text = around(rule);
    // Helpers need a module, which not every kernel has.
    let parts = ["ct helper ftp", "quota month", "limit slow"];
    let without = |text: String| {
        let unused = |line: &&str| !parts.iter().any(|p| line.trim_start().starts_with(p));
        text.lines().filter(unused).collect::<Vec<_>>().join("\n")
    };
    match nft(&text).or_else(|_| nft(&without(text))) {
        Ok(()) => true,
        Err(e) => {
            skipped.push(format!("skip {rule}: {}", e.lines().next().unwrap_or_default()));
            false
        }
    }
}

#[test]
#[ignore = "needs root"]
fn rules_that_depend_on_the_flow_alone_forbid_nothing() {
    if !alone("rules_that_depend_on_the_flow_alone_forbid_nothing") {
        return;
    }
    let mut skipped = Vec::new();
    for rule in HARMLESS {
        if has(rule, &mut skipped) {
            for flow in flows() {
                assert_eq!(Judgement::Carried, judged(&flow), "{rule}: {flow:?}");
            }
        }
    }
    println!("{}", skipped.join("\n"));
    assert!(skipped.len() < HARMLESS.len() / 4, "{skipped:?}");
}

#[test]
#[ignore = "needs root"]
fn rules_that_depend_on_more_forbid_with_their_reason() {
    if !alone("rules_that_depend_on_more_forbid_with_their_reason") {
        return;
    }
    let mut skipped = Vec::new();
    for (rule, word) in HARMFUL {
        if !has(rule, &mut skipped) {
            continue;
        }
        let ruleset = Ruleset::read().expect("the rules");
        let judgements: Vec<Judgement> = flows().iter().map(|f| ruleset.judge(f)).collect();
        let why = |j: &Judgement| matches!(j, Judgement::Forbidden { why, .. } if why.contains(word));
        assert!(judgements.iter().any(why), "{rule}: {judgements:?}");
        assert!(ruleset.forbidding().any(|(_, why)| why.contains(word)), "{rule}: not listed");
    }
    println!("{}", skipped.join("\n"));
    assert!(skipped.len() < HARMFUL.len() / 4, "{skipped:?}");
}

/// The addresses, ports and interfaces of a rule decide which flows it concerns.
#[test]
#[ignore = "needs root"]
fn only_the_flows_that_a_rule_can_match_are_forbidden() {
    if !alone("only_the_flows_that_a_rule_can_match_are_forbidden") {
        return;
    }
    // Published, outbound, published over IPv6.
    let cases = [
        ("ip daddr 10.89.7.5 log", [true, true, false]),
        ("ip daddr 192.0.2.1 log", [false, false, false]),
        ("ip saddr 10.89.7.5 tcp sport 80 log", [true, false, false]),
        ("tcp dport 8080 log", [false, false, false]),
        ("tcp dport 80 log", [true, false, true]),
        ("tcp dport { 79-81 } log", [true, false, true]),
        ("tcp dport != 443 log", [true, true, true]),
        ("meta l4proto tcp ct original proto-dst 8080 log", [true, false, true]),
        ("ct status snat log", [false, true, false]),
        ("ct status dnat log", [true, false, true]),
        ("ct status dnat ct direction reply iifname podman7 log", [true, false, true]),
        ("ct direction original oifname podman7 log", [true, false, true]),
        ("ct direction original oifname \"eth*\" log", [false, true, false]),
        ("iifname . tcp dport { eth0 . 80 } log", [true, false, true]),
        ("ip saddr . tcp dport { 198.51.100.0/24 . 70-90 } log", [true, false, false]),
        ("iifname vmap { eth0 : jump limited }", [true, true, true]),
        ("oifname eth0 tcp dport vmap { 443 : jump limited, 22 : accept }", [false, true, false]),
        ("ip saddr { 0.0.0.0/0 } log", [true, true, false]),
        ("ip saddr { 198.51.100.7, 198.51.100.9 } log", [true, true, false]),
        ("ip saddr { 11.0.0.0/8, 128.0.0.0/1 } ct direction original log", [true, false, false]),
        ("ip saddr . tcp sport { 10.89.7.5 . 80, 10.89.7.5 . 81 } log", [true, false, false]),
        ("ip saddr . tcp sport vmap { 10.89.7.5 . 80 : jump limited, 10.89.7.5 . 81 : accept }", [true, false, false]),
        ("meta mark set tcp dport map { 80 : 1, 9-10 : 2 }", [true, false, true]),
        ("meta mark . tcp dport { 7 . 443, 8 . 9 } log", [false, true, false]),
        ("ip6 daddr fd41:7::/64 log", [false, false, true]),
        ("meta nfproto ipv4 log", [true, true, false]),
        ("ct mark 0 log", [true, true, true]),
        ("ct mark 1 log; ct mark set 1", [true, true, true]),
        ("meta mark 1 log", [true, true, true]),
        ("ip saddr @banned accept; tcp dport 443 accept; log", [true, true, true]),
        ("ip protocol tcp accept; log", [false, false, true]),
        ("ct state established goto limited", [true, true, true]),
        ("limit rate 1/second udp dport 9 drop", [true, true, true]),
        // Packets are seen before the rules, which may drop them.
        ("meta mark 7 log drop", [true, true, true]),
        ("meta mark 7 counter log prefix \"x\" reject", [true, true, true]),
        ("meta mark 7 jump refused", [true, true, true]),
        ("meta mark 7 accept; drop", [true, true, true]),
        ("tcp dport 443 log drop", [false, false, false]),
        ("fib saddr . iif oif missing drop", [false, false, false]),
        ("meta mark 7 jump half", [true, true, true]),
        ("log meta mark 7 drop", [true, true, true]),
        ("log udp dport 9 drop", [true, true, true]),
        ("meta mark 7 limit rate 1/second log drop", [true, true, true]),
        ("meta length 7 jump refused", [true, true, true]),
        ("meta mark 7 log accept", [true, true, true]),
    ];
    for (rule, expected) in cases {
        nft(&around(rule)).unwrap_or_else(|e| panic!("{rule}: {e}"));
        assert_eq!(expected, flows().map(|f| is_forbidden(&judged(&f))), "{rule}: {:?}", flows().map(|f| judged(&f)));
    }
}

#[test]
#[ignore = "needs root"]
fn a_rule_that_drops_is_named() {
    if !alone("a_rule_that_drops_is_named") {
        return;
    }
    for (rule, expected) in [
        ("tcp dport 80 drop", "table inet t chain forward rule 1, handle "),
        ("ct state established reject", "table inet t chain forward rule 1, handle "),
        ("ip saddr 203.0.113.9 accept", ""),
        ("jump other", ""),
    ] {
        let text = around(rule).replace("chain limited", "chain other { return; }\nchain limited");
        nft(&text).unwrap_or_else(|e| panic!("{rule}: {e}"));
        match judged(&published()) {
            Judgement::Dropped { rule } if !expected.is_empty() => assert!(rule.starts_with(expected), "{rule}"),
            Judgement::Carried if expected.is_empty() => {}
            other => panic!("{rule}: {other:?}"),
        }
    }
    nft("table inet t { chain c { type filter hook forward priority 0; policy drop; udp dport 9 accept; } }")
        .expect("a policy");
    assert_eq!(Judgement::Dropped { rule: "table inet t chain c policy drop".into() }, judged(&published()));
}

/// Which addresses packets have at each hook, and which hooks they meet.
#[test]
#[ignore = "needs root"]
fn each_hook_sees_the_addresses_that_packets_have_there() {
    if !alone("each_hook_sees_the_addresses_that_packets_have_there") {
        return;
    }
    for name in ["eth0", "podman7", "veth1"] {
        let line = format!("link add {name} type veth peer name peer-{name}");
        assert!(Command::new("ip").args(line.split(' ')).status().is_ok_and(|s| s.success()), "{line}");
    }
    let cases = [
        ("inet", "type filter hook prerouting priority -150", "ip daddr 192.0.2.1", true),
        ("inet", "type filter hook prerouting priority -150", "ip daddr 10.89.7.5", false),
        ("inet", "type filter hook prerouting priority -50", "ip daddr 10.89.7.5", true),
        ("inet", "type filter hook prerouting priority -50", "ip daddr 192.0.2.1", false),
        ("inet", "type filter hook prerouting priority -100", "ip daddr 203.0.113.1", true),
        ("ip", "type filter hook prerouting priority -300", "iifname eth0", true),
        ("ip6", "type filter hook prerouting priority -300", "iifname eth0", false),
        ("ip", "type filter hook input priority 0", "counter", false),
        ("ip", "type filter hook output priority 0", "counter", false),
        ("ip", "type nat hook prerouting priority -100", "counter", false),
        ("ip", "type filter hook postrouting priority -150", "ip saddr 10.89.7.5", true),
        ("ip", "type filter hook postrouting priority 150", "ip saddr 10.89.7.5", false),
        ("ip", "type filter hook postrouting priority 150", "ip saddr 192.0.2.1", true),
        ("netdev", "type filter hook ingress device eth0 priority 0", "ip daddr 192.0.2.1", true),
        ("netdev", "type filter hook ingress device veth1 priority 0", "ip saddr 10.89.7.5", true),
        ("netdev", "type filter hook ingress device peer-eth0 priority 0", "counter", false),
        ("netdev", "type filter hook egress device podman7 priority 0", "ip daddr 10.89.7.5", true),
        ("inet", "type filter hook ingress device podman7 priority 0", "ip saddr 10.89.7.5", true),
        ("bridge", "type filter hook prerouting priority 0", "iifname veth1", true),
        ("bridge", "type filter hook prerouting priority 0", "iifname veth2", false),
        ("bridge", "type filter hook postrouting priority 0", "oifname veth1", true),
        ("bridge", "type filter hook forward priority 0", "counter", false),
    ];
    for (family, base, test, expected) in cases {
        let text = format!("table {family} t {{ chain c {{ {base}; {test} limit rate 1/second counter; }} }}");
        match nft(&text) {
            Ok(()) => assert_eq!(expected, is_forbidden(&judged(&published())), "{text}"),
            Err(e) => println!("skip {text}: {e}"),
        }
    }
    nft("table ip t { flags dormant; chain c { type filter hook forward priority 0; log; } }").expect("dormant");
    assert_eq!(Judgement::Carried, judged(&published()));
    nft("table inet netpath { chain c { type filter hook forward priority 0; log; } }").expect("netpath's");
    assert_eq!(Judgement::Carried, judged(&published()));
}
