//! Promotion: flows that netfilter has decided about are carried by the programs, past bridge and netfilter.

pub mod rules;
