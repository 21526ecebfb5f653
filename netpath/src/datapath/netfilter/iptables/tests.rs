//! Examples for policy, printer and snapshot: desired state → rules of iptables.

use super::print::{self, STATE, Table, digest};
use super::snapshot::{Snapshot, script};
use crate::datapath::netfilter::policy;
use crate::datapath::netfilter::rules::Family;
use crate::model::{Desired, HostBind, Isolation, Proto, Publish, Record, RouteSource, fixtures};
use std::collections::BTreeSet;
use std::net::IpAddr;

mod options;
mod routes;

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An endpoint of the network `name` on a bridge of the same name, without published ports.
fn record(order: u64, name: &str, addresses: &[&str]) -> Record {
    Record { links: fixtures::links(2, 3), ..fixtures::plain(order, name, name, addresses) }
}

fn compile(desired: &Desired, family: Family, loopback6: bool, sources: &[RouteSource]) -> [Table; 3] {
    print::tables(&policy::compile(desired, family, loopback6, sources))
}

fn web() -> Record {
    record(1, "front", &["10.89.7.5/24"])
}

fn publishes(mut record: Record, what: &[(HostBind, Proto, u16, u16, u16)]) -> Record {
    let new =
        |&(bind, proto, host, container, count)| Publish::new(bind, proto, host, container, count).expect("ports");
    record.publishes = what.iter().map(new).collect();
    record
}

fn rules(records: &[Record], family: Family, chain: &str) -> Vec<String> {
    let desired = Desired { records: records.to_vec() };
    let compiled = compile(&desired, family, false, &[]);
    let chains = compiled.into_iter().flat_map(|t| t.chains);
    chains.filter(|c| c.name == chain).flat_map(|c| c.rules).collect()
}

/// The script for a host without rules.
fn whole(records: &[Record], family: Family) -> String {
    let desired = Desired { records: records.to_vec() };
    let text: Vec<String> =
        compile(&desired, family, false, &[]).iter().filter_map(|t| script(t, None, false)).collect();
    text.concat()
}

#[test]
fn the_script_for_one_container_with_one_port() {
    let script = whole(&[publishes(web(), &[(HostBind::Any, Proto::Tcp, 8080, 80, 1)])], Family::V4);
    let digests_out: Vec<&str> = script.lines().filter(|l| !l.contains("--comment netpath:")).collect();
    let expected = "\
*mangle
:NETPATH_PREROUTING - [0:0]
:NETPATH_DIRECT - [0:0]
:NETPATH_SOURCE - [0:0]
:NETPATH_STATE - [0:0]
-I PREROUTING 1 -j NETPATH_PREROUTING
-A NETPATH_PREROUTING -d 10.89.7.0/24 ! -i front -j NETPATH_DIRECT
-A NETPATH_PREROUTING -i front ! -s 10.89.7.0/24 -j NETPATH_SOURCE
-A NETPATH_DIRECT -m addrtype --dst-type LOCAL -j RETURN
-A NETPATH_DIRECT -s 10.89.7.0/24 -i front -j RETURN
-A NETPATH_DIRECT -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A NETPATH_DIRECT -j DROP
-A NETPATH_SOURCE -d 224.0.0.0/4 -j RETURN
-A NETPATH_SOURCE -d 255.255.255.255/32 -j RETURN
-A NETPATH_SOURCE -m rpfilter -j RETURN
-A NETPATH_SOURCE -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN
-A NETPATH_SOURCE -j DROP
COMMIT
*filter
:NETPATH_INPUT - [0:0]
:NETPATH_STATE - [0:0]
-I INPUT 1 -j NETPATH_INPUT
-A NETPATH_INPUT -d 127.0.0.0/8 -i front -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP
-A NETPATH_INPUT -s 127.0.0.0/8 -i front -m conntrack ! --ctstate RELATED,ESTABLISHED -j DROP
COMMIT
*nat
:NETPATH_PREROUTING - [0:0]
:NETPATH_OUTPUT - [0:0]
:NETPATH_DNAT - [0:0]
:NETPATH_TCP - [0:0]
:NETPATH_POSTROUTING - [0:0]
:NETPATH_HAIRPIN - [0:0]
:NETPATH_STATE - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j NETPATH_PREROUTING
-A OUTPUT -m addrtype --dst-type LOCAL -j NETPATH_OUTPUT
-A POSTROUTING -j NETPATH_POSTROUTING
-A NETPATH_PREROUTING -d 127.0.0.0/8 -j RETURN
-A NETPATH_PREROUTING -j NETPATH_DNAT
-A NETPATH_OUTPUT -j NETPATH_DNAT
-A NETPATH_DNAT -p tcp -j NETPATH_TCP
-A NETPATH_TCP -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.89.7.5:80
-A NETPATH_POSTROUTING -o lo -j RETURN
-A NETPATH_POSTROUTING -s 127.0.0.0/8 -o front -j MASQUERADE
-A NETPATH_POSTROUTING -s 10.89.7.0/24 -m conntrack --ctstate DNAT -j NETPATH_HAIRPIN
-A NETPATH_POSTROUTING -o front -j RETURN
-A NETPATH_POSTROUTING -s 10.89.7.0/24 ! -d 224.0.0.0/4 -j MASQUERADE
-A NETPATH_HAIRPIN -o front -j MASQUERADE
-A NETPATH_STATE -d 10.89.7.5/32
COMMIT";
    assert_eq!(expected.lines().collect::<Vec<_>>(), digests_out);
    assert_eq!(3, script.lines().filter(|l| l.contains("netpath:") && l.ends_with(":made")).count());
}

