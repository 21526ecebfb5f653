//! The eBPF rung.

pub mod compile;
