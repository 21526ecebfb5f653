//! Examples of conflicts.

use super::*;
use crate::model::fixtures::{at, record, tcp};

const BOTH: [&str; 2] = ["10.88.0.2/16", "fd00::2/64"];

fn conflict(wanted: (HostBind, u16, u16), addresses: &[&str], owned: (HostBind, u16, u16)) -> Option<(Place, u16)> {
    let publish = |(bind, port, count)| vec![tcp(bind, port, 1, count)];
    let coming = [record(2, addresses, publish(wanted))];
    let owner = record(1, &BOTH, publish(owned));
    conflicts(&coming, [&owner].into_iter()).first().map(|m| (m.place, m.port))
}

#[test]
fn the_same_port_in_the_same_place_is_a_conflict() {
    let any = HostBind::Any;
    assert_eq!(Some((Place::EveryV4, 80)), conflict((any, 80, 1), &BOTH, (any, 80, 1)));
    assert_eq!(Some((Place::EveryV4, 80)), conflict((any, 80, 1), &BOTH, (at("0.0.0.0"), 80, 1)));
    assert_eq!(Some((Place::EveryV6, 80)), conflict((HostBind::AnyV6, 80, 1), &BOTH, (any, 80, 1)));
    assert_eq!(Some((Place::EveryV4, 100)), conflict((any, 90, 20), &BOTH, (any, 100, 50)));
    assert_eq!(Some((Place::EveryV4, 120)), conflict((any, 120, 1), &BOTH, (any, 100, 50)));
    assert_eq!(None, conflict((any, 99, 1), &BOTH, (any, 100, 50)));
    assert_eq!(None, conflict((any, 150, 1), &BOTH, (any, 100, 50)));
    assert_eq!(None, conflict((HostBind::AnyV4, 80, 1), &BOTH, (HostBind::AnyV6, 80, 1)));
    assert_eq!(
        None,
        conflict((any, 80, 1), &["fd00::3/64"], (HostBind::AnyV4, 80, 1)),
        "a family that no endpoint has"
    );
    assert_eq!(None, conflict((at("192.0.2.1"), 80, 1), &BOTH, (any, 80, 1)));
    assert_eq!(None, conflict((at("192.0.2.1"), 80, 1), &BOTH, (at("192.0.2.2"), 80, 1)));
    assert!(conflict((at("127.0.0.1"), 80, 1), &BOTH, (at("127.0.0.1"), 80, 1)).is_some());
}

#[test]
fn a_wide_range_is_found_behind_narrow_ones() {
    let any = HostBind::Any;
    let coming = [record(2, &BOTH, vec![tcp(any, 10, 1, 500), tcp(any, 20, 1, 1), tcp(any, 30, 1, 1)])];
    let owner = record(1, &BOTH, vec![tcp(any, 5, 1, 5), tcp(any, 400, 1, 1)]);
    assert_eq!(Some(400), conflicts(&coming, [&owner].into_iter()).first().map(|m| m.port));
    let itself = Record { container: coming[0].container.clone(), ..owner };
    assert!(conflicts(&coming, [&itself].into_iter()).is_empty());
}

#[test]
fn the_number_of_places_of_a_port_is_limited() {
    let on = |n: u8, first, count| tcp(at(&format!("192.0.2.{n}")), first, 1, count);
    let there: Vec<Record> = (1..=7).map(|n| record(n.into(), &BOTH[..1], vec![on(n, 100, 50)])).collect();
    let coming = |publish| [record(8, &BOTH[..1], vec![publish])];
    assert_eq!(None, exceeds_limit(&coming(on(8, 149, 1)), &there, 8));
    assert_eq!(Some((Proto::Tcp, 149)), exceeds_limit(&coming(on(8, 149, 1)), &there, 7));
    assert_eq!(Some((Proto::Tcp, 100)), exceeds_limit(&coming(on(8, 90, 20)), &there, 7), "the first shared port");
    assert_eq!(None, exceeds_limit(&coming(on(8, 150, 10)), &there, 7), "beside the range");
    assert_eq!(None, exceeds_limit(&coming(on(7, 149, 1)), &there, 7), "the address of another record");
    assert_eq!(None, exceeds_limit(&coming(on(9, 1, 1)), &there, 6), "existing records alone exceed the limit");
    let every = [record(8, &BOTH, vec![tcp(HostBind::Any, 120, 1, 1)])];
    assert_eq!((None, Some((Proto::Tcp, 120))), (exceeds_limit(&every, &there, 9), exceeds_limit(&every, &there, 8)));
}