#[test]
fn an_empty_desired_state_has_no_rules() {
    assert_eq!("", whole(&[], Family::V4));
    let mut not_ready = web();
    not_ready.links = None;
    assert_eq!("", whole(&[not_ready], Family::V4));
}

#[test]
fn a_network_of_one_family_has_no_rules_in_the_other() {
    assert_eq!("", whole(&[publishes(web(), &[(HostBind::Any, Proto::Tcp, 80, 80, 1)])], Family::V6));
}

#[test]
fn a_range_is_one_rule_with_and_without_a_shift() {
    let r = publishes(
        web(),
        &[
            (HostBind::Any, Proto::Tcp, 5000, 5000, 10_000),
            (HostBind::Any, Proto::Udp, 6000, 7000, 10),
            (HostBind::Any, Proto::Sctp, 9, 9, 1),
        ],
    );
    assert_eq!(
        ["-p tcp -m tcp --dport 5000:14999 -j DNAT --to-destination 10.89.7.5"].as_slice(),
        rules(std::slice::from_ref(&r), Family::V4, "NETPATH_TCP")
    );
    assert_eq!(
        ["-p udp -m udp --dport 6000:6009 -j DNAT --to-destination 10.89.7.5:7000-7009/6000"].as_slice(),
        rules(std::slice::from_ref(&r), Family::V4, "NETPATH_UDP")
    );
    assert_eq!(
        ["-p sctp -m sctp --dport 9 -j DNAT --to-destination 10.89.7.5"].as_slice(),
        rules(&[r], Family::V4, "NETPATH_SCTP")
    );
}

#[test]
fn a_range_of_all_ports_is_one_rule() {
    let r = publishes(web(), &[(HostBind::AnyV4, Proto::Tcp, 1, 1, 65_535)]);
    assert_eq!(
        ["-p tcp -m tcp --dport 1:65535 -j DNAT --to-destination 10.89.7.5"].as_slice(),
        rules(&[r], Family::V4, "NETPATH_TCP")
    );
}

