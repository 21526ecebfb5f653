use super::*;
use crate::model::{Attachment, Container, Endpoint, IfName, Isolation, Network, TrafficIds, Way};

/// A store in a directory of its own, removed at the end.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        Self(std::env::temp_dir().join(format!("netpath-state-{}-{name}", std::process::id())))
    }

    fn store(&self) -> Store {
        Store::at(self.0.join("host"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn kept(id: &str, order: u64) -> StoredEndpoint {
    let name = |n: &str| n.parse().expect("a name");
    let network = Network {
        name: "front".into(),
        id: "a0".into(),
        attachment: Attachment::Bridge(name("podman7")),
        mtu: None,
        subnets: Vec::new(),
        routes: Vec::new(),
        internal: false,
        isolation: Isolation::Open,
        default_route: true,
        metric: 100,
        outbound4: None,
        outbound6: None,
        path: Way::Auto,
        direct: false,
        masquerade: true,
        xdp: Default::default(),
        dns: false,
        dns_servers: Vec::new(),
    };
    let endpoint = Endpoint {
        interface: name("eth0"),
        host_interface: None,
        addresses: Vec::new(),
        mac: None,
        aliases: Vec::new(),
        dns_servers: Vec::new(),
    };
    let container = Container { id: id.into(), name: "web".into() };
    let record = Record {
        order,
        container,
        netns: PathBuf::new(),
        network,
        endpoint,
        publishes: Vec::new(),
        allow: Vec::new(),
        traffic: TrafficIds::default(),
        links: None,
    };
    StoredEndpoint { record, phase: Phase::Up, writer: ProcessId::this_process() }
}

#[test]
fn records_come_back_in_their_order_and_the_last_takes_all_with_it() {
    let place = Place::new("order");
    let store = place.store();
    assert!(store.is_empty().expect("no directory yet") && store.all().expect("no directory yet").is_empty());
    let lock = store.lock(&|| false).expect("the lock");
    store.put(&lock, &kept("b", 1)).expect("written");
    store.put(&lock, &kept("../../a", 2)).expect("written");
    store.keep_rung(&lock, Rung::Iptables).expect("written");
    let ids: Vec<String> = store.all().expect("read").into_iter().map(|k| k.record.container.id).collect();
    assert_eq!(vec!["b", "../../a"], ids);
    assert_eq!(Some(kept("b", 1)), store.get(&kept("b", 1).key()).expect("read"));
    assert_eq!(Some(Rung::Iptables), store.rung().expect("read"));

    assert!(store.forget(&lock, &kept("b", 1).key()).expect("removed"));
    assert!(!store.forget(&lock, &kept("b", 1).key()).expect("nothing to remove"));
    store.close(lock).expect("closed with a record");
    assert_eq!(1, store.all().expect("read").len(), "a record keeps the directory");

    let lock = store.lock(&|| false).expect("the lock");
    store.forget(&lock, &kept("../../a", 2).key()).expect("removed");
    store.close(lock).expect("closed");
    assert!(!place.0.exists(), "something is left");
}

#[test]
fn a_damaged_record_stops_nobody_and_can_be_written_anew() {
    let place = Place::new("damaged");
    let store = place.store();
    let lock = store.lock(&|| false).expect("the lock");
    store.put(&lock, &kept("a", 1)).expect("written");
    store.put(&lock, &kept("b", 2)).expect("written");
    std::fs::write(store.file(&kept("a", 1).key()), b"{\"record\":").expect("damaged");
    assert_eq!(1, store.all().expect("read").len());
    assert_eq!(None, store.get(&kept("a", 1).key()).expect("read"));
    store.put(&lock, &kept("a", 3)).expect("written anew");
    assert_eq!(2, store.all().expect("read").len());
}

#[test]
fn who_waited_for_a_lock_that_was_removed_gets_a_new_one() {
    let place = Place::new("lock");
    let held = place.store().lock(&|| false).expect("the lock");
    let dir = place.0.clone();
    let waiting = std::thread::spawn(move || Store::at(dir.join("host")).lock(&|| false).map(drop));
    std::thread::sleep(std::time::Duration::from_millis(50));
    place.store().close(held).expect("closed");
    waiting.join().expect("no panic").expect("a lock on a new file");
}

#[test]
fn a_process_is_known_by_its_number_and_its_beginning() {
    let here = ProcessId::this_process();
    assert!(here.is_alive());
    assert!(!ProcessId { started: here.started + 1, ..here }.is_alive(), "another process of the same number");
}

/// What the version before this one wrote, which had no options of its own and no counters.
#[test]
fn records_of_the_version_before_can_be_read() {
    let mut value = serde_json::to_value(kept("a", 1)).expect("JSON");
    let record = value["record"].as_object_mut().expect("a record");
    for field in ["allow", "traffic"] {
        assert!(record.remove(field).is_some(), "{field}");
    }
    let network = record["network"].as_object_mut().expect("a network");
    for field in ["path", "direct", "masquerade"] {
        assert!(network.remove(field).is_some(), "{field}");
    }
    assert_eq!(kept("a", 1), serde_json::from_value::<StoredEndpoint>(value).expect("readable"));
}

/// As version 0.1 wrote it, before networks could be attached in other ways than by a bridge.
#[test]
fn a_record_of_version_0_1_is_read() {
    let old = r#"{"record":{"order":7,"container":{"id":"5d2f","name":"web"},"netns":"/run/netns/x",
        "network":{"name":"front","id":"a0","bridge":"podman7","mtu":1400,
            "subnets":[{"net":"10.89.7.0/24","gateway":"10.89.7.1"}],"routes":[],"internal":false,"isolation":"strict",
            "default_route":true,"metric":100,"outbound4":null,"outbound6":null,"path":"auto","direct":false,
            "masquerade":true,"xdp":"auto","dns":true,"dns_servers":[]},
        "endpoint":{"interface":"eth0","host_interface":null,"addresses":["10.89.7.5/24"],"mac":null,"aliases":[],
            "dns_servers":[]},
        "publishes":[],"allow":[],"traffic":{"own":1,"publishes":[]},
        "links":{"bridge_index":4,"bridge_mac":"0a:00:00:00:00:01","veth_index":6,"veth_name":"veth0",
            "container_mac":"0a:00:00:00:00:02","mtu":1400,"takes_xdp":false}},
        "phase":"up","writer":{"pid":12,"started":34}}"#;
    let kept: StoredEndpoint = serde_json::from_str(old).expect("a record");
    assert_eq!(Some("podman7"), kept.record.network.bridge().map(IfName::as_str));
    assert_eq!(Some(6), kept.record.bridged().map(|l| l.veth_index));
    let same = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    assert_eq!(same(old), same(&serde_json::to_string(&kept).expect("JSON")), "and written as it was");
}

#[test]
fn a_record_in_the_file_of_version_0_1_is_found_written_in_its_new_place_and_removed() {
    let place = Place::new("moved");
    let store = place.store();
    let lock = store.lock(&|| false).expect("the lock");
    let (kept, files) = (kept("a", 1), || std::fs::read_dir(&store.dir).expect("a directory").count());
    let old =
        || std::fs::write(store.old_file(&kept.key()), serde_json::to_vec(&kept).expect("JSON")).expect("written");
    let lock_alone = files();
    old();
    assert_eq!(Some(kept.clone()), store.get(&kept.key()).expect("read"));
    store.put(&lock, &kept).expect("written");
    assert_eq!((1, lock_alone + 1), (store.all().expect("read").len(), files()), "once");
    let second = Key { interface: "eth1".parse().expect("a name"), ..kept.key() };
    old();
    assert_eq!(None, store.get(&second).expect("read"), "another interface on the same network");
    assert!(!store.forget(&lock, &second).expect("nothing to remove"));
    assert!(store.forget(&lock, &kept.key()).expect("removed"));
    assert_eq!(lock_alone, files(), "both");
}
