//! Writes, reads, changes and removes the table on a real kernel, in a network namespace of the test thread.

use super::table::{KernelTable, commit};
use super::*;
use crate::model::fixtures::{at, record, tcp};
use crate::model::{HostBind, Proto, Publish};
use nix::sched::{CloneFlags, unshare};

/// Moves the thread into a new namespace; `false`: the test cannot run.
fn is_alone(test: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root || unshare(CloneFlags::CLONE_NEWNET).is_err() || nfnetlink::generation().is_err() {
        println!("skip {test}: needs root and nf_tables");
        return false;
    }
    true
}

fn program(records: &[Record]) -> program::Program {
    let desired = Desired { records: records.to_vec() };
    print::program(&compile(&desired, &HostView::default(), &KernelTable::default()))
}

/// Makes the table equal to the rules for these records. Returns the number of messages.
fn apply(records: &[Record]) -> usize {
    let there = KernelTable::read().expect("a table or none");
    let changes = there.changes(&program(records));
    let count = changes.len();
    commit(changes).expect("the kernel accepts the changes");
    count
}

fn range(bind: HostBind, proto: Proto, host: u16, container: u16, count: u16) -> Publish {
    Publish::new(bind, proto, host, container, count).expect("ports")
}

fn many() -> Vec<Publish> {
    vec![
        tcp(at("0.0.0.0"), 8080, 80, 1),
        tcp(at("192.0.2.1"), 8080, 81, 1),
        range(HostBind::Any, Proto::Udp, 5000, 5000, 100),
        range(at("192.0.2.1"), Proto::Udp, 6000, 6000, 100),
        range(HostBind::Any, Proto::Udp, 65_000, 65_000, 536),
        range(HostBind::Any, Proto::Tcp, 20_000, 30_000, 1_000),
        range(HostBind::Any, Proto::Sctp, 7, 8, 1),
    ]
}

#[test]
#[ignore = "needs root"]
fn the_kernel_accepts_every_kind_of_rule_and_a_probe_leaves_nothing() {
    if !is_alone("the_kernel_accepts_every_kind_of_rule_and_a_probe_leaves_nothing") {
        return;
    }
    assert_eq!(Ok(()), probe());
    assert_eq!(KernelTable::default(), KernelTable::read().expect("no table"));
}

#[test]
#[ignore = "needs root"]
fn an_up_to_date_table_is_not_written_again() {
    if !is_alone("an_up_to_date_table_is_not_written_again") {
        return;
    }
    let mut first = record(1, &["10.88.0.2/16", "fd00::2/64"], many());
    first.allow = vec!["192.0.2.0/24".parse().expect("a network")];
    let second = record(2, &["10.88.0.3/16"], vec![tcp(at("0.0.0.0"), 9090, 90, 1)]);
    for records in
        [&[first.clone()][..], &[first.clone(), second.clone()], std::slice::from_ref(&second), &[first.clone()]]
    {
        assert!(apply(records) > 0, "{records:?}");
        assert_eq!(0, apply(records), "{:?}", KernelTable::read().expect("a table").changes(&program(records)));
    }
    assert!(apply(&[first, second.clone()]) < 30, "a second container adds only its own elements");
    apply(&[second]);
    apply(&[]);
    assert_eq!(KernelTable::default(), KernelTable::read().expect("no table"));
}

/// Changes as by an administrator or another program.
#[test]
#[ignore = "needs root"]
fn foreign_changes_to_the_table_are_repaired() {
    if !is_alone("foreign_changes_to_the_table_are_repaired") {
        return;
    }
    let records = [record(1, &["10.88.0.2/16"], many())];
    for change in [
        "flush ruleset",
        "delete table inet netpath",
        "flush chain inet netpath nat_dnat_v4",
        "add rule inet netpath nat_dnat_v4 accept",
        "insert rule inet netpath nat_dnat_v4 accept",
        "delete element inet netpath tcp_v4 { 20007 }",
        "add element inet netpath tcp_v4 { 9 : 10.0.0.1 . 9 }",
        "delete element inet netpath udp_ranges_v4 { 5000-5099 }",
        "add chain inet netpath other",
        "add table inet netpath { flags dormant; }",
    ] {
        apply(&records);
        let nft = std::process::Command::new("nft").arg(change).output();
        let Ok(nft) = nft else {
            println!("skip {change}: no nft");
            return;
        };
        assert!(nft.status.success(), "{change}: {}", String::from_utf8_lossy(&nft.stderr));
        assert!(apply(&records) > 0, "{change}: not detected");
        assert_eq!(0, apply(&records), "{change}");
    }
}

#[test]
fn the_older_container_owns_a_port_that_two_publish() {
    let first = record(1, &["10.88.0.2/16"], vec![range(HostBind::Any, Proto::Udp, 5010, 5010, 10)]);
    let second = record(2, &["10.88.0.3/16"], vec![range(HostBind::Any, Proto::Udp, 5000, 5000, 100)]);
    let program = program(&[second, first]);
    let ranges = &program.sets["udp_ranges_v4"].elements;
    let text = |e: &program::Element| {
        let port = |bytes: &[u8]| u16::from_be_bytes(bytes.try_into().expect("a port"));
        (port(&e.key), port(&e.last), e.value[3])
    };
    let found: Vec<_> = ranges.iter().map(text).collect();
    assert_eq!(vec![(5000, 5009, 3), (5010, 5019, 2), (5020, 5099, 3)], found);
}

#[test]
#[ignore = "needs root"]
fn sixty_thousand_ports_are_one_transaction() {
    if !is_alone("sixty_thousand_ports_are_one_transaction") {
        return;
    }
    let all = [record(1, &["10.88.0.2/16"], vec![range(HostBind::Any, Proto::Tcp, 1, 2, 60_000)])];
    apply(&all);
    // The listing of a map that the kernel is still resizing may miss elements; they are added again, which changes nothing.
    let is_up_to_date = (0..20).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        apply(&all) == 0
    });
    assert!(is_up_to_date);
    apply(&[]);
}

/// `print.rs` lets packets of known connections pass all of these chains at once.
#[test]
fn checks_ahead_of_translation_drop_nothing_of_known_connections() {
    use crate::datapath::netfilter::rules::{Body, Match, State, Verdict};
    let known = Match::State(&[State::Related, State::Established]);
    let desired = Desired { records: vec![record(1, &["10.88.0.2/16", "fd00::2/64"], many())] };
    for family in [Family::V4, Family::V6] {
        let ruleset = policy::compile(&desired, family, false, &[]);
        let mut drops = 0;
        for chain in &ruleset.tables[0].chains {
            let Body::Rules(rules) = &chain.body else { panic!("{}: ports", chain.name) };
            let passes = rules.iter().position(|r| r.verdict == Verdict::Return && r.matches == [known.clone()]);
            for (at, _) in rules.iter().enumerate().filter(|(_, r)| r.verdict == Verdict::Drop) {
                drops += 1;
                assert!(passes.is_some_and(|passes| passes < at), "{family:?} {}", chain.name);
            }
        }
        assert!(drops > 1, "{family:?}: no checks");
    }
}