#[test]
fn v6_targets_are_in_brackets_when_they_have_a_port() {
    let six = record(1, "six", &["fd41:7::5/64"]);
    let r = publishes(
        six,
        &[
            (HostBind::AnyV6, Proto::Tcp, 8443, 443, 1),
            (HostBind::Any, Proto::Tcp, 90, 90, 1),
            (HostBind::Any, Proto::Tcp, 100, 200, 2),
        ],
    );
    let expected = [
        "-p tcp -m tcp --dport 8443 -j DNAT --to-destination [fd41:7::5]:443",
        "-p tcp -m tcp --dport 90 -j DNAT --to-destination fd41:7::5",
        "-p tcp -m tcp --dport 100:101 -j DNAT --to-destination [fd41:7::5]:200-201/100",
    ];
    assert_eq!(expected.as_slice(), rules(std::slice::from_ref(&r), Family::V6, "NETPATH_TCP"));
    assert!(rules(&[r], Family::V4, "NETPATH_TCP").is_empty());
}

#[test]
fn a_bound_address_precedes_every_address_and_an_older_owner_a_younger_one() {
    let tcp = |bind| [(bind, Proto::Tcp, 80, 80, 1)];
    let first = publishes(record(1, "a", &["10.0.1.2/24"]), &tcp(HostBind::AnyV4));
    let second = publishes(record(2, "b", &["10.0.2.2/24"]), &tcp(HostBind::Address(ip("192.0.2.1"))));
    let third = publishes(record(3, "c", &["10.0.3.2/24"]), &tcp(HostBind::Any));
    let expected = [
        "-d 192.0.2.1/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.2.2",
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.1.2",
        "-p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.3.2",
    ];
    assert_eq!(expected.as_slice(), rules(&[third, second, first], Family::V4, "NETPATH_TCP"));
}

#[test]
fn a_bound_address_serves_its_own_family_only() {
    let both = || record(1, "n", &["10.0.1.2/24", "fd00::2/64"]);
    let r = publishes(both(), &[(HostBind::Address(ip("2001:db8::1")), Proto::Tcp, 80, 80, 1)]);
    assert!(rules(std::slice::from_ref(&r), Family::V4, "NETPATH_TCP").is_empty());
    assert_eq!(
        ["-d 2001:db8::1/128 -p tcp -m tcp --dport 80 -j DNAT --to-destination fd00::2"].as_slice(),
        rules(&[r], Family::V6, "NETPATH_TCP")
    );
}

#[test]
fn only_a_bridge_that_serves_loopback_gets_loopback_rules() {
    let r = publishes(web(), &[(HostBind::Address(ip("192.0.2.1")), Proto::Tcp, 80, 80, 1)]);
    assert!(rules(std::slice::from_ref(&r), Family::V4, "NETPATH_INPUT").is_empty());
    assert!(!rules(&[r], Family::V4, "NETPATH_POSTROUTING").iter().any(|r| r.contains("127.")));
    let local = publishes(web(), &[(HostBind::Address(ip("127.0.0.1")), Proto::Tcp, 80, 80, 1)]);
    assert_eq!(2, rules(&[local], Family::V4, "NETPATH_INPUT").len());
}

#[test]
fn a_fixed_outbound_address_replaces_masquerade() {
    let mut r = web();
    r.network.outbound4 = Some(std::net::Ipv4Addr::new(192, 0, 2, 9));
    let post = rules(&[r], Family::V4, "NETPATH_POSTROUTING");
    assert_eq!(Some("-s 10.89.7.0/24 ! -d 224.0.0.0/4 -j SNAT --to-source 192.0.2.9"), post.last().map(String::as_str));
}

#[test]
fn an_internal_network_has_no_outside_traffic_and_no_published_ports() {
    let mut r = publishes(web(), &[(HostBind::Any, Proto::Tcp, 80, 80, 1)]);
    r.network.internal = true;
    let one = std::slice::from_ref(&r);
    let expected = ["-i front -o front -j RETURN", "-i front -j DROP", "-o front -j DROP"];
    assert_eq!(expected.as_slice(), rules(one, Family::V4, "NETPATH_FORWARD"));
    assert!(rules(one, Family::V4, "NETPATH_DIRECT").is_empty(), "the network is internal");
    assert_eq!(["-i front -o front -j ACCEPT"].as_slice(), rules(one, Family::V4, "NETPATH_FORWARD_ACCEPT"));
    assert!(rules(one, Family::V4, "NETPATH_TCP").is_empty());
    assert!(!rules(one, Family::V4, "NETPATH_POSTROUTING").iter().any(|r| r.contains("! -d")));
}

