//! Where rules are: nf_tables, legacy tables, sets of ipset, traffic control; and malformed answers of the kernel.

use super::*;
use crate::datapath::netfilter::nftables::raw::{self, Raw};
use proptest::prelude::*;

const LEGACY: [&str; 2] = ["iptables-legacy-restore", "ip6tables-legacy-restore"];

/// Rules of iptables at FORWARD, and a word of the reason; empty: harmless.
const RULES: [(&str, &str); 32] = [
    ("-j ACCEPT", ""),
    ("-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", ""),
    ("-m state --state NEW -m limit --limit 1/s -j LOG", ""),
    ("-m conntrack --ctstate INVALID -j LOG", ""),
    ("-m conntrack --ctstate DNAT -m comment --comment \"a comment\" -j ACCEPT", ""),
    ("-i wlan+ -j LOG", ""),
    ("-s 203.0.113.0/24 -j LOG", ""),
    ("! -s 198.51.100.0/24 -i eth0 -j LOG", ""),
    ("-p tcp -m tcp --dport 81:90 -j LOG", ""),
    ("-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu", ""),
    ("-p udp -m udp --dport 80 -j LOG", ""),
    ("-p tcp -m multiport --dports 22,100:200,8080 -j LOG", ""),
    ("-m addrtype --dst-type LOCAL -j ACCEPT", ""),
    ("-m mark --mark 0x7 -j ACCEPT", ""),
    ("-m connmark --mark 0x7 -j LOG", ""),
    ("-j CONNMARK --set-xmark 0x7/0xff", ""),
    ("-i eth0 -o podman7 -j LOG", "logs"),
    ("-i eth+ -j LOG", "logs"),
    ("-d 10.89.7.5/32 -p tcp -m tcp --dport 80 -j LOG", "logs"),
    ("-p tcp -m multiport --ports 22,79:81 -j LOG", "logs"),
    ("-m conntrack --ctstatus SEEN_REPLY --ctdir REPLY -j LOG", "logs"),
    ("-m limit --limit 1/s -j ACCEPT", "rate"),
    ("-m hashlimit --hashlimit-above 1/s --hashlimit-mode srcip --hashlimit-name h -j DROP", "rate"),
    ("-m statistic --mode random --probability 0.5 -j DROP", "chance"),
    ("-m string --string GET --algo bm -j DROP", "payload"),
    ("-m length --length 100 -j DROP", "size"),
    ("-m connbytes --connbytes 1000 --connbytes-dir both --connbytes-mode bytes -j DROP", "carried"),
    ("-m connlimit --connlimit-above 9 -j DROP", "connections"),
    ("-m recent --name r --update --seconds 60 -j DROP", "counts"),
    ("-m quota --quota 1000 -j ACCEPT", "quota"),
    ("-j CONNMARK --restore-mark", "mark"),
    ("-p tcp -m tcp --tcp-flags PSH PSH -j DROP", "flags"),
];

#[test]
#[ignore = "needs root"]
fn rules_of_iptables_are_judged_alike_in_legacy_tables_and_in_nf_tables() {
    let test = "rules_of_iptables_are_judged_alike_in_legacy_tables_and_in_nf_tables";
    if !alone(test) {
        return;
    }
    for (restore, clean) in [("iptables-legacy-restore", true), ("iptables-nft-restore", false)] {
        if !is_there(restore) {
            println!("skip {restore}: not there");
            continue;
        }
        let mut loaded = 0;
        for (rule, word) in RULES {
            let text = format!("*filter\n:FORWARD ACCEPT\n:OTHER -\n-A FORWARD -j OTHER\n-A OTHER {rule}\nCOMMIT\n");
            if let Err(e) = feed(restore, &text) {
                println!("skip {restore} {rule}: {e}");
                continue;
            }
            loaded += 1;
            let ruleset = Ruleset::read().expect("the rules");
            match ruleset.judge(&published()) {
                Judgement::Carried => assert!(word.is_empty(), "{restore} {rule}: carried"),
                Judgement::Forbidden { why, rule: at } => {
                    assert!(!word.is_empty() && why.contains(word), "{restore} {rule}: {at} {why}");
                    assert!(at.contains("chain OTHER rule"), "{at}");
                    assert!(ruleset.forbidding().any(|f| f == (at.clone(), why.clone())));
                }
                Judgement::Dropped { rule: at } => panic!("{restore} {rule}: {at}"),
            }
        }
        assert!(loaded >= RULES.len() / 2, "{restore}: {loaded} rules could be loaded");
        if clean {
            feed(restore, "*filter\n:FORWARD ACCEPT\nCOMMIT\n").expect("an empty table");
        }
    }
}

