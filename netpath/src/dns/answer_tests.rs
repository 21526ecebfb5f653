//! What clients are told, as hickory-proto reads it.

use super::*;
use crate::dns::files::Files;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use std::collections::BTreeSet;
use std::path::PathBuf;

/// Three networks: web is on front and back, db on back, which is internal, and other on one of which web knows nothing.
const FRONT: &str = "10.89.7.1,fd41:7::1 192.0.2.53 ttl=7\n\
    aaaaaaaaaaaa1111 10.89.7.2 fd41:7::2 Web,www,aaaaaaaaaaaa\n\
    bbbbbbbbbbbb1111 10.89.7.3  app,pool,bbbbbbbbbbbb 192.0.2.99\n\
    cccccccccccc1111 10.89.7.4,10.89.7.14  cache,pool,pool\n";
const BACK: &str = "10.89.8.1\n\
    aaaaaaaaaaaa1111 10.89.8.2  web,aaaaaaaaaaaa\n\
    dddddddddddd1111 10.89.8.3  db\n";
const OTHER: &str = "10.89.9.1\neeeeeeeeeeee1111 10.89.9.2  other,web\n";

struct Place(PathBuf);

impl Place {
    fn new(name: &str, files: &[(&str, &str)]) -> Self {
        let dir = std::env::temp_dir().join(format!("netpath-answer-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        for (name, text) in files {
            std::fs::write(dir.join(name), text).expect("a file");
        }
        Self(dir)
    }

    fn table(&self) -> Table {
        Files::new(&self.0).read().expect("a table")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn three(name: &str) -> Place {
    Place::new(name, &[("front", FRONT), ("back%int", BACK), ("Other", OTHER)])
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(Name::from_ascii(name).expect("a name"), kind));
    message
}

enum Told {
    Message(Message),
    Forward(Option<Vec<String>>),
}

fn told(table: &Table, message: &Message, client: &str, listener: &str) -> Told {
    let bytes = message.to_vec().expect("a message");
    let parsed = Query::parse(&bytes).expect("a query");
    let address = |a: &str| a.parse().expect("an address");
    let client = Client { address: address(client), listener: address(listener), limit: parsed.udp_limit() };
    let settings = Settings { knows_host: true, ..Settings::new(".dns.podman", true) };
    let mut out = b"before".to_vec();
    match answer(table, &settings, &parsed, client, &mut Scratch::default(), &mut out) {
        Decision::Forward(to) => {
            assert_eq!(b"before", &out[..], "nothing is written");
            Told::Forward(to.map(|u| u.list().iter().map(|s| s.ip().to_string()).collect()))
        }
        Decision::Answered(_) => {
            assert!(out.len() - 6 <= client.limit);
            let answer = Message::from_vec(&out[6..]).expect("an answer");
            assert_eq!((message.metadata.id, &message.queries), (answer.metadata.id, &answer.queries));
            assert_eq!(MessageType::Response, answer.metadata.message_type);
            Told::Message(answer)
        }
    }
}

fn message(table: &Table, name: &str, kind: RecordType, client: &str, listener: &str) -> Message {
    match told(table, &query(name, kind), client, listener) {
        Told::Message(message) => message,
        Told::Forward(_) => panic!("{name} is forwarded"),
    }
}

fn addresses(answer: &Message) -> BTreeSet<String> {
    let text = |data: &RData| match data {
        RData::A(a) => a.0.to_string(),
        RData::AAAA(a) => a.0.to_string(),
        RData::PTR(name) => name.0.to_string(),
        other => panic!("{other}"),
    };
    answer.answers.iter().map(|r| text(&r.data)).collect()
}

fn set<const N: usize>(items: [&str; N]) -> BTreeSet<String> {
    items.into_iter().map(str::to_owned).collect()
}

#[test]
fn a_client_sees_the_names_of_its_networks_whichever_gateway_it_asks() {
    let place = three("union");
    let table = place.table();
    for name in
        ["web.", "WWW.", "www.dns.podman.", "Web.DNS.Podman.", "aaaaaaaaaaaa.", "web.front.", "web.front.dns.podman."]
    {
        let answer = message(&table, name, RecordType::A, "10.89.7.3", "10.89.7.1");
        assert_eq!(
            (ResponseCode::NoError, set(["10.89.7.2"])),
            (answer.metadata.response_code, addresses(&answer)),
            "{name}"
        );
        assert_eq!(7, answer.answers[0].ttl, "as the network says");
        assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    }
    for gateway in ["10.89.7.1", "10.89.8.1", "fd41:7::1"] {
        for client in ["10.89.7.2", "10.89.8.2", "fd41:7::2"] {
            let answer = |name| addresses(&message(&table, name, RecordType::A, client, gateway));
            assert_eq!(set(["10.89.8.3"]), answer("db."), "{client} at {gateway}");
            assert_eq!(set(["10.89.7.3"]), answer("app."), "{client} at {gateway}");
            assert_eq!(set(["10.89.7.2", "10.89.8.2"]), answer("web."), "{client} at {gateway}");
            assert_eq!(set(["10.89.8.2"]), answer("web.back."), "{client} at {gateway}");
        }
    }
    let aaaa = message(&table, "web.", RecordType::AAAA, "10.89.7.3", "10.89.7.1");
    assert_eq!(set(["fd41:7::2"]), addresses(&aaaa));
}

#[test]
fn names_of_other_networks_are_not_known() {
    let place = three("others");
    let table = place.table();
    for name in ["db.", "other.", "web.other.", "web.back."] {
        assert!(
            matches!(told(&table, &query(name, RecordType::A), "10.89.7.3", "10.89.7.1"), Told::Forward(_)),
            "{name}"
        );
    }
    let answer = message(&table, "db.dns.podman.", RecordType::A, "10.89.7.3", "10.89.7.1");
    assert_eq!(ResponseCode::NXDomain, answer.metadata.response_code);
    // Whatever gateway it asks, a container is shown its own networks.
    let through_another = message(&table, "web.", RecordType::A, "10.89.9.2", "10.89.7.1");
    assert_eq!(set(["10.89.9.2"]), addresses(&through_another));
}

#[test]
fn a_client_that_is_no_container_sees_the_network_that_it_asks() {
    let place = three("host");
    let table = place.table();
    assert_eq!(set(["10.89.7.2"]), addresses(&message(&table, "web.", RecordType::A, "192.0.2.7", "10.89.7.1")));
    assert_eq!(set(["10.89.9.2"]), addresses(&message(&table, "web.other.", RecordType::A, "192.0.2.7", "10.89.9.1")));
    let nowhere = message(&table, "web.", RecordType::A, "192.0.2.7", "10.89.99.1");
    assert_eq!(ResponseCode::Refused, nowhere.metadata.response_code);
}

#[test]
fn a_known_name_without_data_of_the_type_is_answered_with_a_soa() {
    let place = three("nodata");
    let table = place.table();
    for (name, kind) in [
        ("app.", RecordType::AAAA),
        ("app.dns.podman.", RecordType::AAAA),
        ("web.", RecordType::MX),
        ("web.", RecordType::HTTPS),
        ("web.", RecordType::ANY),
        ("web.", RecordType::TXT),
        ("web.dns.podman.", RecordType::SRV),
        ("web.", RecordType::PTR),
    ] {
        let answer = message(&table, name, kind, "10.89.7.3", "10.89.7.1");
        assert_eq!(ResponseCode::NoError, answer.metadata.response_code, "{name} {kind}");
        assert!(answer.answers.is_empty(), "{name} {kind}");
        assert!(matches!(answer.authorities[0].data, RData::SOA(_)), "{name} {kind}");
        assert_eq!(Name::from_ascii(name).expect("a name"), answer.authorities[0].name);
    }
}

#[test]
fn an_unknown_name_is_forwarded_unless_it_may_not_be() {
    let place = three("forward");
    let table = place.table();
    let to =
        |name: &str, client: &str, listener: &str| match told(&table, &query(name, RecordType::A), client, listener) {
            Told::Forward(to) => Some(to),
            Told::Message(m) => {
                assert_eq!(ResponseCode::NXDomain, m.metadata.response_code);
                let RData::SOA(_) = m.authorities[0].data else { panic!("no SOA") };
                assert!(m.authorities[0].name.zone_of(&m.queries[0].name), "{}", m.authorities[0].name);
                None
            }
        };
    let list = |servers: &[&str]| Some(Some(servers.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>()));
    assert_eq!(list(&["192.0.2.99"]), to("example.org.", "10.89.7.3", "10.89.7.1"), "the container's");
    assert_eq!(list(&["192.0.2.53"]), to("example.org.", "10.89.7.4", "10.89.7.1"), "the network's");
    assert_eq!(
        list(&["192.0.2.53"]),
        to("example.org.", "10.89.8.2", "10.89.8.1"),
        "of the network that is not internal"
    );
    assert_eq!(Some(None), to("short.", "10.89.9.2", "10.89.9.1"), "the host's");
    assert_eq!(None, to("example.org.", "10.89.8.3", "10.89.8.1"), "only on an internal network");
    assert_eq!(None, to("nothing.dns.podman.", "10.89.7.3", "10.89.7.1"), "below the search domain");
    assert_eq!(None, to("dns.podman.", "10.89.7.3", "10.89.7.1"), "the search domain");
}

#[test]
fn several_addresses_take_turns_and_none_comes_twice() {
    let place = three("turns");
    let table = place.table();
    let bytes = query("pool.", RecordType::A).to_vec().expect("a message");
    let parsed = Query::parse(&bytes).expect("a query");
    let (client, listener) = ("10.89.7.2".parse().expect("ip"), "10.89.7.1".parse().expect("ip"));
    let (settings, mut scratch) = (Settings::new("dns.podman", true), Scratch::default());
    let mut first = BTreeSet::new();
    for _ in 0..3 {
        let mut out = Vec::new();
        let client = Client { address: client, listener, limit: 512 };
        assert!(matches!(
            answer(&table, &settings, &parsed, client, &mut scratch, &mut out),
            Decision::Answered(Kind::Addresses)
        ));
        let answer = Message::from_vec(&out).expect("an answer");
        assert_eq!(3, answer.answers.len());
        assert_eq!(set(["10.89.7.3", "10.89.7.4", "10.89.7.14"]), addresses(&answer));
        first.insert(answer.answers[0].data.to_string());
    }
    assert_eq!(3, first.len(), "each is first once");
}

#[test]
fn addresses_lead_back_to_names() {
    let place = three("ptr");
    let table = place.table();
    let names = |name: &str| addresses(&message(&table, name, RecordType::PTR, "10.89.8.2", "10.89.8.1"));
    assert_eq!(set(["web.", "www.", "aaaaaaaaaaaa."]), names("2.7.89.10.in-addr.arpa."));
    assert_eq!(set(["db."]), names("3.8.89.10.IN-ADDR.arpa."));
    let v6 = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.7.0.0.0.1.4.d.f.ip6.arpa.";
    assert_eq!(set(["web.", "www.", "aaaaaaaaaaaa."]), names(v6));
    let other = query("2.9.89.10.in-addr.arpa.", RecordType::PTR);
    assert!(matches!(told(&table, &other, "10.89.7.3", "10.89.7.1"), Told::Forward(_)), "of another network");
}

#[test]
fn the_host_has_the_address_of_the_clients_gateway() {
    let place = three("gateway");
    let table = place.table();
    let host =
        |kind, client, listener| addresses(&message(&table, "host.containers.internal.", kind, client, listener));
    assert_eq!(set(["10.89.7.1"]), host(RecordType::A, "10.89.8.2", "10.89.8.1"), "of the network with a way out");
    assert_eq!(set(["fd41:7::1"]), host(RecordType::AAAA, "10.89.7.3", "10.89.7.1"));
    assert_eq!(set(["10.89.8.1"]), host(RecordType::A, "10.89.8.3", "10.89.8.1"));
}

#[test]
fn a_large_answer_is_cut_to_what_the_client_takes() {
    let lines: Vec<String> = (0..200).map(|n| format!("{n:012} 10.89.7.{n}  all\n")).collect();
    let place = Place::new("large", &[("front", &format!("10.89.7.254\n{}", lines.concat()))]);
    let table = place.table();
    let mut plain = query("all.", RecordType::A);
    let size = |message: &Message| match told(&table, message, "10.89.7.1", "10.89.7.254") {
        Told::Message(answer) => {
            (answer.metadata.truncation, answer.answers.len(), answer.edns.map(|e| e.max_payload()))
        }
        Told::Forward(_) => panic!("forwarded"),
    };
    assert_eq!((true, 30, None), size(&plain), "512 bytes");
    let mut edns = Edns::new();
    edns.set_max_payload(4096).set_version(0);
    plain.set_edns(edns.clone());
    assert_eq!((true, 75, Some(1232)), size(&plain), "1232 bytes");
    edns.set_version(1);
    plain.set_edns(edns);
    let Told::Message(answer) = told(&table, &plain, "10.89.7.1", "10.89.7.254") else { panic!("forwarded") };
    // The same number as BADSIG.
    assert_eq!(16, u16::from(answer.metadata.response_code));
}

#[test]
fn a_wrong_line_costs_that_line_only() {
    let text = "10.89.7.1,nonsense 192.0.2.1,x\nshort\nid 10.89.7.2,zz  bad\nid2 10.89.7.3  good\nid3 fd00::1  family\n id4 1.2.3.4 x\n";
    let place = Place::new("lines", &[("front", text), ("garbage", "\u{0}\u{1}\n"), ("aardvark.pid", "17")]);
    let table = place.table();
    assert_eq!(vec!["front", "garbage"], table.zones.iter().map(|z| z.name.as_str()).collect::<Vec<_>>());
    assert_eq!(1, table.zones[0].containers().count());
    assert_eq!(set(["10.89.7.3"]), addresses(&message(&table, "good.", RecordType::A, "10.89.7.3", "10.89.7.1")));
    assert!(matches!(told(&table, &query("bad.", RecordType::A), "10.89.7.3", "10.89.7.1"), Told::Forward(Some(_))));
}

#[test]
fn files_that_change_are_read_again_and_others_are_kept() {
    let place = three("again");
    let mut files = Files::new(&place.0);
    let names = |table: &Table| table.zones.iter().map(|z| z.containers().count()).collect::<Vec<_>>();
    assert_eq!(vec![1, 2, 3], names(&files.read().expect("a table")));
    // Within one tick of the clock, and of the same size.
    for id in ["xxxxxxxxxxxx", "yyyyyyyyyyyy"] {
        std::fs::write(place.0.join("Other"), format!("10.89.9.1\n{id} 10.89.9.2  other\n")).expect("a file");
        let table = files.read().expect("a table");
        assert_eq!(id, table.zones[0].containers().next().expect("a container").0);
    }
    std::fs::remove_file(place.0.join("front")).expect("a file");
    assert_eq!(vec![1, 2], names(&files.read().expect("a table")));
}

#[test]
fn what_is_no_query_is_not_answered_as_one() {
    let class = {
        let mut m = query("web.", RecordType::A);
        m.queries[0].set_query_class(DNSClass::CH);
        m
    };
    let place = three("rejects");
    let Told::Message(answer) = told(&place.table(), &class, "10.89.7.3", "10.89.7.1") else { panic!("forwarded") };
    assert_eq!(ResponseCode::Refused, answer.metadata.response_code);
    let good = query("web.", RecordType::A).to_vec().expect("a message");
    let reject = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        Query::parse(&bytes).err()
    };
    assert_eq!(None, reject(&|_| ()));
    assert_eq!(Some(wire::Reject::Silence), reject(&|b| b[2] |= 0x80), "an answer");
    assert_eq!(Some(wire::Reject::Silence), reject(&|b| b.truncate(11)));
    assert_eq!(Some(wire::Reject::Code(code::NOT_IMPLEMENTED)), reject(&|b| b[2] |= 0x28), "an update");
    type Change = dyn Fn(&mut Vec<u8>);
    let changes: [(&str, &Change); 8] = [
        ("two questions", &|b| b[5] = 2),
        ("no question", &|b| b[5] = 0),
        ("an answer section", &|b| b[7] = 1),
        ("a missing record", &|b| b[11] = 1),
        ("a cut-off name", &|b| b.truncate(14)),
        ("no class", &|b| b.truncate(b.len() - 1)),
        ("a pointer to itself", &|b| drop(b.splice(12.., [0xc0, 12, 0, 1, 0, 1]))),
        ("a name without end", &|b| drop(b.splice(12.., std::iter::repeat_n(1, 400)))),
    ];
    for (what, change) in changes {
        assert_eq!(Some(wire::Reject::Code(code::FORMAT_ERROR)), reject(change), "{what}");
    }
    // A label with a dot is not two labels.
    let mut dotted = query("web.", RecordType::A).to_vec().expect("a message");
    dotted.splice(12..17, *b"\x09web.front\0");
    assert!(!Query::parse(&dotted).expect("a query").is_plain());
}

/// The seeds of the fuzz target, and a hundred thousand mutations of them.
#[test]
fn no_message_makes_it_panic() {
    let place = three("fuzz");
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/message");
    let seeds: Vec<Vec<u8>> = std::fs::read_dir(corpus)
        .expect("a corpus")
        .map(|f| std::fs::read(f.expect("a file").path()).expect("a seed"))
        .collect();
    assert!(seeds.len() >= 8, "{}", seeds.len());
    let table = place.table();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |end: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % end.max(1)
    };
    for round in 0..100_000 {
        let mut bytes = seeds[round % seeds.len()].clone();
        for _ in 0..below(5) {
            let at = below(bytes.len());
            match below(4) {
                0 => bytes.truncate(at),
                1 => bytes.extend(std::iter::repeat_n(below(256) as u8, below(40))),
                _ => bytes.get_mut(at).into_iter().for_each(|b| *b = below(256) as u8),
            }
        }
        let exercised = crate::dns::inspect::exercise_on(&table, &bytes);
        assert!(exercised.is_ok(), "{exercised:?}: {bytes:02x?}");
    }
}
