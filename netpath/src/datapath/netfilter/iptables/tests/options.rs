//! Rules for netpath's own options.

use super::*;

#[test]
fn an_allow_list_checks_new_connections_to_published_ports() {
    let mut web = publishes(web(), &[(HostBind::Any, Proto::Tcp, 8080, 80, 1)]);
    web.allow = ["192.0.2.0/24", "198.51.100.7/32", "2001:db8::/32"].map(|n| n.parse().expect("a network")).to_vec();
    let forward = rules(std::slice::from_ref(&web), Family::V4, "NETPATH_FORWARD");
    assert_eq!("-m conntrack --ctstate NEW -m conntrack --ctstate DNAT -j NETPATH_ALLOW", forward[0], "the first rule");
    assert_eq!(
        vec![
            "-s 192.0.2.0/24 -d 10.89.7.5/32 -j RETURN",
            "-s 198.51.100.7/32 -d 10.89.7.5/32 -j RETURN",
            "-d 10.89.7.5/32 -j DROP"
        ],
        rules(std::slice::from_ref(&web), Family::V4, "NETPATH_ALLOW")
    );
    web.allow = vec!["2001:db8::/32".parse().expect("a network")];
    let allow = rules(std::slice::from_ref(&web), Family::V4, "NETPATH_ALLOW");
    assert_eq!(vec!["-d 10.89.7.5/32 -j DROP"], allow, "no network in this family: no client is allowed");
    web.allow = Vec::new();
    assert!(rules(&[web], Family::V4, "NETPATH_ALLOW").is_empty());
}

#[test]
fn the_allow_list_of_a_port_matches_the_original_port() {
    let some = |n: &str| Some(vec![n.parse().expect("a network")]);
    let mut web = publishes(
        web(),
        &[
            (HostBind::Any, Proto::Tcp, 8080, 80, 1),
            (HostBind::Any, Proto::Tcp, 8081, 80, 1),
            (HostBind::Any, Proto::Udp, 20_000, 30_000, 100),
        ],
    );
    web.publishes[0].allow = some("192.0.2.0/24");
    web.publishes[2].allow = some("2001:db8::/32");
    let own = [
        "-s 192.0.2.0/24 -d 10.89.7.5/32 -p tcp -m conntrack --ctorigdstport 8080 -j RETURN",
        "-d 10.89.7.5/32 -p tcp -m conntrack --ctorigdstport 8080 -j DROP",
        "-d 10.89.7.5/32 -p udp -m conntrack --ctorigdstport 20000:20099 -j DROP",
    ];
    assert_eq!(own.as_slice(), rules(std::slice::from_ref(&web), Family::V4, "NETPATH_ALLOW"), "other ports are open");
    web.allow = some("198.51.100.7/32").unwrap_or_default();
    let all = ["-s 198.51.100.7/32 -d 10.89.7.5/32 -j RETURN", "-d 10.89.7.5/32 -j DROP"];
    assert_eq!([own.as_slice(), &all].concat(), rules(&[web], Family::V4, "NETPATH_ALLOW"));
}

#[test]
fn a_network_is_closed_to_the_outside_unless_it_is_direct() {
    let last = |r: &Record, chain| rules(std::slice::from_ref(r), Family::V4, chain).pop().expect("a rule");
    let mut front = web();
    let gates = ["-d 10.89.7.0/24 ! -i front -j NETPATH_DIRECT", "-i front ! -s 10.89.7.0/24 -j NETPATH_SOURCE"];
    assert_eq!(gates.as_slice(), rules(std::slice::from_ref(&front), Family::V4, "NETPATH_PREROUTING"));
    assert_eq!("-s 10.89.7.0/24 -i front -j ACCEPT", last(&front, "NETPATH_FORWARD_ACCEPT"));
    front.network.direct = true;
    assert!(rules(std::slice::from_ref(&front), Family::V4, "NETPATH_DIRECT").is_empty());
    assert_eq!("-o front -j ACCEPT", last(&front, "NETPATH_FORWARD_ACCEPT"));
}

