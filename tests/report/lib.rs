//! Medians, ratios, tables and charts of measurements: for the bench (tests/bench) and for the measurements between virtual
//! machines (xtask/src/vm/perf). It measures nothing by itself.

pub mod page;
pub mod ratios;
pub mod results;
pub mod run;
pub mod stats;
pub mod svg;
pub mod table;
pub mod variants;
