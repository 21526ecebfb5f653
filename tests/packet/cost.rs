//! Cost of the programs: instructions as the verifier counts them, and time per packet. Printed, not asserted.

use crate::{REDIRECTED, STACK, at_host, client, host, outside};
use anyhow::{Result, ensure};
use aya::VerifierLogLevel;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, LO_IN, UPLINK_IN, UPLINK_OUT, VETH_IN, XDP_IN};
use netpath_common::layout::{
    FORWARD_NEIGH, FORWARD_PEER, FORWARD_STACK, FORWARD_XDP, NET_EDGE, NET_MASQUERADE, SIDE_BRIDGE, SIDE_EGRESS,
    SIDE_LO, SIDE_UPLINK,
};
use netpath_common::reason::Reason;
use support::bpf;
use support::frames::deepest;
use support::need::say;
use support::packet::{BRIDGE_MAC, Frame, Lab, SYN, WEB_MAC, accept, container, explained, load};

#[test]
fn every_program_is_accepted_by_the_verifier() -> Result<()> {
    let mut ebpf = load(VerifierLogLevel::STATS)?;
    let (mut lines, mut refused) = (Vec::new(), Vec::new());
    for (name, program) in ebpf.programs_mut() {
        match accept(program).and_then(|()| program.info()) {
            Ok(i) => {
                lines.push(format!("{name}: {} verified instructions", i.verified_instruction_count().unwrap_or(0)))
            }
            Err(_) => refused.push(format!("{name}: {}", explained(name))),
        }
    }
    ensure!(refused.is_empty(), "{} programs are refused:\n{}", refused.len(), refused.join("\n\n"));
    ensure!(lines.len() == 16, "16 programs, and not {}", lines.len());
    lines.sort();
    lines.iter().for_each(|line| say(line));
    Ok(())
}

/// Detects on every kernel what only an old kernel rejects.
#[test]
fn no_chain_of_calls_needs_more_stack_than_the_oldest_kernel_has() -> Result<()> {
    const MOST: u32 = 512;
    let programs = deepest(&support::object::bytes()?)?;
    ensure!(programs.len() == 16, "16 programs, and not {}", programs.len());
    let too_deep: Vec<String> = programs.iter().filter(|d| d.bytes > MOST).map(|d| format!("{d:?}")).collect();
    ensure!(too_deep.is_empty(), "more than {MOST} bytes in {} programs:\n{}", too_deep.len(), too_deep.join("\n"));
    Ok(())
}

