//! Packets through the programs with `BPF_PROG_TEST_RUN`: input, output, counters. GSO and the redirects themselves are tested
//! in `e2e`; the programs for uplinks without Ethernet too (`e2e::tun`), as a test run always has an Ethernet header.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

#[macro_use]
extern crate support;

mod big_tcp;
mod bridge;
mod carry;
mod cost;
mod errors;
mod fragments;
mod fuzz;
mod lo;
mod next_hop;
mod policy;
mod protocols;
mod repair;
mod roundtrip;
mod routes;
mod stack;
mod states;
mod uplink;
mod veth;
mod xdp;

use anyhow::Result;
use netpath_common::reason::Reason;
use std::net::IpAddr;
use support::packet::{CLIENT_MAC, Frame, HOST_MAC, L4, Lab, REDIRECTED, STACK, client, gateway, host, outside};

fn main() -> std::process::ExitCode {
    support::harness::run()
}

/// tc's third verdict.
const DROPPED: i32 = 2;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
}

/// One row: a packet at a program, and the expected result.
#[track_caller]
fn becomes(lab: &mut Lab, what: &str, at: (&str, u32), sent: &Frame, got: &Frame, reason: Reason) -> Result<()> {
    let out = lab.run(at.0, at.1, &sent.bytes())?;
    assert_eq!(REDIRECTED, out.action, "{what}: {out:?}");
    assert_eq!(got.bytes(), out.packet, "{what}: the packet; sent {sent:?}");
    assert_eq!(vec![(reason, 1)], out.counted, "{what}: the counters");
    Ok(())
}

/// The packet is changed and continues up to, or out of, the host's stack. `indices`: its input interface, and where it is
/// seen.
#[track_caller]
fn goes_on_as(
    lab: &mut Lab,
    what: &str,
    at: (&str, [u32; 2]),
    sent: &Frame,
    got: &Frame,
    reason: Reason,
) -> Result<()> {
    let out = lab.run_repeated(at.0, at.1, &sent.bytes(), 1)?;
    assert_eq!(STACK, out.action, "{what}: {out:?}");
    assert_eq!(got.bytes(), out.packet, "{what}: the packet; sent {sent:?}");
    assert_eq!(vec![(reason, 1)], out.counted, "{what}: the counters");
    Ok(())
}

/// XDP's verdicts.
const XDP_DROPPED: i32 = 1;
const XDP_PASSED: i32 = 2;
const XDP_REDIRECTED: i32 = 4;

/// The packet stays unchanged, with this verdict.
#[track_caller]
fn stays(lab: &mut Lab, what: &str, at: (&str, u32), sent: &[u8], action: i32, reason: Reason) -> Result<()> {
    let out = lab.run(at.0, at.1, sent)?;
    assert_eq!(action, out.action, "{what}: {out:?}");
    assert_eq!(sent, out.packet, "{what}: the packet was changed");
    assert_eq!(vec![(reason, 1)], out.counted, "{what}: the counters");
    Ok(())
}

/// The frame truncated at every byte that the kernel accepts in a test run: never an error, never a rewrite. (Since 6.18 it
/// requires a complete network header: net/bpf/test_run.c, bpf_prog_test_run_skb().)
#[track_caller]
fn cut_everywhere(lab: &mut Lab, what: &str, at: (&str, u32), whole: &Frame) -> Result<()> {
    let bytes = whole.bytes();
    for len in 14 + if whole.src.is_ipv4() { 20 } else { 40 }..bytes.len() {
        let out = lab.run(at.0, at.1, &bytes[..len])?;
        assert_eq!(STACK, out.action, "{what}, cut to {len} of {} bytes", bytes.len());
        assert_eq!(bytes[..len], out.packet, "{what}, cut to {len} bytes: the packet was changed");
    }
    Ok(())
}

/// Variants in which each packet must be translated equally.
fn shapes(frame: &Frame) -> Vec<(String, Frame)> {
    let mut all = vec![("plain".to_owned(), frame.clone())];
    for options in [1, 4] {
        all.push((format!("{options} options"), Frame { options, ..frame.clone() }));
    }
    all.push(("without payload".to_owned(), Frame { payload: Vec::new(), ..frame.clone() }));
    all.push(("of odd length".to_owned(), Frame { payload: vec![0xa5; 333], ..frame.clone() }));
    if let L4::Udp { sport, dport, .. } = frame.l4
        && frame.src.is_ipv4()
    {
        let l4 = L4::Udp { sport, dport, zero_sum: true };
        all.push(("without checksum".to_owned(), Frame { l4, ..frame.clone() }));
    }
    all
}

/// To the container, as a frame from the bridge.
fn into(frame: &Frame, mac: support::packet::Mac, bridge: support::packet::Mac) -> Frame {
    frame.clone().macs(mac, bridge)
}

/// At the uplink, from the client.
fn at_host(frame: Frame) -> Frame {
    frame.macs(HOST_MAC, CLIENT_MAC)
}