#[test]
#[ignore = "needs root"]
fn legacy_rules_of_both_families_are_followed_and_seen_to_change() {
    let test = "legacy_rules_of_both_families_are_followed_and_seen_to_change";
    if !alone(test) {
        return;
    }
    for (restore, flow) in LEGACY.into_iter().zip([published(), published6()]) {
        let text =
            |rules: &str| format!("*mangle\n:A -\n:B -\n{rules}\nCOMMIT\n*nat\n-A PREROUTING -j ACCEPT\nCOMMIT\n");
        let (empty, poll) = (Ruleset::read().expect("rules").digest(), changes::digest().expect("tables"));
        if let Err(e) = feed(restore, &text("-A PREROUTING -j A\n-A A -g B\n-A A -j DROP\n-A B -i eth0 -j RETURN")) {
            println!("skip {restore}: {e}");
            continue;
        }
        assert_eq!(Judgement::Carried, judged(&flow), "{restore}");
        let (before, polled) = (Ruleset::read().expect("rules").digest(), changes::digest().expect("tables"));
        assert!(empty != before && poll != polled, "{restore}");
        assert_eq!((before, polled), (Ruleset::read().expect("rules").digest(), changes::digest().expect("tables")));

        feed(
            restore,
            &text("-A POSTROUTING -j A\n-A A -p tcp -j B\n-A A -j DROP\n-A B -p tcp -m tcp --dport 80 -j DROP"),
        )
        .expect("rules");
        assert!(before != Ruleset::read().expect("rules").digest() && polled != changes::digest().expect("tables"));
        let Judgement::Dropped { rule } = judged(&flow) else { panic!("{restore}: {:?}", judged(&flow)) };
        assert!(rule.contains("tables table mangle chain B rule 1 (tcp, drop)"), "{rule}");
        feed(restore, "*mangle\nCOMMIT\n*nat\nCOMMIT\n").expect("empty tables");
    }
}

#[test]
#[ignore = "needs root"]
fn elements_of_an_ipset_are_seen_to_change_and_large_sets_forbid() {
    let test = "elements_of_an_ipset_are_seen_to_change_and_large_sets_forbid";
    if !alone(test) {
        return;
    }
    if let Err(e) = feed("ipset restore", "create banned hash:ip counters timeout 600\ncreate large hash:ip\n") {
        println!("skip {test}: {e}");
        return;
    }
    let digest = || changes::digest().expect("sets");
    let empty = digest();
    feed("ipset restore", "add banned 203.0.113.1\nadd banned 203.0.113.2\n").expect("elements");
    let two = digest();
    assert!(empty != two);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(two, digest(), "the time that is left is not part of it");
    feed("ipset restore", "del banned 203.0.113.1\nadd banned 203.0.113.3\n").expect("elements");
    assert!(two != digest());
    let rule = |set: &str| format!("*filter\n-A FORWARD -m set --match-set {set} src -j DROP\nCOMMIT\n");
    if let Err(e) = feed("iptables-nft-restore", &rule("banned")) {
        println!("skip {test}: {e}");
        return;
    }
    let may_drop = |judgement: Judgement| {
        let Judgement::Forbidden { rule, why } = judgement else { panic!("{judgement:?}") };
        assert!(rule.contains("FORWARD") && why == "it may drop the flow", "{rule}: {why}");
    };
    may_drop(judged(&published()));
    let many: String = (0..1001).map(|n| format!("add large 10.1.{}.{}\n", n / 250, n % 250)).collect();
    feed("ipset restore", &many).expect("elements");
    may_drop(judged(&published()));
    feed("iptables-nft-restore", &rule("large")).expect("a rule");
    let Judgement::Forbidden { rule, why } = judged(&published()) else { panic!("carried") };
    assert!(rule == "ipset large" && why.contains("1001 elements"), "{rule}: {why}");
}

#[test]
#[ignore = "needs root"]
fn the_digest_changes_with_rules_and_elements_and_not_with_counters() {
    if !alone("the_digest_changes_with_rules_and_elements_and_not_with_counters") {
        return;
    }
    let text = |counter: u32, elements: &str, rule: &str| {
        format!(
            "table ip t {{ set s {{ type ipv4_addr; elements = {{ {elements} }} }}
            chain c {{ type filter hook forward priority 0; ip saddr @s counter packets {counter} bytes 9 {rule}; }} }}"
        )
    };
    let digest = |text: String| {
        nft(&text).expect("rules");
        Ruleset::read().expect("the rules").digest()
    };
    let first = digest(text(0, "10.0.0.1", "drop"));
    assert_eq!(first, digest(text(7, "10.0.0.1", "drop")));
    assert_ne!(first, digest(text(0, "10.0.0.1, 10.0.0.2", "drop")));
    assert_ne!(first, digest(text(0, "10.0.0.1", "accept")));
    assert_ne!(first, digest(String::new()));
}