#[test]
fn isolation_drops_exactly_the_pairs_of_the_policy() {
    let kinds = [Isolation::Open, Isolation::Isolated, Isolation::Strict];
    let records: Vec<Record> = ["open", "isol", "strict"]
        .iter()
        .zip(kinds)
        .zip(1..)
        .map(|((name, isolation), n)| {
            let mut r = record(n, name, &[&format!("10.0.{n}.2/24")]);
            r.network.isolation = isolation;
            r
        })
        .collect();
    let dropped = |chain| rules(&records, Family::V4, chain);
    let to = |names: &[&str]| {
        let rule = |name: &&str| format!("-o {name} -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP");
        names.iter().map(rule).collect::<Vec<_>>()
    };
    assert_eq!(to(&["strict"]), dropped("NETPATH_FROM_OPEN"));
    assert_eq!(to(&["isol", "strict"]), dropped("NETPATH_FROM_ISOL"));
    assert_eq!(to(&["isol", "open", "strict"]), dropped("NETPATH_FROM_STRICT"));
}

#[test]
fn open_networks_alone_need_no_isolation_chain() {
    let other = record(2, "back", &["10.89.8.5/24"]);
    assert!(!rules(&[web(), other], Family::V4, "NETPATH_FORWARD").iter().any(|r| r.contains("NETPATH_FROM")));
}

#[test]
fn a_published_port_53_does_not_intercept_the_dns_of_the_network() {
    let mut r = publishes(web(), &[(HostBind::Any, Proto::Udp, 53, 53, 1)]);
    r.network.dns = true;
    let one = std::slice::from_ref(&r);
    let dnat = rules(one, Family::V4, "NETPATH_DNAT");
    assert_eq!("-d 10.89.7.1/32 -p udp -m udp --dport 53 -j RETURN", dnat[0]);
    assert_eq!(Some("-p udp -j NETPATH_UDP"), dnat.last().map(String::as_str));
    let input = rules(one, Family::V4, "NETPATH_INPUT_ACCEPT");
    assert_eq!("-d 10.89.7.1/32 -i front -p udp -m udp --dport 53 -j ACCEPT", input[0]);
}

#[test]
fn traffic_between_two_networks_is_not_masqueraded() {
    let other = record(2, "back", &["10.89.8.5/24"]);
    let post = rules(&[web(), other], Family::V4, "NETPATH_POSTROUTING");
    let at = |rule: &str| post.iter().position(|r| r == rule).expect("a rule");
    assert!(at("-o back -j RETURN") < at("-s 10.89.7.0/24 ! -d 224.0.0.0/4 -j MASQUERADE"));
    assert!(at("-s 10.89.8.0/24 -m conntrack --ctstate DNAT -j NETPATH_HAIRPIN") < at("-o front -j RETURN"));
}

#[test]
fn containers_of_one_network_share_its_rules() {
    let second = record(2, "front", &["10.89.7.6/24"]);
    assert_eq!(
        rules(&[web()], Family::V4, "NETPATH_DIRECT"),
        rules(&[web(), second.clone()], Family::V4, "NETPATH_DIRECT")
    );
    assert_eq!(["-d 10.89.7.5/32", "-d 10.89.7.6/32"].as_slice(), rules(&[web(), second], Family::V4, STATE));
}

#[test]
fn the_digest_changes_with_any_rule() {
    let table = |r: Record| compile(&Desired { records: vec![r] }, Family::V4, false, &[])[2].clone();
    let one = table(publishes(web(), &[(HostBind::Any, Proto::Tcp, 80, 80, 1)]));
    let two = table(publishes(web(), &[(HostBind::Any, Proto::Tcp, 80, 81, 1)]));
    assert_eq!(digest(&one), digest(&one.clone()));
    assert_ne!(digest(&one), digest(&two));
}

/// The output of iptables-save after a script.
fn saved(script: &str, before: &str) -> String {
    format!("*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING ACCEPT [0:0]\n{script}{before}COMMIT\n")
}

