//! The speed goals of docs/performance.md, checked against the figures of this run.

use report::results::{Cell, Results};
use report::variants::{DIRECT, PEER, Variant};

pub(crate) struct Bar {
    pub what: &'static str,
    measured: Measured,
    aim: Aim,
}

#[derive(Clone, Copy)]
enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

/// A figure of the judged variant, unless another variant is named.
#[derive(Clone, Copy)]
enum Measured {
    /// Ratio to the same figure of another variant.
    Times(&'static str, &'static str),
    /// Ratio to another figure of the same variant.
    TimesOwn(&'static str, &'static str),
    Value(&'static str),
    /// Difference of the two.
    More(&'static str, &'static str),
    Program(&'static str),
}

const fn bar(what: &'static str, measured: Measured, aim: Aim) -> Bar {
    Bar { what, measured, aim }
}

use Aim::{AtLeast, AtMost};
use Measured::{More, Program, Times, TimesOwn, Value};

pub(crate) const BARS: &[Bar] = &[
    bar("published, UDP 64 B, of direct", Times("udp.published", DIRECT), AtLeast(0.90)),
    bar("published, UDP 64 B, of netavark 2.1", Times("udp.published", PEER), AtLeast(1.35)),
    bar("published, conn/s, of direct", Times("conn.published", DIRECT), AtLeast(0.95)),
    bar("published, conn/s, of netavark 2.1", Times("conn.published", PEER), AtLeast(1.35)),
    bar("masqueraded, conn/s, of direct", Times("conn.masqueraded", DIRECT), AtLeast(0.95)),
    bar("masqueraded, conn/s, of netavark 2.1", Times("conn.masqueraded", PEER), AtLeast(1.35)),
    bar("published, TCP 4 streams, of direct", Times("tcp4.published", DIRECT), AtLeast(0.97)),
    // Three per cent for noise.
    bar("conn/s beside 2,000 ports, of beside one", TimesOwn("ports-conn.2000", "ports-conn.1"), AtLeast(0.97)),
    bar("conn/s beside 60,000 ports, of beside one", TimesOwn("ports-conn.60000", "ports-conn.1"), AtLeast(0.97)),
    bar("localhost, conn/s, of the container's address", TimesOwn("conn.localhost", "conn.address"), AtLeast(0.97)),
    bar("setup, ms", Value("setup"), AtMost(10.0)),
    bar("teardown, ms", Value("teardown"), AtMost(25.0)),
    bar("setup of the first container, ms", Value("setup-first"), AtMost(150.0)),
    bar("setup of a container alone, of netavark 2.1", Times("lone", PEER), AtMost(1.0)),
    bar("teardown of a container alone, ms", Value("lone-teardown"), AtMost(60.0)),
    bar("range of 10,000 ports, ms more than one port", More("range", "range-one"), AtMost(5.0)),
    bar("2,000 single ports, ms more than one port", More("ports-setup.2000", "ports-setup.1"), AtMost(20.0)),
    bar("60 containers up, 8 at a time, ms", Value("many-up"), AtMost(500.0)),
    bar("failures of these, up and down", Value("many-failed"), AtMost(0.0)),
    bar("DNS, 100 containers, queries/s, of aardvark-dns 2.1", Times("dns.100", PEER), AtLeast(2.0)),
    bar("DNS, 5,000 containers, queries/s, of aardvark-dns 2.1", Times("dns.5000", PEER), AtLeast(2.0)),
    bar("DNS, 5,000 containers, p99, of aardvark-dns 2.1", Times("dns-p99.5000", PEER), AtMost(0.5)),
    bar("DNS, cached forwards, queries/s, of aardvark-dns 2.1", Times("dns-cached.100", PEER), AtLeast(3.0)),
    bar("DNS, a change among 5,000 containers, ms", Value("dns-change.5000"), AtMost(10.0)),
    bar("np_uplink_in, not ours, ns without an empty run", Program("np_uplink_in v4 not ours"), AtMost(30.0)),
    bar("np_uplink_in, established, ns without an empty run", Program("np_uplink_in v4 established"), AtMost(150.0)),
    bar("np_bridge_in, established, ns without an empty run", Program("np_bridge_in v4 established"), AtMost(150.0)),
];

impl Bar {
    pub(crate) fn aim(&self) -> String {
        match self.aim {
            AtLeast(aim) => format!("≥ {aim:.2}"),
            AtMost(aim) => format!("≤ {aim}"),
        }
    }

    pub(crate) fn is_ratio(&self) -> bool {
        matches!(self.measured, Times(..) | TimesOwn(..))
    }

    pub(crate) fn measured(&self, results: &Results, variant: &Variant) -> Option<f64> {
        let own = |figure: &'static str| -> Cell<'_> { (figure, variant.key) };
        match self.measured {
            Times(figure, base) => results.ratio(own(figure), (figure, base)),
            TimesOwn(figure, base) => results.ratio(own(figure), own(base)),
            Value(figure) => results.median(own(figure)),
            More(figure, base) => Some(results.median(own(figure))? - results.median(own(base))?),
            // The programs are equal on every eBPF rung; the kernel's overhead per run is subtracted.
            Program(name) => {
                let own = results.program(name)? - results.program("an empty run")?;
                Some(own).filter(|_| variant.is_ebpf())
            }
        }
    }

    pub(crate) fn is_met(&self, value: f64) -> bool {
        match self.aim {
            AtLeast(aim) => value >= aim,
            AtMost(aim) => value <= aim,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use report::results::Figure;
    use report::variants::ALL;

    #[test]
    fn a_bar_is_met_by_the_ratio_of_this_run() {
        let mut results = Results::default();
        let figure = Figure::more("udp.published", "", "kpps");
        results.add(&figure, DIRECT, 0, 200.0);
        results.add(&figure, "netpath-tcx", 0, 190.0);
        let tcx = ALL.iter().find(|v| v.key == "netpath-tcx").expect("tcx");
        let value = BARS[0].measured(&results, tcx).expect("measured");
        assert!((value - 0.95).abs() < 1e-9 && BARS[0].is_met(value) && !BARS[0].is_met(0.89));
        assert_eq!(None, BARS[1].measured(&results, tcx));
        assert_eq!("≥ 0.90", BARS[0].aim());
    }
}
