//! The last rung: links and addresses only, nothing published, masqueraded or isolated.
//!
//! It is what an administrator asks for who writes the host's filter rules alone, and what is left where neither eBPF
//! nor netfilter can be used.

use super::{Datapath, Refusal, Report, Sysctl};
use crate::model::error::Result;
use crate::model::{Desired, HostView, Record, Rung};

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

    fn reconcile(&mut self, _desired: &Desired, _host: &HostView) -> Result<Report> {
        Ok(Report::default())
    }
}
