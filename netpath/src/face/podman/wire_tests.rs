use super::*;
use proptest::prelude::*;
use serde_json::json;

/// Recorded from Podman 4.3.1; written from the Go structs of Podman 5.8; the worked example of Podman 6, with every field.
const REQUESTS: [&str; 3] = [
    include_str!("testdata/podman-4.3.json"),
    include_str!("testdata/podman-5.8.json"),
    include_str!("testdata/podman-6.json"),
];

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// Reads a document as `T` and writes it again without a change.
fn assert_unchanged<T: Serialize + serde::de::DeserializeOwned>(document: &Value) {
    let text = document.to_string();
    let read: T = serde_json::from_str(&text).expect("every document is read");
    // The parser does not read floats exactly, so both sides go through it.
    assert_eq!(json_of(&text), serde_json::to_value(read).expect("what was read is written"));
}

/// Calls `f` with each object of a document.
fn for_each_object(value: &mut Value, f: &mut impl FnMut(&mut Extra)) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(|v| for_each_object(v, f));
            f(map);
        }
        Value::Array(items) => items.iter_mut().for_each(|v| for_each_object(v, f)),
        _ => {}
    }
}

/// The names of the fields that their structs do not have.
fn unknown(request: &Request) -> Vec<&str> {
    let networks: Vec<&PerNetworkOptions> = match &request.networks {
        Field::Is(Networks::List(list)) => list.iter().filter_map(known).collect(),
        Field::Is(Networks::Map(map)) => map.values().filter_map(known).collect(),
        _ => Vec::new(),
    };
    let infos: Vec<&Network> = known(&request.network_info).iter().flat_map(|m| m.values()).filter_map(known).collect();
    let subnets = infos.iter().filter_map(|n| known(&n.subnets)).flatten().filter_map(known);
    let ranges = subnets.clone().filter_map(|s| known(&s.lease_range));
    let routes = infos.iter().filter_map(|n| known(&n.routes)).flatten().filter_map(known);
    let ports = known(&request.port_mappings).into_iter().flatten().filter_map(known);
    let extras = networks.iter().map(|n| &n.extra).chain(infos.iter().map(|n| &n.extra));
    let extras = extras.chain(subnets.map(|s| &s.extra)).chain(ranges.map(|r| &r.extra));
    let extras = extras.chain(routes.map(|r| &r.extra)).chain(ports.map(|p| &p.extra));
    extras.chain([&request.extra]).flat_map(|e| e.keys()).map(String::as_str).collect()
}

fn known<T, const REQUIRED: bool>(field: &Field<T, REQUIRED>) -> Option<&T> {
    if let Field::Is(value) = field { Some(value) } else { None }
}

#[test]
fn requests_of_every_podman_have_no_unknown_field_and_round_trip() {
    for (text, networks) in REQUESTS.iter().zip([2, 1, 2]) {
        let request: Request = serde_json::from_str(text).expect("a request");
        assert_eq!(Vec::<&str>::new(), unknown(&request), "every field is known");
        assert_unchanged::<Request>(&json_of(text));
        let attach = super::super::request::attach(text, &[]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(networks, attach.endpoints.len());
    }
}

#[test]
fn unknown_fields_are_kept_in_their_order() {
    for text in REQUESTS {
        let mut document = json_of(text);
        let mut objects = 0;
        for_each_object(&mut document, &mut |map| {
            map.insert("zone".into(), json!("7"));
            map.insert("area".into(), json!("8"));
            objects += 1;
        });
        // The keys of these maps are names of networks.
        for map in ["/networks", "/network_info"] {
            if let Some(map) = document.pointer_mut(map).and_then(Value::as_object_mut) {
                map.retain(|key, _| !["zone", "area"].contains(&key.as_str()));
            }
        }
        let request: Request = serde_json::from_str(&document.to_string()).expect("a request");
        let unknown = unknown(&request);
        assert!(objects > 8 && unknown.len() > 8, "{unknown:?}");
        assert!(unknown.chunks(2).all(|pair| pair == ["zone", "area"]), "{unknown:?}");
        assert_unchanged::<Request>(&document);
    }
}

#[test]
fn absent_fields_are_not_written() {
    let network = Network { name: Field::Is("lan".into()), internal: Field::Is(false), ..Network::default() };
    assert_eq!(r#"{"name":"lan","internal":false}"#, serde_json::to_string(&network).expect("JSON"));
}

#[test]
fn a_status_block_has_all_keys_and_keeps_unknown_ones() {
    let block = json!({"dns_search_domains": null, "dns_server_ips": ["192.0.2.1"], "lease": 7, "interfaces": {"eth0": {
        "mac_address": "0a:11:22:33:44:55", "vlan": "x", "subnets": [{"ipnet": "192.0.2.5/24", "gateway": null, "a": []}]}}});
    assert_unchanged::<StatusBlock>(&block);
    let empty = json!({"dns_search_domains": null, "dns_server_ips": null, "interfaces": null});
    assert_eq!(empty, serde_json::to_value(StatusBlock::default()).expect("JSON"));
}

/// Keys of the contract's objects, and random ones.
fn key() -> impl Strategy<Value = String> {
    let known = "container_id networks network_info port_mappings dns_servers name interface_name static_ips options \
                 subnets subnet gateway lease_range start_ip routes metric internal labels host_port range extra front";
    let known: Vec<String> = known.split(' ').chain([""]).map(str::to_owned).collect();
    prop_oneof![3 => prop::sample::select(known), 1 => "[a-z._]{1,6}"]
}

/// Any JSON, with keys of the contract at any place.
fn document() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<u16>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 96, 6, |inner| {
        let list = prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from);
        let object = prop::collection::vec((key(), inner), 0..7);
        prop_oneof![1 => list, 3 => object.prop_map(|o| Value::Object(o.into_iter().collect()))]
    })
}

proptest! {
    #[test]
    fn any_document_round_trips(document in document()) {
        assert_unchanged::<Required<Request>>(&document);
        assert_unchanged::<Required<Network>>(&document);
    }

    #[test]
    fn a_request_with_any_value_at_any_place_round_trips(
        which in 0..REQUESTS.len(), key in key(), value in document(), at in any::<prop::sample::Index>(),
    ) {
        let mut document = json_of(REQUESTS[which]);
        let (mut objects, mut seen) = (0, 0);
        for_each_object(&mut document, &mut |_| objects += 1);
        let chosen = at.index(objects);
        for_each_object(&mut document, &mut |map| {
            if seen == chosen {
                map.insert(key.clone(), value.clone());
            }
            seen += 1;
        });
        assert_unchanged::<Required<Request>>(&document);
    }
}
