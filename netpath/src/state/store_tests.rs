use super::*;
use crate::model::{Container, IfName, Record, fixtures};
use crate::state::{Phase, ProcessId};

/// The directory of one test, removed at the end.
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

fn stored(id: &str, order: u64) -> StoredEndpoint {
    let container = Container { id: id.into(), name: "web".into() };
    let record = Record { container, ..fixtures::plain(order, "front", "podman7", &[]) };
    StoredEndpoint { record, phase: Phase::Up, writer: ProcessId::this_process() }
}

#[test]
fn records_come_back_in_their_order_and_the_last_takes_all_with_it() {
    let place = Place::new("order");
    let store = place.store();
    assert!(store.is_empty().expect("no directory yet") && store.all().expect("no directory yet").is_empty());
    let lock = store.lock(&|| false).expect("the lock");
    store.put(&lock, &stored("b", 1)).expect("written");
    store.put(&lock, &stored("../../a", 2)).expect("written");
    store.keep_rung(&lock, Rung::Iptables).expect("written");
    let ids: Vec<String> = store.all().expect("read").into_iter().map(|k| k.record.container.id).collect();
    assert_eq!(vec!["b", "../../a"], ids);
    assert_eq!(Some(stored("b", 1)), store.get(&stored("b", 1).key()).expect("read"));
    assert_eq!(Some(Rung::Iptables), store.rung().expect("read"));

    assert!(store.forget(&lock, &stored("b", 1).key()).expect("removed"));
    assert!(!store.forget(&lock, &stored("b", 1).key()).expect("nothing to remove"));
    store.close(lock).expect("closed with a record");
    assert_eq!(1, store.all().expect("read").len(), "a record keeps the directory");
    assert_eq!(Some(Rung::Iptables), store.rung().expect("read"), "and everything in it");

    let lock = store.lock(&|| false).expect("the lock");
    store.forget(&lock, &stored("../../a", 2).key()).expect("removed");
    store.close(lock).expect("closed");
    assert!(!place.0.exists(), "something is left");
}

#[test]
fn every_file_that_the_store_writes_goes_with_the_last_record() {
    let place = Place::new("files");
    let store = place.store();
    let lock = store.lock(&|| false).expect("the lock");
    store.put(&lock, &stored("a", 1)).expect("written");
    store.keep_rung(&lock, Rung::Iptables).expect("written");
    store.reject_rung(&lock, Rung::Ebpf, "no bpf".into()).expect("written");
    let sysctl = SavedSysctl { before: "0".into(), written: "1".into() };
    store.keep_sysctls(&lock, &BTreeMap::from([("net/ipv4/ip_forward".to_owned(), sysctl)])).expect("written");
    store.keep_generation_cache(&lock, Some(&1)).expect("written");
    store.keep_netfilter(&lock, true).expect("written");
    store.keep_expiry(&lock, &1);
    store.keep_served(&lock, Some(1)).expect("written");
    let added = BTreeSet::from(["10.89.7.0/24".parse().expect("a subnet")]);
    store.keep_trusted(&lock, &Trusted { added, ..Trusted::default() }).expect("written");
    store.forget(&lock, &stored("a", 1).key()).expect("removed");
    store.close(lock).expect("closed");
    assert!(!place.0.exists(), "something is left");
}

#[test]
fn a_damaged_record_affects_no_other_and_can_be_replaced() {
    let place = Place::new("damaged");
    let store = place.store();
    let lock = store.lock(&|| false).expect("the lock");
    store.put(&lock, &stored("a", 1)).expect("written");
    store.put(&lock, &stored("b", 2)).expect("written");
    std::fs::write(store.file(&stored("a", 1).key()), b"{\"schema\":1,\"record\":").expect("damaged");
    assert_eq!(1, store.all().expect("read").len());
    assert_eq!(None, store.get(&stored("a", 1).key()).expect("read"));
    store.put(&lock, &stored("a", 3)).expect("written anew");
    assert_eq!(2, store.all().expect("read").len());
}

#[test]
fn a_damaged_record_of_a_host_that_is_gone_keeps_no_directory() {
    let place = Place::new("gone");
    let store = place.store();
    let lock = store.lock(&|| false).expect("the lock");
    store.put(&lock, &stored("a", 1)).expect("written");
    std::fs::write(store.file(&stored("b", 2).key()), b"").expect("damaged");
    store.forget_all(&lock).expect("removed");
    store.close(lock).expect("closed");
    assert!(!place.0.exists(), "something is left");
}

#[test]
fn a_process_that_waits_for_a_lock_that_is_removed_gets_a_new_one() {
    let place = Place::new("lock");
    let held = place.store().lock(&|| false).expect("the lock");
    let dir = place.0.clone();
    let waiting = std::thread::spawn(move || Store::at(dir.join("host")).lock(&|| false).map(drop));
    std::thread::sleep(std::time::Duration::from_millis(50));
    place.store().close(held).expect("closed");
    waiting.join().expect("no panic").expect("a lock on a new file");
}

/// As version 0.1 wrote it: without a schema, with other names of phases, and with a bridge as the only attachment.
const OF_0_1: &str = r#"{"record":{"order":7,"container":{"id":"5d2f","name":"web"},"netns":"/run/netns/x",
    "network":{"name":"front","id":"a0","bridge":"podman7","mtu":1400,
        "subnets":[{"net":"10.89.7.0/24","gateway":"10.89.7.1"}],"routes":[],"internal":false,"isolation":"strict",
        "default_route":true,"metric":100,"outbound4":null,"outbound6":null,"path":"auto","direct":false,
        "masquerade":true,"xdp":"auto","dns":true,"dns_servers":[]},
    "endpoint":{"interface":"eth0","host_interface":null,"addresses":["10.89.7.5/24"],"mac":null,"aliases":[],
        "dns_servers":[]},
    "publishes":[],"allow":[],"traffic":{"own":1,"publishes":[]},
    "links":{"bridge_index":4,"bridge_mac":"0a:00:00:00:00:01","veth_index":6,"veth_name":"veth0",
        "container_mac":"0a:00:00:00:00:02","mtu":1400,"takes_xdp":false}},
    "phase":"going","writer":{"pid":12,"started":34}}"#;