#[test]
#[ignore = "needs root"]
fn policies_of_ipsec_and_rules_of_legacy_ebtables_forbid_all() {
    let test = "policies_of_ipsec_and_rules_of_legacy_ebtables_forbid_all";
    if !alone(test) {
        return;
    }
    assert_eq!(Judgement::Carried, judged(&published()));
    for (add, remove, words) in [
        ("ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir fwd", "ip xfrm policy flush", "IPsec"),
        ("ebtables-legacy -A FORWARD -i wlan0 -j DROP", "ebtables-legacy -F", "ebtables"),
    ] {
        if let Err(e) = feed(add, "") {
            println!("skip {add}: {e}");
            continue;
        }
        let Judgement::Forbidden { rule, .. } = judged(&published()) else { panic!("carried: {add}") };
        assert!(rule.contains(words), "{rule}");
        feed(remove, "").expect("removed");
        assert_eq!(Judgement::Carried, judged(&published()), "{remove}");
    }
}

/// Packets of a stacked interface also meet the chains at the one below.
#[test]
#[ignore = "needs root"]
fn a_chain_at_the_parent_of_an_interface_is_met() {
    let test = "a_chain_at_the_parent_of_an_interface_is_met";
    if !alone(test) {
        return;
    }
    feed("ip link add eth0 type veth peer name out", "").expect("a veth");
    if let Err(e) = feed("ip link add link eth0 name eth0.7 type macvlan", "") {
        println!("skip {test}: {e}");
        return;
    }
    nft("table netdev t { chain c { type filter hook ingress device eth0 priority 0; limit rate 1/second; } }")
        .expect("a chain");
    assert!(is_forbidden(&judged(&Flow { ingress: "eth0.7", ..published() })));
    assert_eq!(Judgement::Carried, judged(&Flow { ingress: "eth1", ..published() }));
    nft("table netdev t { chain c { type filter hook ingress device eth0 priority 0; vlan id 7 drop; } }")
        .expect("a chain");
    assert!(is_forbidden(&judged(&Flow { ingress: "eth0.7", ..published() })), "its frames may have tags");
    assert_eq!(Judgement::Carried, judged(&published()), "these have none");
}

#[test]
#[ignore = "needs root"]
fn traffic_control_that_would_be_bypassed_is_found() {
    let test = "traffic_control_that_would_be_bypassed_is_found";
    if !alone(test) {
        return;
    }
    let run = |line: &str| {
        let mut words = line.split(' ').map(|word| word.replace('_', " "));
        Command::new(words.next().unwrap_or_default()).args(words).output().is_ok_and(|o| o.status.success())
    };
    assert!(run("ip link add eth0 type veth peer name out"));
    assert!(run("ip link add veth1 type veth peer name inside"));
    assert!(run("ip link add podman7 type bridge"));
    let found = || shapers("eth0", "podman7", Some("veth1")).expect("the kernel's answer");
    assert_eq!(None, found());
    for (add, delete, expected) in [
        ("qdisc add dev eth0 root tbf rate 1mbit burst 10k latency 1s", "qdisc del dev eth0 root", None),
        (
            "qdisc add dev veth1 root tbf rate 1mbit burst 10k latency 1s",
            "qdisc del dev veth1 root",
            Some("tbf of veth1"),
        ),
        (
            "qdisc add dev podman7 root tbf rate 1mbit burst 10k latency 1s",
            "qdisc del dev podman7 root",
            Some("tbf of podman7"),
        ),
        ("qdisc add dev eth0 clsact", "", None),
        ("filter add dev eth0 egress bpf bytecode 1,6_0_0_0,", "", None),
        (
            "filter add dev eth0 ingress bpf bytecode 1,6_0_0_0,",
            "qdisc del dev eth0 clsact",
            Some("bpf at the ingress of eth0"),
        ),
        ("qdisc add dev veth1 clsact", "", None),
        (
            "filter add dev veth1 egress bpf bytecode 1,6_0_0_0,",
            "qdisc del dev veth1 clsact",
            Some("bpf at the egress of veth1"),
        ),
    ] {
        if !run(&format!("tc {add}")) {
            println!("skip {add}: tc refuses it");
            continue;
        }
        match expected {
            None => assert_eq!(None, found(), "{add}"),
            Some(words) => assert!(found().is_some_and(|f| f.contains(words)), "{add}: {:?}", found()),
        }
        assert!(delete.is_empty() || run(&format!("tc {delete}")), "{delete}");
    }
    assert_eq!(None, found());
}