#[test]
fn time_per_packet() -> Result<()> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, UPLINK_OUT, XDP_IN, VETH_IN, LO_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (uplink, bridge, veth, lo) = (lab.uplink, lab.bridge, lab.web, 1);
    // `r0 = 0; exit`: the overhead of a run, which is part of all the others.
    let nothing = [bpf::instruction(0xb7, 0, 0, 0), bpf::instruction(0x95, 0, 0, 0)];
    let nothing = bpf::load(bpf::PROG_TYPE_SCHED_CLS, &nothing, "nothing")?;
    let frame = Frame::udp((client(true), 40_000), (host(true), 8080)).bytes();
    let samples: Result<Vec<u128>> = (0..100).map(|_| Ok(bpf::time(&nothing, &frame, 10_000)?.into())).collect();
    tell("an empty run", samples?);
    for v4 in [true, false] {
        let family = if v4 { "v4" } else { "v6" };
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        let asked = Frame { ttl: 255, ..Frame::udp(from, to) };
        let answer = Frame { ttl: 255, ..Frame::udp(web, from).macs(BRIDGE_MAC, WEB_MAC) };
        let own = Frame { ttl: 255, ..Frame::udp((host(v4), 40_000), to).macs([0; 6], [0; 6]) };
        lab.add_flow_to_itself(&asked, SIDE_UPLINK, FORWARD_XDP)?;
        lab.add_flow_to_itself(&answer, SIDE_BRIDGE, FORWARD_NEIGH)?;
        lab.add_flow_to_itself(&answer, SIDE_EGRESS, FORWARD_STACK)?;
        lab.add_flow_to_itself(&own, SIDE_LO, FORWARD_PEER)?;
        let gateway = Frame::udp(web, (crate::gateway(7, v4), 53)).macs(BRIDGE_MAC, WEB_MAC);
        for (what, program, indices, frame) in [
            ("not ours", UPLINK_IN, [0, uplink], Frame::tcp(from, (host(v4), 22), 0x10)),
            ("not ours", XDP_IN, [0, uplink], Frame::tcp(from, (host(v4), 22), 0x10)),
            ("not ours", UPLINK_OUT, [0, uplink], Frame::tcp((host(v4), 22), from, 0x10)),
            ("not ours", LO_IN, [0, lo], Frame::udp((host(v4), 40_000), (host(v4), 22)).macs([0; 6], [0; 6])),
            ("to its gateway", BRIDGE_IN, [0, bridge], gateway.clone()),
            ("to its gateway", VETH_IN, [0, veth], gateway),
            ("established", UPLINK_IN, [0, uplink], asked.clone()),
            ("established", XDP_IN, [0, uplink], asked),
            ("established", BRIDGE_IN, [0, bridge], answer.clone()),
            ("established", VETH_IN, [0, veth], answer.clone()),
            // A packet of the host on the edge path, at the device by which its flow leaves.
            ("established", UPLINK_OUT, [bridge, veth], answer),
            ("established", LO_IN, [0, lo], own),
        ] {
            // A repeated run passes the changed packet to the next one, so an established flow translates to itself and has
            // hops enough.
            let mut samples = Vec::new();
            // Each XDP call makes the kernel replace its dispatcher, and wait for it (`bpf_prog_change_xdp()`).
            let (repeat, rounds) = match (what, program) {
                ("established", XDP_IN) => (200, 50),
                ("established", _) => (200, 1_000),
                _ => (100_000, 20),
            };
            // Before the measurement: the packet has the named effect.
            let found = lab.run_repeated(program, indices, &frame.bytes(), 1)?;
            let is_found = found.counted.iter().any(|(r, _)| matches!(r, Reason::Redirected | Reason::Translated));
            ensure!(is_found == (what == "established"), "{program} {family} {what}: {found:?}");
            for _ in 0..rounds {
                samples.push(lab.run_repeated(program, indices, &frame.bytes(), repeat)?.took_ns);
            }
            tell(&format!("{program} {family} {what}"), samples);
        }
        // Each has to be another packet: one run at a time, which includes the overhead of the clock.
        lab.forget()?;
        let (mut published, mut masqueraded, mut local) = (Vec::new(), Vec::new(), Vec::new());
        for port in 10_000..12_000 {
            let syn = at_host(Frame::tcp((client(v4), port), to, SYN)).bytes();
            published.push(lab.time_once(UPLINK_IN, uplink, &syn, REDIRECTED)?);
            let syn = Frame::tcp((container(7, v4), port), (outside(v4), 80), SYN).macs(BRIDGE_MAC, WEB_MAC).bytes();
            masqueraded.push(lab.time_once(BRIDGE_IN, bridge, &syn, REDIRECTED)?);
            let syn = Frame::tcp((host(v4), port), to, SYN).macs([0; 6], [0; 6]).bytes();
            local.push(lab.time_once(LO_IN, lo, &syn, REDIRECTED)?);
        }
        tell(&format!("{UPLINK_IN} {family} new flow"), published);
        tell(&format!("{BRIDGE_IN} {family} new flow"), masqueraded);
        tell(&format!("{LO_IN} {family} new flow"), local);
        lab.forget()?;
        lab.set_network(7, bridge, NET_MASQUERADE | NET_EDGE)?;
        let mut by_the_stack = Vec::new();
        for port in 10_000..12_000 {
            let syn = Frame::tcp((container(7, v4), port), (outside(v4), 80), SYN).macs(BRIDGE_MAC, WEB_MAC).bytes();
            by_the_stack.push(lab.time_once_from(UPLINK_OUT, [bridge, uplink], &syn, STACK)?);
        }
        tell(&format!("{UPLINK_OUT} {family} new flow"), by_the_stack);
        lab.set_network(7, bridge, NET_MASQUERADE)?;
    }
    Ok(())
}

fn tell(what: &str, mut samples: Vec<u128>) {
    samples.sort_unstable();
    say(&format!("{what}: {} ns (median; best {})", samples[samples.len() / 2], samples[0]));
}