#[test]
fn a_record_of_version_0_1_is_migrated_when_it_is_read_and_written_with_a_schema() {
    let place = Place::new("old");
    let store = place.store();
    let lock = store.lock(&|| false).expect("the lock");
    let key = Key { container: "5d2f".into(), network: "front".into(), interface: "eth0".parse().expect("a name") };
    std::fs::write(store.old_file(&key), OF_0_1).expect("written");
    let stored = store.get(&key).expect("read").expect("a record");
    assert_eq!(vec![stored.clone()], store.all().expect("read"));
    assert_eq!(Some("podman7"), stored.record.network.bridge().map(IfName::as_str));
    assert_eq!(Some(6), stored.record.bridged().map(|l| l.veth_index));
    assert_eq!(Phase::Removing, stored.phase);

    store.put(&lock, &stored).expect("written");
    assert!(!store.old_file(&key).exists(), "it has its new name");
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).expect("JSON");
    let mut expected = json(OF_0_1);
    expected["schema"] = 1.into();
    expected["phase"] = "removing".into();
    assert_eq!(
        expected,
        json(&std::fs::read_to_string(store.file(&key)).expect("a file")),
        "and is otherwise as it was"
    );
    assert_eq!(Some(stored), store.get(&key).expect("read"));
}

/// Before 0.1 there were no options of netpath's own and no counters.
#[test]
fn a_record_without_the_fields_of_0_1_is_read() {
    let mut value = serde_json::to_value(stored("a", 1)).expect("JSON");
    let record = value["record"].as_object_mut().expect("a record");
    for field in ["allow", "traffic"] {
        assert!(record.remove(field).is_some(), "{field}");
    }
    let network = record["network"].as_object_mut().expect("a network");
    for field in ["path", "direct", "masquerade"] {
        assert!(network.remove(field).is_some(), "{field}");
    }
    assert_eq!(stored("a", 1), serde_json::from_value::<StoredEndpoint>(value).expect("readable"));
}

#[test]
fn a_record_with_the_path_edge_is_read_as_one_with_kernel() {
    let mut value = serde_json::to_value(stored("a", 1)).expect("JSON");
    value["record"]["network"]["path"] = "edge".into();
    let read = serde_json::from_value::<StoredEndpoint>(value).expect("readable");
    assert_eq!(crate::model::TranslationPath::Kernel, read.record.network.path);
}

#[test]
fn a_record_of_a_later_version_is_refused_and_kept() {
    let place = Place::new("newer");
    let store = place.store();
    let lock = store.lock(&|| false).expect("the lock");
    store.put(&lock, &stored("a", 1)).expect("written");
    let key = stored("b", 2).key();
    // Its form is unknown: only `schema` is as today.
    let newer = r#"{"schema":2,"endpoint":{"name":"b"}}"#;
    std::fs::write(store.file(&key), newer).expect("written");

    for refused in [
        store.all().map(drop),
        store.desired().map(drop),
        store.get(&key).map(drop),
        store.put(&lock, &stored("b", 2)),
        store.forget(&lock, &key).map(drop),
        store.forget_all(&lock),
    ] {
        let refused = refused.expect_err("refused");
        let text = refused.to_string();
        assert!(text.contains(&store.file(&key).display().to_string()), "no file in {text}");
        assert!(text.contains("schema 2") && text.contains(env!("CARGO_PKG_VERSION")), "no version in {text}");
        assert!(refused.next_step().is_some_and(|next| next.contains("install the later version")), "no next step");
    }
    assert!(!store.is_empty().expect("read"), "it counts as absent");
    assert!(store.get(&stored("a", 1).key()).expect("read").is_some(), "forget_all has removed another one");
    store.forget(&lock, &stored("a", 1).key()).expect("removed");
    store.close(lock).expect("closed");
    assert_eq!(newer, std::fs::read_to_string(store.file(&key)).expect("it is still there"));
}

#[test]
fn a_record_in_the_file_of_version_0_1_gets_its_new_name_or_is_removed() {
    let place = Place::new("moved");
    let store = place.store();
    let lock = store.lock(&|| false).expect("the lock");
    let (stored, files) = (stored("a", 1), || std::fs::read_dir(&store.dir).expect("a directory").count());
    let old =
        || std::fs::write(store.old_file(&stored.key()), serde_json::to_vec(&stored).expect("JSON")).expect("written");
    let lock_alone = files();
    old();
    assert_eq!(Some(stored.clone()), store.get(&stored.key()).expect("read"));
    store.put(&lock, &stored).expect("written");
    assert_eq!((1, lock_alone + 1), (store.all().expect("read").len(), files()), "once");
    let second = Key { interface: "eth1".parse().expect("a name"), ..stored.key() };
    old();
    assert_eq!(None, store.get(&second).expect("read"), "another interface on the same network");
    assert!(!store.forget(&lock, &second).expect("nothing to remove"));
    assert!(store.forget(&lock, &stored.key()).expect("removed"));
    assert_eq!(lock_alone, files(), "both");
}
