//! The rung in use and why, attached programs, and counters.

use super::traffic::{self, NetworkLine};
use super::{Host, promotion};
use crate::datapath::filter::Foreign;
use crate::datapath::inspect::{self, Counter, FlowUse, MapUse};
use crate::datapath::ladder::{self, LADDER};
use crate::model::Rung;
use crate::model::error::{Error, Result};
use crate::state::agent::holder;
use crate::state::agent_socket;
use serde::Serialize;
use std::time::Duration;

#[derive(Serialize)]
pub struct Status {
    pub version: u32,
    /// Of the host's network namespace, in hexadecimal: the name of its directory among pins and state.
    pub host: String,
    /// `None` while there is no container.
    pub rung: Option<Rung>,
    /// Why the rungs above it were not taken.
    pub rejected_rungs: Vec<RejectedRung>,
    pub endpoints: usize,
    /// The process that follows changes of the host, if it runs.
    pub agent: Option<AgentState>,
    pub hooks: Vec<Hook>,
    /// Uplinks where `netpath.xdp` asks for a program that the kernel has refused.
    pub xdp_refused: Vec<XdpRefused>,
    pub counters: Vec<Counter>,
    pub networks: Vec<NetworkLine>,
    /// Rules of others that packets of containers bypass, in whole or in part.
    pub bypassed: Vec<String>,
    /// `None`: the datapath in use has no flow tables of its own.
    pub flows: Option<FlowUse>,
    /// Flows that programs carry where netfilter translates; `None`: it does not, or no agent answers.
    pub carried_flows: Option<usize>,
    pub maps: Vec<MapUse>,
    /// Of all maps, including those that `maps` leaves out.
    pub memory_bytes: u64,
}

#[derive(Serialize)]
pub struct AgentState {
    pub pid: u32,
    /// On its socket.
    pub answers: bool,
}

#[derive(Serialize)]
pub struct RejectedRung {
    pub rung: Rung,
    pub why: String,
}

#[derive(Serialize)]
pub struct Hook {
    pub program: String,
    /// Absent for the cgroup root.
    pub interface: Option<String>,
    pub side: &'static str,
    pub by: &'static str,
    /// A monitor's program runs in place of the installed one.
    pub monitored: bool,
}

#[derive(Serialize)]
pub struct XdpRefused {
    pub interface: String,
    pub why: String,
}

/// Why the best rung does not serve yet.
pub(super) const LOADING: &str = "the agent is loading its programs; then it serves";

/// # Errors
/// The state or the datapath cannot be read.
pub fn status(host: &Host) -> Result<Status> {
    let endpoints = host.store.all()?.len();
    let rung = host.store.rung()?;
    let above = LADDER.into_iter().map(|b| b.rung).take_while(|r| rung.is_some_and(|used| *r != used));
    let tried = host.store.rejected_rungs()?;
    let is_interim = host.store.is_interim();
    let why_not = |rung| match tried.iter().find(|(r, _)| *r == rung) {
        Some((_, why)) => Some(why.clone()),
        None => (is_interim && rung == LADDER[0].rung).then(|| LOADING.to_owned()),
    };
    let rejected_rungs =
        above.filter_map(|r| why_not(r).or_else(|| ladder::usable(r).err()).map(|why| RejectedRung { rung: r, why }));
    let rejected_rungs = rejected_rungs.collect();
    let mut status = Status {
        version: 1,
        host: format!("{:x}", host.cookie),
        rung,
        rejected_rungs,
        endpoints,
        agent: agent(host),
        hooks: Vec::new(),
        xdp_refused: Vec::new(),
        counters: Vec::new(),
        networks: Vec::new(),
        bypassed: Vec::new(),
        flows: None,
        carried_flows: promotion::carried(host)?,
        maps: Vec::new(),
        memory_bytes: 0,
    };
    let datapath = host.inspect()?;
    if datapath.exists() {
        let view = host.view()?;
        for inspect::Hook { program, ifindex, egress, by, replaced } in host.hooks()? {
            status.hooks.push(Hook {
                interface: ifindex.map(|i| view.interface(i)),
                side: match (ifindex, egress) {
                    (None, _) => "sockets",
                    (_, false) => "ingress",
                    (_, true) => "egress",
                },
                by,
                monitored: replaced,
                program,
            });
        }
        let refused = datapath.refused_hooks().into_iter();
        let refused = refused.map(|r| XdpRefused { interface: view.interface(r.ifindex), why: r.why });
        status.xdp_refused = refused.collect();
        status.counters = datapath.counters()?;
        let is_bypassing = !rung.is_some_and(|rung| ladder::backend(rung).through_netfilter);
        let foreign = Foreign::default();
        let chains = match foreign.chains() {
            Ok(chains) => chains.as_slice(),
            Err(e) if is_bypassing => {
                return Err(Error::new("cannot tell which rules of others this host has").because(e.to_string()));
            }
            Err(_) => &[],
        };
        if is_bypassing {
            status.bypassed = chains.iter().map(ToString::to_string).collect();
        }
        status.networks = traffic::networks(&host.store.desired()?, datapath.as_ref(), chains)?;
        let usage = datapath.usage()?;
        (status.flows, status.maps, status.memory_bytes) = (usage.flows, usage.maps, usage.memory_bytes);
    }
    Ok(status)
}

/// The agent of this host, if it runs.
pub fn agent(host: &Host) -> Option<AgentState> {
    /// For an agent that has just been started, on a host that is busy.
    const ANSWER_LIMIT: Duration = Duration::from_millis(500);
    let pid = holder(host.store.dir())?.process.pid;
    Some(AgentState { pid, answers: agent_socket::answers(host.store.dir(), ANSWER_LIMIT) })
}
