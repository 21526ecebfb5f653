//! The iptables rung.

use super::{Datapath, Refusal, Report, Sysctl};
use crate::model::error::{Error, Result};
use crate::model::{Desired, HostView, Record, Rung};

pub struct Iptables {}

impl Iptables {
    /// # Errors
    /// No iptables on this host.
    pub fn new() -> Result<Self> {
        Ok(Self {})
    }
}

impl Datapath for Iptables {
    fn rung(&self) -> Rung {
        Rung::Iptables
    }

    fn refusals(&self, _record: &Record) -> Vec<Refusal> {
        Vec::new()
    }

    fn sysctls(&self, _desired: &Desired) -> Vec<Sysctl> {
        Vec::new()
    }

    fn reconcile(&mut self, _desired: &Desired, _host: &HostView) -> Result<Report> {
        Err(Error::new("cannot use iptables: this rung is still being written"))
    }
}