fn nat_after(records: &[Record]) -> (Table, String) {
    let table = compile(&Desired { records: records.to_vec() }, Family::V4, false, &[])[2].clone();
    let text = script(&table, None, false).expect("something to write");
    let body: String =
        text.lines().filter(|l| !l.starts_with('*') && *l != "COMMIT").map(|l| l.to_owned() + "\n").collect();
    (table, body)
}

fn published() -> Record {
    publishes(web(), &[(HostBind::Any, Proto::Tcp, 80, 80, 1)])
}

#[test]
fn an_up_to_date_table_is_not_written_again() {
    let (table, body) = nat_after(&[published()]);
    let present = Snapshot::parse(&saved(&body, ""));
    assert_eq!(None, script(&table, present.tables.get("nat"), false));
    assert_eq!(vec![ip("10.89.7.5")], present.tables["nat"].addresses);
}

#[test]
fn a_missing_rule_or_a_duplicate_or_misplaced_jump_is_repaired() {
    let (table, body) = nat_after(&[published()]);
    let lost = body.replace("-A NETPATH_DNAT -p tcp -j NETPATH_TCP\n", "");
    let twice = body.clone() + "-A POSTROUTING -j NETPATH_POSTROUTING\n";
    let early = body.clone() + "-A POSTROUTING -s 1.2.3.4/32 -j MASQUERADE\n";
    for (what, text) in [("lost", &lost), ("twice", &twice), ("early", &early)] {
        assert_ne!(&body, text, "{what}: the replacement had no effect");
        let present = Snapshot::parse(&saved(text, ""));
        let again = script(&table, present.tables.get("nat"), false).unwrap_or_else(|| panic!("{what}: not detected"));
        assert!(again.contains(":NETPATH_DNAT - [0:0]\n"), "{what}");
        assert_eq!(what != "lost", again.contains("-D POSTROUTING -j NETPATH_POSTROUTING\n"), "{what}:\n{again}");
        assert_eq!(what != "lost", again.contains("-A POSTROUTING -j NETPATH_POSTROUTING\n"), "{what}");
        assert!(!again.contains("-s 1.2.3.4"), "{what}: foreign rules stay");
    }
}

#[test]
fn an_empty_desired_state_removes_only_netpaths_rules() {
    let (_, body) = nat_after(&[published()]);
    let others = ":DOCKER - [0:0]\n-A POSTROUTING -s 172.17.0.0/16 -j MASQUERADE\n-A DOCKER -j RETURN\n";
    let empty = compile(&Desired::default(), Family::V4, false, &[])[2].clone();
    let present = Snapshot::parse(&saved(&body, others));
    let text = script(&empty, present.tables.get("nat"), false).expect("something to remove");
    assert!(text.lines().all(|l| ["*", "COMMIT"].iter().any(|p| l.starts_with(p)) || l.contains("NETPATH_")), "{text}");
    for chain in ["NETPATH_DNAT", "NETPATH_TCP", "NETPATH_STATE"] {
        assert!(text.find(&format!("-F {chain}\n")) < text.find(&format!("-X {chain}\n")), "{text}");
    }
    assert!(!present.tables["nat"].removable(), "other software uses the table");
    assert!(Snapshot::parse(&saved(&body, "")).tables["nat"].removable());
    let dropping = saved(&body, "").replace(":OUTPUT ACCEPT", ":OUTPUT DROP");
    assert!(!Snapshot::parse(&dropping).tables["nat"].removable(), "the administrator has set a policy");
}

#[test]
fn a_table_that_existed_before_is_marked_as_kept() {
    let (table, _) = nat_after(&[published()]);
    let before = Snapshot::parse(&saved("", ""));
    let text = script(&table, before.tables.get("nat"), false).expect("something to write");
    assert!(text.contains(":kept\n"));
}

#[test]
fn foreign_rules_with_netpath_in_a_comment_stay() {
    let text = saved("", "-A PREROUTING -m comment --comment \"before -j NETPATH_DNAT\" -j RETURN\n");
    let present = Snapshot::parse(&text);
    let (table, _) = nat_after(&[published()]);
    let script = script(&table, present.tables.get("nat"), false).expect("something to write");
    assert!(!script.contains("-D PREROUTING"), "{script}");
}

