//! The parameters of a run.

use crate::variants::{Places, Variant};
use anyhow::{Result, bail};
use std::path::PathBuf;
use std::time::Duration;

/// Names for `--only`, with descriptions.
pub const NAMES: [(&str, &str); 11] = [
    ("tcp", "bulk TCP, 1 and 4 streams (iperf3), with the processor time per GB"),
    ("tcp-back", "the same, the server sends"),
    ("udp", "UDP, 64 bytes, packets per second"),
    ("conn", "connect, request, answer, close; 4 clients; with the processor time per 10,000"),
    ("tcp-rr", "TCP request and answer: median and p99"),
    ("udp-rr", "UDP request and answer: median and p99"),
    ("setup", "setup and teardown of one container"),
    ("range", "setup of one container with a range of 10,000 ports"),
    ("many", "60 containers, 8 at a time"),
    ("ports", "1 to 60,000 published ports: setup, and connections per second beside them"),
    ("programs", "time per packet of the programs, by BPF_PROG_TEST_RUN"),
];

pub struct Plan {
    pub variants: Vec<&'static Variant>,
    pub only: Vec<String>,
    pub rounds: usize,
    pub quick: bool,
    pub places: Places,
    /// The test executable that measures the programs.
    pub packet_tests: Option<PathBuf>,
}

impl Plan {
    /// # Errors
    /// An unknown figure.
    pub fn check(&self) -> Result<()> {
        let known = |o: &String| NAMES.iter().any(|(n, _)| o.split('.').next() == Some(n));
        match self.only.iter().find(|o| !known(o)) {
            Some(other) => bail!("--only {other}: there is {}", NAMES.map(|(n, _)| n).join(", ")),
            None => Ok(()),
        }
    }

    /// `conn` and `conn.published` both want `conn.published`.
    pub fn wants(&self, figure: &str) -> bool {
        let family = figure.split('.').next().unwrap_or_default();
        self.only.is_empty() || self.only.iter().any(|o| o == figure || o == family)
    }

    /// How long one sample of traffic takes.
    pub fn sample(&self) -> Duration {
        if self.quick { Duration::from_millis(300) } else { Duration::from_secs(1) }
    }

    /// The variants that have a backend.
    pub fn backends(&self) -> Vec<&'static Variant> {
        self.variants.iter().copied().filter(|v| v.recipe().is_some()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(only: &[&str]) -> Plan {
        Plan {
            variants: Vec::new(),
            only: only.iter().map(|&o| o.to_owned()).collect(),
            rounds: 1,
            quick: false,
            places: Places::default(),
            packet_tests: None,
        }
    }

    #[test]
    fn figures_are_wanted_by_family_or_in_full() {
        assert!(plan(&[]).wants("conn.published") && plan(&["conn"]).wants("conn.published"));
        let one = plan(&["conn.published"]);
        assert!(one.wants("conn.published"));
        assert!(!one.wants("conn.hairpin") && !one.wants("tcp.published") && !plan(&["tcp"]).wants("tcp-rr.address"));
    }

    #[test]
    fn an_unknown_figure_is_refused_with_those_there_are() {
        let error = plan(&["dns"]).check().expect_err("no such figure").to_string();
        assert!(error.contains("dns") && error.contains("tcp-rr"), "{error}");
        assert!(plan(&["conn.local", "many"]).check().is_ok());
    }
}