#[test]
fn without_masquerade_containers_keep_their_addresses() {
    let mut front = web();
    let leaves = |r: &Record| {
        let all = rules(std::slice::from_ref(r), Family::V4, "NETPATH_POSTROUTING");
        all.iter().any(|rule| rule == "-s 10.89.7.0/24 ! -d 224.0.0.0/4 -j MASQUERADE")
    };
    assert!(leaves(&front));
    front.network.masquerade = false;
    assert!(!leaves(&front));
}

fn moved_sctp(records: &[Record], family: Family) -> [Table; 3] {
    print::tables(&policy::compile_moved_sctp(&Desired { records: records.to_vec() }, family, true))
}

fn moved_rules(records: &[Record], family: Family, chain: &str) -> Vec<String> {
    let compiled = moved_sctp(records, family);
    let chains = compiled.into_iter().flat_map(|t| t.chains);
    chains.filter(|c| c.name == chain).flat_map(|c| c.rules).collect()
}

#[test]
fn moved_sctp_has_rules_for_shifted_sctp_ports_only() {
    let mut web = publishes(
        web(),
        &[
            (HostBind::Any, Proto::Tcp, 8080, 80, 1),
            (HostBind::Any, Proto::Sctp, 5000, 5000, 1),
            (HostBind::Any, Proto::Sctp, 6000, 5000, 10),
        ],
    );
    let mut other = record(2, "other", &["10.89.8.6/24"]);
    other.network.internal = true;
    let both = [web.clone(), other];
    let of = |chain| moved_rules(&both, Family::V4, chain);
    assert_eq!(
        vec!["-p sctp -m sctp --dport 6000:6009 -j DNAT --to-destination 10.89.7.5:5000-5009/6000"],
        of("NETPATH_SCTP")
    );
    assert_eq!(vec!["-p sctp -j NETPATH_SCTP"], of("NETPATH_DNAT"));
    assert_eq!(
        vec!["-i other -j RETURN", "-d 127.0.0.0/8 -j RETURN", "-j NETPATH_DNAT"],
        of("NETPATH_PREROUTING"),
        "containers of internal networks do not reach published ports"
    );
    assert_eq!(
        vec![
            "-o lo -j RETURN",
            "-s 127.0.0.0/8 -o front -j MASQUERADE",
            "-s 10.89.7.0/24 -m conntrack --ctstate DNAT -j NETPATH_HAIRPIN",
            "-s 10.89.8.0/24 -m conntrack --ctstate DNAT -j NETPATH_HAIRPIN",
        ],
        of("NETPATH_POSTROUTING"),
        "programs masquerade connections of containers"
    );
    assert_eq!(2, of("NETPATH_INPUT").len(), "loopback addresses from the bridge are dropped");
    assert!(of("NETPATH_FORWARD").is_empty() && of("NETPATH_ALLOW").is_empty());

    web.allow = vec!["192.0.2.0/24".parse().expect("a network"), "2001:db8::/32".parse().expect("a network")];
    let to = "-j DNAT --to-destination 10.89.7.5:5000-5009/6000";
    assert_eq!(
        vec![
            format!("-p sctp -m sctp --dport 6000:6009 -m addrtype --src-type LOCAL {to}"),
            format!("-s 192.0.2.0/24 -p sctp -m sctp --dport 6000:6009 {to}"),
            "-p sctp -m sctp --dport 6000:6009 -j RETURN".to_owned(),
        ],
        moved_rules(std::slice::from_ref(&web), Family::V4, "NETPATH_SCTP")
    );
    web.publishes.truncate(2);
    let nothing = moved_sctp(&[web], Family::V4);
    assert!(nothing.iter().all(|t| t.chains.is_empty()), "no shifted SCTP port: no rules");
}
