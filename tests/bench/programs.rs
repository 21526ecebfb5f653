//! Time per packet of the programs, by BPF_PROG_TEST_RUN.

use crate::plan::Plan;
use crate::progress::Progress;
use anyhow::{Context, Result, anyhow, ensure};
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, LO_IN, UPLINK_IN, UPLINK_OUT, VETH_IN, XDP_IN};
use netpath_common::layout::{FORWARD_NEIGH, FORWARD_PEER, FORWARD_XDP, SIDE_BRIDGE, SIDE_LO, SIDE_UPLINK};
use netpath_common::reason::Reason;
use report::results::Results;
use report::stats::median;
use std::time::Duration;
use support::bpf;
use support::packet::{
    BRIDGE_MAC, CLIENT_MAC, Frame, HOST_MAC, Lab, REDIRECTED, SYN, WEB_MAC, client, container, gateway, host, outside,
};

pub(crate) fn planned(plan: &Plan) -> Duration {
    Duration::from_secs(if plan.wants("programs") { 5 } else { 0 })
}

pub(crate) fn run(plan: &Plan, progress: &mut Progress, results: &mut Results) {
    if !plan.wants("programs") {
        return;
    }
    progress.now("time per packet of the programs");
    // In a thread of its own: the lab is a network namespace of its thread.
    let ended = std::thread::spawn(measure).join();
    match ended.unwrap_or_else(|_| Err(anyhow!("the thread panicked"))) {
        Ok(programs) => results.programs = programs,
        Err(e) => results.note(format!("programs: {e:#}")),
    }
    progress.advance(planned(plan));
    progress.say("programs: measured");
}

/// Medians in nanoseconds, of a run that does nothing and of each program, by path and family.
fn measure() -> Result<Vec<(String, f64)>> {
    let mut times = Vec::new();
    let mut tell = |what: String, samples: Vec<u128>| -> Result<()> {
        let samples: Vec<f64> = samples.into_iter().map(|ns| ns as f64).collect();
        times.push((what, median(&samples).context("no sample")?));
        Ok(())
    };
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN, UPLINK_OUT, XDP_IN, VETH_IN, LO_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let (uplink, bridge, veth, lo) = (lab.uplink, lab.bridge, lab.web, 1);
    // `r0 = 0; exit`: the overhead of a run, which is part of all the others.
    let nothing = [bpf::instruction(0xb7, 0, 0, 0), bpf::instruction(0x95, 0, 0, 0)];
    let nothing = bpf::load(bpf::PROG_TYPE_SCHED_CLS, &nothing, "nothing")?;
    let frame = Frame::udp((client(true), 40_000), (host(true), 8080)).bytes();
    let samples: Result<Vec<u128>> = (0..100).map(|_| Ok(bpf::time(&nothing, &frame, 10_000)?.into())).collect();
    tell("an empty run".to_owned(), samples?)?;
    for v4 in [true, false] {
        let family = if v4 { "v4" } else { "v6" };
        let (from, to, web) = ((client(v4), 40_000), (host(v4), 8080), (container(7, v4), 80));
        let asked = Frame { ttl: 255, ..Frame::udp(from, to) };
        let answer = Frame { ttl: 255, ..Frame::udp(web, from).macs(BRIDGE_MAC, WEB_MAC) };
        let own = Frame { ttl: 255, ..Frame::udp((host(v4), 40_000), to).macs([0; 6], [0; 6]) };
        lab.add_flow_to_itself(&asked, SIDE_UPLINK, FORWARD_XDP)?;
        lab.add_flow_to_itself(&answer, SIDE_BRIDGE, FORWARD_NEIGH)?;
        lab.add_flow_to_itself(&own, SIDE_LO, FORWARD_PEER)?;
        let gateway = Frame::udp(web, (gateway(7, v4), 53)).macs(BRIDGE_MAC, WEB_MAC);
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
            ("established", VETH_IN, [0, veth], answer),
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
            tell(format!("{program} {family} {what}"), samples)?;
        }
        // Each has to be another packet: one run at a time, which includes the overhead of the clock.
        lab.forget()?;
        let (mut published, mut masqueraded, mut local) = (Vec::new(), Vec::new(), Vec::new());
        for port in 10_000..12_000 {
            let syn = Frame::tcp((client(v4), port), to, SYN).macs(HOST_MAC, CLIENT_MAC).bytes();
            published.push(lab.time_once(UPLINK_IN, uplink, &syn, REDIRECTED)?);
            let syn = Frame::tcp((container(7, v4), port), (outside(v4), 80), SYN).macs(BRIDGE_MAC, WEB_MAC).bytes();
            masqueraded.push(lab.time_once(BRIDGE_IN, bridge, &syn, REDIRECTED)?);
            let syn = Frame::tcp((host(v4), port), to, SYN).macs([0; 6], [0; 6]).bytes();
            local.push(lab.time_once(LO_IN, lo, &syn, REDIRECTED)?);
        }
        tell(format!("{UPLINK_IN} {family} new flow"), published)?;
        tell(format!("{BRIDGE_IN} {family} new flow"), masqueraded)?;
        tell(format!("{LO_IN} {family} new flow"), local)?;
    }
    Ok(times)
}
