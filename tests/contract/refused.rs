//! Wrong input is refused before anything is changed, with an error that names the field.

use anyhow::Result;
use netpath_common::layout::RULE_CHAIN;
use serde_json::{Value, json};
use support::example::worked_example;
use support::need;
use support::netavark::{Document, Netavark, Network, Rung, Shape};
use support::residue::{Residue, Snapshot};
use support::topology::Topology;
use support::traffic::{ANY, Dial, Proto, Server};

/// A pointer into the worked example (array shape), its new value (`REMOVE` deletes the key), and the words of the error.
type Row = (&'static str, Value, &'static [&'static str]);
const REMOVE: &str = "\u{0}remove";

fn rows() -> Vec<Row> {
    vec![
        ("/container_id", json!(REMOVE), &["container_id"]),
        ("/container_id", json!(7), &["container_id"]),
        ("/container_name", json!(REMOVE), &["container_name"]),
        ("/networks", json!(REMOVE), &["networks"]),
        ("/networks", json!("front"), &["networks"]),
        ("/networks/0/name", json!(REMOVE), &["name"]),
        ("/networks/0/name", json!("elsewhere"), &["elsewhere"]),
        ("/networks/1/name", json!("front"), &["front"]),
        ("/networks/0/interface_name", json!(REMOVE), &["interface_name"]),
        ("/networks/0/interface_name", json!(""), &["interface_name"]),
        ("/networks/0/interface_name", json!("a/b"), &["interface_name", "a/b"]),
        ("/networks/0/interface_name", json!("sixteen-bytes-xx"), &["interface_name"]),
        ("/networks/0/interface_name", json!("lo"), &["lo"]),
        ("/networks/1/interface_name", json!("eth0"), &["interface_name", "eth0"]),
        ("/networks/0/static_ips", json!(REMOVE), &["static"]),
        ("/networks/0/static_ips", json!("10.89.7.5"), &["static_ips"]),
        ("/networks/0/static_ips/1", json!("10.89.0.300"), &["static_ips", "10.89.0.300"]),
        ("/networks/0/static_ips/0", json!("10.99.7.5"), &["static"]),
        ("/networks/0/static_mac", json!("0a:11:22:33:44"), &["static_mac"]),
        ("/networks/0/static_mac", json!("01:00:5e:00:00:01"), &["static_mac"]),
        ("/networks/0/aliases", json!("www"), &["aliases"]),
        ("/networks/0/options/host_interface_name", json!("a b"), &["host_interface_name"]),
        ("/network_info", json!(REMOVE), &["network_info"]),
        ("/network_info/front", json!(REMOVE), &["network_info", "front"]),
        ("/network_info/front/id", json!(REMOVE), &["id"]),
        ("/network_info/front/driver", json!(REMOVE), &["driver"]),
        ("/network_info/front/driver", json!("warp"), &["driver", "warp"]),
        ("/network_info/front/internal", json!(REMOVE), &["internal"]),
        ("/network_info/front/internal", json!("no"), &["internal"]),
        ("/network_info/front/ipv6_enabled", json!(REMOVE), &["ipv6_enabled"]),
        ("/network_info/front/dns_enabled", json!(REMOVE), &["dns_enabled"]),
        ("/network_info/front/network_interface", json!("much-too-long-a-name"), &["network_interface"]),
        ("/network_info/front/network_interface", json!("eth0"), &["eth0"]),
        ("/network_info/front/subnets/0/subnet", json!(REMOVE), &["subnet"]),
        ("/network_info/front/subnets/0/subnet", json!("10.89.7.0/33"), &["subnet", "10.89.7.0/33"]),
        ("/network_info/front/subnets/0/gateway", json!("10.89.7.1111"), &["gateway"]),
        ("/network_info/front/subnets/0/gateway", json!("10.99.7.1"), &["gateway"]),
        ("/network_info/front/subnets/1/subnet", json!("10.89.7.0/25"), &["subnet"]),
        ("/network_info/front/options/mtu", json!("90000"), &["mtu", "90000"]),
        ("/network_info/front/options/mtu", json!("many"), &["mtu"]),
        ("/network_info/front/options/isolate", json!("perhaps"), &["isolate", "perhaps"]),
        ("/network_info/front/options/metric", json!("-1"), &["metric"]),
        ("/network_info/front/options/no_default_route", json!("si"), &["no_default_route"]),
        ("/network_info/front/options/outbound_addr4", json!("fd41::1"), &["outbound_addr4"]),
        ("/network_info/front/options/netpath.path", json!("shortest"), &["netpath.path", "shortest"]),
        ("/network_info/front/options/netpath.direct", json!("perhaps"), &["netpath.direct", "perhaps"]),
        ("/network_info/front/options/netpath.masquerade", json!("off"), &["netpath.masquerade", "off"]),
        ("/network_info/front/options/netpath.allow", json!("192.0.2.0/24,all"), &["netpath.allow", "all"]),
        ("/network_info/front/options/netpath.speed", json!("high"), &["netpath.speed"]),
        ("/network_info/front/labels", json!({"netpath.path": "x"}), &["labels", "netpath.path"]),
        ("/network_info/front/labels", json!({"netpath.speed": "high"}), &["labels", "netpath.speed"]),
        ("/networks/0/options/netpath.direct", json!("true"), &["netpath.direct"]),
        ("/network_info/front/routes/0/destination", json!("172.20.0.0"), &["destination"]),
        ("/network_info/front/routes/0/gateway", json!("fd41:7::9"), &["gateway"]),
        ("/network_info/front/routes/0/gateway", json!(REMOVE), &["gateway"]),
        ("/network_info/front/routes/0/route_type", json!("scenic"), &["route_type"]),
        ("/network_info/front/routes/0/route_type", json!("blackhole"), &["gateway"]),
        ("/network_info/front/ipam_options/driver", json!("oracle"), &["ipam", "oracle"]),
        ("/port_mappings/0/host_ip", json!("300.0.0.1"), &["host_ip"]),
        ("/port_mappings/0/host_ip", json!(REMOVE), &["host_ip"]),
        ("/port_mappings/0/host_port", json!(REMOVE), &["host_port"]),
        ("/port_mappings/0/host_port", json!(0), &["host_port"]),
        ("/port_mappings/0/host_port", json!(65_536), &["host_port"]),
        ("/port_mappings/0/container_port", json!(-1), &["container_port"]),
        ("/port_mappings/1/range", json!(60_000), &["range"]),
        ("/port_mappings/0/protocol", json!("icmp"), &["protocol", "icmp"]),
        ("/port_mappings/0/protocol", json!(REMOVE), &["protocol"]),
        ("/dns_servers/0", json!("nine"), &["dns_servers"]),
    ]
}

fn change(document: &mut Value, pointer: &str, new: &Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap_or(("", pointer));
    let Some(parent) = document.pointer_mut(parent) else { panic!("no {parent} in the worked example") };
    match parent {
        Value::Object(object) if new == REMOVE => drop(object.remove(key)),
        Value::Object(object) => drop(object.insert(key.to_owned(), new.clone())),
        Value::Array(array) => array[key.parse::<usize>().unwrap_or(usize::MAX)] = new.clone(),
        other => panic!("{pointer}: {other} has no members"),
    }
}

#[test]
fn each_bad_field_is_named_and_nothing_is_changed() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    let mut wrong = Vec::new();
    for (pointer, new, named) in rows() {
        let mut document = worked_example(Shape::Array, &shop.id);
        change(&mut document, pointer, &new);
        let answer = netavark.try_setup(&shop, &document)?;
        match answer.error() {
            Err(e) => {
                wrong.push(format!("{pointer} = {new}: {e:#}"));
                netavark.try_teardown(&shop, &document)?;
            }
            Ok(text) => {
                let missing: Vec<&&str> = named.iter().filter(|word| !text.contains(**word)).collect();
                if !missing.is_empty() {
                    wrong.push(format!("{pointer} = {new}: the error does not name {missing:?}: {text}"));
                }
                // A temporary link counts too: it would consume an interface index.
                if let Err(e) = residue.nothing_left(&topology, &[&shop]) {
                    wrong.push(format!("{pointer} = {new}: {e:#}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows().len(), wrong.join("\n"));
    Ok(())
}

#[test]
fn invalid_json_is_refused() -> Result<()> {
    need!(need::root());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    let path = shop.path().to_string_lossy().into_owned();
    let whole = worked_example(Shape::Map, &shop.id).to_string();
    for input in ["{", "null", "[]", "\u{feff}{}", "{}", &whole[..whole.len() / 2]] {
        for verb in ["setup", "teardown"] {
            netavark.call(&[verb, &path], input.as_bytes())?.error()?;
        }
    }
    for bytes in [&b"\xff\xfe\x00"[..], &[0; 100_000]] {
        netavark.call(&["setup", &path], bytes)?.error()?;
    }
    residue.nothing_left(&topology, &[&shop])
}

/// Unknown fields come from a newer Podman.
#[test]
fn unknown_fields_are_ignored() -> Result<()> {
    need!(need::root(), need::netpath());
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::with(&topology, &[])?;
    let shop = topology.container("shop")?;
    let mut document = worked_example(Shape::Array, &shop.id);
    document["network_info"]["front"]["dns_enabled"] = false.into();
    for pointer in ["", "/networks/0", "/network_info/front", "/network_info/front/subnets/0", "/port_mappings/0"] {
        change(&mut document, &format!("{pointer}/of_tomorrow"), &json!({"a": [1]}));
    }
    change(&mut document, "/network_info/front/ipam_options/of_tomorrow", &json!("x"));
    netavark.try_setup(&shop, &document)?.json()?;
    netavark.try_teardown(&shop, &document)?.done()?;
    residue.nothing_left(&topology, &[&shop])
}

/// The programs walk a bounded number of rules per port: a rule beyond it would never match and is refused.
#[test]
fn a_port_on_more_addresses_than_the_programs_look_at_is_refused() -> Result<()> {
    need!(need::root(), need::netpath(), need::rung(Rung::best_hooks()));
    let topology = Topology::new()?;
    let residue = Residue::watch(&topology)?;
    let netavark = Netavark::on(&topology, Rung::best_hooks())?;
    let (web, late) = (topology.container("web")?, topology.container("late")?);
    let on = |host: u8| Document::new().on_dual(&Network::dual(7), "eth0", 7, host);
    let publish = |document: Document, n: u32| document.publish(&format!("127.0.0.{n}"), 8000, 80, "tcp");
    let many = (1..RULE_CHAIN).fold(on(5), publish);
    netavark.setup(&web, &many)?;
    let last = publish(on(6), RULE_CHAIN);
    let one_more = publish(publish(on(6), RULE_CHAIN), RULE_CHAIN + 1);
    let before = Snapshot::take(&topology, &[&web, &late])?;
    let error = netavark.try_setup(&late, &one_more.json(&late))?.error()?;
    for word in ["8000/tcp", "16 addresses", "nothing was changed"] {
        assert!(error.contains(word), "{word} is not in {error}");
    }
    assert_eq!(Vec::<String>::new(), before.difference(&Snapshot::take(&topology, &[&web, &late])?));
    netavark.setup(&late, &last)?;
    let _server = Server::echo(&late, Proto::Tcp, ANY, 80, "late")?;
    let address = format!("127.0.0.{RULE_CHAIN}").parse()?;
    assert_eq!("late", Dial::new(Proto::Tcp, address, 8000).ask(&topology.host)?.server, "the last in the walk");
    netavark.teardown(&late, &last)?;
    netavark.teardown(&web, &many)?;
    residue.nothing_left(&topology, &[&web, &late])
}
