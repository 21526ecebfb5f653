//! The parameters of a run.

use crate::backend::Places;
use report::variants::Variant;
use std::time::Duration;

pub(crate) struct Plan {
    pub variants: Vec<&'static Variant>,
    pub only: Vec<String>,
    pub rounds: usize,
    pub quick: bool,
    pub places: Places,
}

impl Plan {
    /// `conn` and `conn.published` both want `conn.published`.
    pub(crate) fn wants(&self, figure: &str) -> bool {
        let family = figure.split('.').next().unwrap_or_default();
        self.only.is_empty() || self.only.iter().any(|o| o == figure || o == family)
    }

    /// How long one sample of traffic takes.
    pub(crate) fn sample(&self) -> Duration {
        if self.quick { Duration::from_millis(300) } else { Duration::from_secs(1) }
    }

    /// The variants that have a backend.
    pub(crate) fn backends(&self) -> Vec<&'static Variant> {
        self.variants.iter().copied().filter(|v| v.program().is_some()).collect()
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
        }
    }

    #[test]
    fn figures_are_wanted_by_family_or_in_full() {
        assert!(plan(&[]).wants("conn.published") && plan(&["conn"]).wants("conn.published"));
        let one = plan(&["conn.published"]);
        assert!(one.wants("conn.published"));
        assert!(!one.wants("conn.hairpin") && !one.wants("tcp.published") && !plan(&["tcp"]).wants("tcp-rr.address"));
    }
}