#[test]
fn an_interrupted_removal_keeps_the_creator_of_the_table() {
    let (_, body) = nat_after(&[published()]);
    let empty = compile(&Desired::default(), Family::V4, false, &[])[2].clone();
    let present = Snapshot::parse(&saved(&body, ""));
    let first = script(&empty, present.tables.get("nat"), true).expect("something to remove");
    assert!(first.contains("-X NETPATH_DNAT\n") && !first.contains(STATE), "{first}");
    let state: String = body.lines().filter(|l| l.contains(STATE)).map(|l| l.to_owned() + "\n").collect();
    let half = Snapshot::parse(&saved(&state, ""));
    assert_eq!(None, script(&empty, half.tables.get("nat"), true));
    assert!(half.has_own_rules() && half.tables["nat"].removable());
    let again = script(&nat_after(&[published()]).0, half.tables.get("nat"), false).expect("something to write");
    assert!(again.contains(":made\n"), "{again}");
}

/// `Snapshot::apply` replaces a listing: no second script is needed, and later scripts remove everything.
#[test]
fn apply_gives_the_tables_after_a_script() {
    let both = |records: &[Record]| {
        let desired = Desired { records: records.to_vec() };
        [Family::V4, Family::V6].map(|f| compile(&desired, f, false, &[]))
    };
    let dual = record(2, "back", &["10.89.8.5/24", "fd41:8::5/64"]);
    let dual = publishes(dual, &[(HostBind::Any, Proto::Udp, 53, 53, 2)]);
    let single = publishes(web(), &[(HostBind::Any, Proto::Tcp, 8080, 80, 1)]);
    let foreign = Snapshot::parse(
        "*nat\n:PREROUTING ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:POSTROUTING DROP [0:0]\n-A PREROUTING -j X\nCOMMIT\n",
    );
    let mut present = [Snapshot::default(), foreign.clone()];
    for records in [vec![single.clone()], vec![single.clone(), dual.clone()], vec![dual], vec![single], Vec::new()] {
        for (present, wanted) in present.iter_mut().zip(both(&records)) {
            for table in &wanted {
                let Some(text) = script(table, present.tables.get(table.name), false) else { continue };
                present.apply(&text);
                assert_eq!(None, script(table, present.tables.get(table.name), false), "after\n{text}");
            }
            let served: BTreeSet<IpAddr> = present.tables.values().flat_map(|t| t.addresses.iter().copied()).collect();
            let desired = Desired { records: records.clone() };
            let family = if served.iter().all(IpAddr::is_ipv4) { Family::V4 } else { Family::V6 };
            assert!(served.is_empty() || served == policy::addresses(&desired, family), "{served:?}");
            assert_eq!(wanted.iter().any(|t| !t.chains.is_empty()), present.has_own_rules());
        }
    }
    assert_eq!(foreign.tables["nat"], present[1].tables["nat"], "foreign rules are unchanged");
}

/// Removing rules is slow in the kernel.
#[test]
fn a_new_container_only_appends_rules() {
    let port = |order: u64, address: &str| {
        let record = record(order, "front", &[address]);
        publishes(record, &[(HostBind::Any, Proto::Tcp, 8000 + order as u16, 80, 1)])
    };
    let [one, two] = [port(1, "10.89.7.5/24"), port(2, "10.89.7.4/24")];
    let mut present = Snapshot::default();
    let mut write = |records: &[&Record]| {
        let desired = Desired { records: records.iter().copied().cloned().collect() };
        let tables = compile(&desired, Family::V4, false, &[]);
        let text: String = tables.iter().filter_map(|t| script(t, present.tables.get(t.name), false)).collect();
        present.apply(&text);
        text.lines().filter(|l| !l.contains("--comment")).map(str::to_owned).collect::<Vec<_>>()
    };
    write(&[&one]);
    let added = [
        "*nat",
        "-A NETPATH_TCP -p tcp -m tcp --dport 8002 -j DNAT --to-destination 10.89.7.4:80",
        "-A NETPATH_STATE -d 10.89.7.4/32",
        "COMMIT",
    ];
    assert_eq!(added.as_slice(), write(&[&one, &two]));
    assert_eq!(Vec::<String>::new(), write(&[&one, &two]));
    let removed = [
        "*nat",
        ":NETPATH_TCP - [0:0]",
        ":NETPATH_STATE - [0:0]",
        "-A NETPATH_TCP -p tcp -m tcp --dport 8002 -j DNAT --to-destination 10.89.7.4:80",
        "-A NETPATH_STATE -d 10.89.7.4/32",
        "COMMIT",
    ];
    assert_eq!(removed.as_slice(), write(&[&two]));
}

