//! Controls the load generators of tests/support: servers in a container, clients on another machine.

use crate::commands::Measure;
use crate::machine::Machine;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::generator::bulk::{self, Iperf};
use support::generator::udp::{self, Counter};
use support::generator::{Latency, Servers, cpu, tcp};
use support::host::Netns;

/// Ports of short connections and of the datagram sink.
const ONCE: u16 = 80;
const ECHO: u16 = 81;
const BULK: u16 = 82;

pub(crate) struct Served {
    sink: Counter,
    _threads: Servers,
    _iperf: Iperf,
}

impl Served {
    pub(crate) fn start(netns: &Netns) -> Result<Self> {
        let mut threads = Servers::default();
        threads.connections(netns, ONCE)?;
        threads.round_trips(netns, ECHO)?;
        threads.datagrams(netns, ECHO)?;
        let sink = threads.sink(netns, ONCE)?;
        Ok(Self { sink, _threads: threads, _iperf: bulk::server(netns, BULK)? })
    }
}

pub(crate) fn measure(machine: &Machine, container: Option<&str>, what: Measure) -> Result<Value> {
    let netns = machine.netns(container)?;
    Ok(match what {
        Measure::Busy => json!(cpu::busy()?),
        Measure::Sunk => {
            let served = machine.served.get(&container.map(str::to_owned)).context("there are no servers")?;
            json!(served.sink.load(Ordering::Relaxed))
        }
        Measure::Tcp { to, streams, back, seconds } => {
            let done = bulk::transfer(netns, to, streams, back, seconds)?;
            json!({"bytes": done.bytes, "gbit_per_second": done.gbit_per_second})
        }
        Measure::Udp { to, bytes, seconds } => {
            let done = bulk::datagrams(netns, to, bytes, seconds)?;
            json!({"gbit_per_second": done.gbit_per_second, "lost_percent": done.lost_percent})
        }
        Measure::Connections { to, ms } => {
            let done = tcp::connections(netns, to, Duration::from_millis(ms))?;
            json!({
                "per_second": done.per_second, "connections": done.connections,
                "failed": done.failed, "slow": done.slow, "error": done.error,
            })
        }
        Measure::Flood { to, ms } => {
            let done = udp::flood(netns, to, Duration::from_millis(ms))?;
            json!({"datagrams": done.datagrams, "seconds": done.seconds})
        }
        Measure::RoundTrips { to, udp, ms } => {
            let time = Duration::from_millis(ms);
            let Latency { median_us, p99_us } =
                if udp { udp::round_trips(netns, to, time)? } else { tcp::round_trips(netns, to, time)? };
            json!({"median_us": median_us, "p99_us": p99_us})
        }
    })
}
