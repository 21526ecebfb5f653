//! The last rung: links and addresses only, nothing published, masqueraded or isolated.
//!
//! For administrators who write the host's filter rules by hand, and for hosts where neither eBPF nor netfilter can be
//! used.

use super::{Backend, Context, Datapath, Inspect, Refusal, Report, Sysctl};
use crate::model::error::Result;
use crate::model::{Desired, Record, Rung};

pub const BACKEND: Backend = Backend {
    rung: Rung::None,
    through_netfilter: true,
    is_interim: false,
    lead_dns: None,
    sockets: None,
    carry: None,
    needs_sources: false,
    needs_route_mtus: false,
    ages_flows: false,
    probes: &[],
    usable: || Ok(()),
    open: |_| Ok(Box::new(NoDatapath)),
    inspect: |_| Box::new(NoDatapath),
    gone_hosts: Vec::new,
    hold: |_| None,
    idle: None,
};

#[derive(Clone, Copy, Debug, Default)]
pub struct NoDatapath;

impl Datapath for NoDatapath {
    fn rung(&self) -> Rung {
        Rung::None
    }

    /// Nothing is refused: this rung leaves publishing to other software.
    fn refusals(&self, _record: &Record) -> Vec<Refusal> {
        Vec::new()
    }

    fn sysctls(&self, _desired: &Desired) -> Vec<Sysctl> {
        Vec::new()
    }

    fn reconcile(&mut self, _desired: &Desired, _context: &Context<'_>) -> Result<Report> {
        Ok(Report::default())
    }
}

impl Inspect for NoDatapath {
    fn exists(&self) -> bool {
        false
    }
}
