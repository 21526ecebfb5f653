//! Rules for routes with a preferred source.

use super::*;

fn way(from: &str, to: &str, by: &[&str], source: Option<&str>) -> RouteSource {
    RouteSource {
        from: from.parse().expect("a subnet"),
        to: to.parse().expect("a prefix"),
        by: by.iter().map(|name| name.parse().expect("an interface name")).collect(),
        source: source.map(ip),
    }
}

fn chain(records: &[Record], sources: &[RouteSource], name: &str) -> Vec<String> {
    let desired = Desired { records: records.to_vec() };
    let nat = compile(&desired, Family::V4, false, sources)[2].clone();
    nat.chains.into_iter().filter(|c| c.name == name).flat_map(|c| c.rules).collect()
}

/// The source NAT rules for the containers of `web()`, in order.
fn outward(records: &[Record], sources: &[RouteSource]) -> Vec<String> {
    let rules = chain(records, sources, "NETPATH_POSTROUTING");
    rules.into_iter().filter(|r| r.starts_with("-s 10.89.7.") && !r.contains("HAIRPIN")).collect()
}

const FRONT: &str = "10.89.7.0/24";
const MASQUERADE: &str = "-s 10.89.7.0/24 ! -d 224.0.0.0/4 -j MASQUERADE";

#[test]
fn a_route_with_a_source_precedes_masquerade_and_follows_routes_inside_it() {
    let sources = [
        way(FRONT, "203.0.113.5/32", &["eth1"], None),
        way(FRONT, "203.0.113.0/24", &["eth0", "eth1"], Some("192.0.2.10")),
        way(FRONT, "0.0.0.0/0", &["eth0"], Some("192.0.2.20")),
        way("10.89.8.0/24", "0.0.0.0/0", &["eth0"], Some("192.0.2.30")),
    ];
    assert_eq!(
        vec![
            "-s 10.89.7.0/24 -d 224.0.0.0/4 -j RETURN",
            "-s 10.89.7.0/24 -d 203.0.113.5/32 -o eth1 -j MASQUERADE",
            "-s 10.89.7.0/24 -d 203.0.113.0/24 -o eth0 -j SNAT --to-source 192.0.2.10",
            "-s 10.89.7.0/24 -d 203.0.113.0/24 -o eth1 -j SNAT --to-source 192.0.2.10",
            "-s 10.89.7.0/24 -d 0.0.0.0/0 -o eth0 -j SNAT --to-source 192.0.2.20",
            MASQUERADE
        ],
        outward(&[web()], &sources)
    );
}

#[test]
fn routes_without_a_preferred_source_add_no_rule() {
    let sources = [way(FRONT, "203.0.113.0/24", &["eth1"], None), way(FRONT, "0.0.0.0/0", &["eth0"], None)];
    assert_eq!(vec![MASQUERADE], outward(&[web()], &sources));
    assert_eq!(outward(&[web()], &[]), outward(&[web()], &sources));
}

#[test]
fn a_part_of_a_subnet_with_its_own_routing_rule_precedes_the_rest() {
    let sources =
        [way("10.89.7.5/32", "0.0.0.0/0", &["eth1"], None), way(FRONT, "0.0.0.0/0", &["eth0"], Some("192.0.2.10"))];
    assert_eq!(
        vec![
            "-s 10.89.7.0/24 -d 224.0.0.0/4 -j RETURN",
            "-s 10.89.7.5/32 -d 0.0.0.0/0 -j MASQUERADE",
            "-s 10.89.7.0/24 -d 0.0.0.0/0 -o eth0 -j SNAT --to-source 192.0.2.10",
            MASQUERADE
        ],
        outward(&[web()], &sources)
    );
}

#[test]
fn a_fixed_outbound_address_and_disabled_masquerade_override_routes() {
    let sources = [way(FRONT, "0.0.0.0/0", &["eth0"], Some("192.0.2.10"))];
    let mut fixed = web();
    fixed.network.outbound4 = Some(std::net::Ipv4Addr::new(192, 0, 2, 9));
    let expected = vec!["-s 10.89.7.0/24 ! -d 224.0.0.0/4 -j SNAT --to-source 192.0.2.9"];
    assert_eq!(expected, outward(&[fixed], &sources));
    let mut open = web();
    open.network.masquerade = false;
    assert!(outward(&[open], &sources).is_empty());
}

#[test]
fn a_route_through_an_interface_whose_name_is_a_pattern_is_masqueraded() {
    let sources = [way(FRONT, "0.0.0.0/0", &["tun+"], Some("192.0.2.10"))];
    let rules = outward(&[web()], &sources);
    assert!(rules.iter().all(|r| !r.contains("SNAT")) && rules.last().is_some_and(|r| r == MASQUERADE), "{rules:?}");
}

#[test]
fn the_state_chain_stores_sources_and_addresses() {
    let sources = [way(FRONT, "0.0.0.0/0", &["eth0"], Some("192.0.2.10"))];
    assert_eq!(vec!["-d 10.89.7.5/32", "-s 192.0.2.10/32"], chain(&[web()], &sources, STATE));
    let mut ruleset = policy::compile(&Desired { records: vec![web()] }, Family::V4, false, &sources);
    ruleset.sources.extend([ip("192.0.2.10"), ip("192.0.2.20")]);
    let tables = print::tables(&ruleset);
    let text: Vec<String> = tables.iter().filter_map(|t| script(t, None, false)).collect();
    assert_eq!(1, text.concat().matches("-A NETPATH_STATE -s 192.0.2.10/32\n").count());
    let mut present = Snapshot::default();
    text.iter().for_each(|t| present.apply(t));
    assert_eq!(vec![ip("192.0.2.10"), ip("192.0.2.20")], present.sources().collect::<Vec<_>>());
    assert_eq!(None, script(&tables[2], present.tables.get("nat"), false), "written once");
    let nothing = compile(&Desired::default(), Family::V4, false, &[]);
    assert!(script(&nothing[2], present.tables.get("nat"), false).is_some());
}