#[test]
#[ignore = "needs root"]
fn a_thousand_rules_are_read_quickly() {
    if !alone("a_thousand_rules_are_read_quickly") {
        return;
    }
    let rules: String = (0..1000)
        .map(|n| format!("ip saddr 203.0.{}.{} tcp dport {{ 22, 80 }} counter drop\n", n / 250, n % 250))
        .collect();
    nft(&format!("table ip t {{ chain c {{ type filter hook forward priority 0; {rules} }} }}")).expect("rules");
    let begun = std::time::Instant::now();
    let ruleset = Ruleset::read().expect("the rules");
    let read = begun.elapsed();
    assert_eq!(Judgement::Carried, ruleset.judge(&published()));
    println!("1,000 rules with 1,000 sets: read in {read:?}, judged in {:?}", begun.elapsed() - read);
    let begun = std::time::Instant::now();
    let json = Command::new("nft").args(["-j", "list", "ruleset"]).output().expect("nft");
    println!("nft -j list ruleset: {:?}, {} bytes", begun.elapsed(), json.stdout.len());
    assert!(ruleset.tables[0].chains["c"].rules.len() == 1000);
}

/// Answers of the kernel about every kind of rule of these tests.
fn answers() -> Vec<Raw> {
    let text = "table inet t {
        set s { type ipv4_addr . inet_service; flags interval; elements = { 10.0.0.0/8 . 1-9, 10.1.1.1 . 80 } }
        chain other { limit rate 1/second log; return; }
        chain c { type filter hook forward priority 0; policy drop;
            ip saddr . tcp dport @s jump other
            iifname vmap { eth0 : goto other, eth1 : accept }
            tcp flags & (syn | rst) == syn counter ct mark set 7
            ct state established,related accept
        } }";
    let mut answers = Vec::new();
    if alone("answers") && nft(text).is_ok() {
        let mut netlink = raw::open().expect("nfnetlink");
        for kind in [1, 4, 7, 10] {
            answers.extend(netlink.dump(Raw::nf_tables(kind, 0, &[])).expect("a list"));
        }
        answers.extend(netlink.dump(Raw::nf_tables(13, 1, &[(1, "t"), (2, "s")])).expect("elements"));
    }
    answers
}

/// All that is done with answers, with each taken for each kind of answer.
fn judge_all(messages: &[Raw]) {
    let mut table = Table { family: table::INET, name: "t".to_owned(), ..Table::default() };
    let mut list = Vec::new();
    for message in messages {
        let _ = nft::table(message);
        if let Some((_, name, chain)) = nft::chain(message) {
            table.chains.entry(name).or_insert(chain);
        }
        if let Some(name) = message.attributes().text(2) {
            table.sets.insert(name.to_owned(), nft::set(message.attributes()));
        }
        nft::add_elements(message, &mut list);
    }
    for set in table.sets.values_mut() {
        set.elements = nft::joined(list.clone(), set.is_intervals && set.fields.is_empty());
    }
    for message in messages {
        if let Some((_, chain, rule)) = nft::rule(message) {
            table.chains.entry(chain).or_default().rules.push(rule);
        }
    }
    for chain in table.chains.values_mut() {
        chain.base = Some(table::Base { hook: table::Hook::Forward, ..table::Base::default() });
    }
    let ruleset = Ruleset::of(vec![table]);
    for flow in flows() {
        let _ = ruleset.judge(&flow);
    }
    let _ = (ruleset.forbidding().count(), ruleset.digest());
}

#[test]
fn no_answer_of_the_kernel_makes_the_judge_panic() {
    let answers = answers();
    let count = answers.len();
    proptest!(ProptestConfig::with_cases(2_000), |(
        changes in prop::collection::vec((0..count.max(1), any::<prop::sample::Index>(), any::<u8>()), 1..8),
        noise in prop::collection::vec(any::<u8>(), 0..200),
    )| {
        let mut messages = answers.clone();
        for (message, at, byte) in &changes {
            if let Some(message) = messages.get_mut(*message) {
                let mut bytes = message.bytes().to_vec();
                let at = at.index(bytes.len());
                bytes[at] = *byte;
                *message = Raw::plain(0, bytes);
            }
        }
        messages.push(Raw::plain(0, noise.clone()));
        judge_all(&messages);
        let _ = legacy::parse(table::IP, "filter", &noise, &noise);
        let _ = xt::matches("conntrack", 3, &noise, &packet::Packet::default());
        let _ = xt::matches("multiport", 1, &noise, &packet::Packet::default());
        let _ = xt::matches("tcp", 0, &noise, &packet::Packet::default());
    });
}