/// Older digests go with a chain, so that a table is as before after a container has come and gone.
#[test]
fn a_container_that_goes_with_its_chain_leaves_no_digest() {
    let one = publishes(web(), &[(HostBind::Any, Proto::Tcp, 8080, 80, 1)]);
    let mut closed = record(2, "back", &["10.89.8.5/24"]);
    closed.network.internal = true;
    let mut present = Snapshot::default();
    let mut write = |records: &[&Record]| {
        let desired = Desired { records: records.iter().copied().cloned().collect() };
        let tables = compile(&desired, Family::V4, false, &[]);
        let text: String = tables.iter().filter_map(|t| script(t, present.tables.get(t.name), false)).collect();
        present.apply(&text);
        present.tables["filter"].own.clone()
    };
    let before = write(&[&one]);
    assert_ne!(before, write(&[&one, &closed]), "no chain is added");
    assert_eq!(before, write(&[&one]));
}

/// Published ports take precedence over a policy, but not over a rule.
#[test]
fn accepts_are_last_in_a_chain_that_drops_by_policy_and_in_no_other() {
    let mut dns = published();
    dns.network.dns = true;
    let table = compile(&Desired { records: vec![dns] }, Family::V4, false, &[])[1].clone();
    let listing = |forward: &str, input: &str, rules: &str| {
        format!("*filter\n:INPUT {input} [0:0]\n:FORWARD {forward} [0:0]\n:OUTPUT ACCEPT [0:0]\n{rules}COMMIT\n")
    };
    let written = |forward, input, rules: &str| {
        let present = Snapshot::parse(&listing(forward, input, rules));
        script(&table, present.tables.get("filter"), false).expect("something to write")
    };
    let open = written("ACCEPT", "ACCEPT", "");
    assert!(!open.contains("_ACCEPT"), "{open}");
    let closed = written("DROP", "DROP", "-A FORWARD -s 198.51.100.0/24 -j REJECT\n");
    assert!(closed.contains("-A FORWARD -j NETPATH_FORWARD_ACCEPT\n"), "{closed}");
    assert!(closed.contains("-A INPUT -j NETPATH_INPUT_ACCEPT\n"), "{closed}");
    assert!(closed.contains("-A NETPATH_INPUT_ACCEPT -d 10.89.7.1/32 -i front -p udp -m udp --dport 53 -j ACCEPT\n"));
    let one = written("ACCEPT", "DROP", "");
    assert!(one.contains("NETPATH_INPUT_ACCEPT") && !one.contains("NETPATH_FORWARD_ACCEPT"), "{one}");

    // The accept moves behind a rule that an administrator appends.
    let mut present = Snapshot::parse(&listing("DROP", "ACCEPT", ""));
    present.apply(&script(&table, present.tables.get("filter"), false).expect("something to write"));
    assert_eq!(None, script(&table, present.tables.get("filter"), false));
    present.apply("*filter\n-A FORWARD -s 198.51.100.0/24 -j REJECT\nCOMMIT\n");
    let moved = script(&table, present.tables.get("filter"), false).expect("something to write");
    assert!(moved.contains("-D FORWARD -j NETPATH_FORWARD_ACCEPT\n"), "{moved}");
    present.apply(&moved);
    assert_eq!(None, script(&table, present.tables.get("filter"), false));
}
