//! What the promotion of flows asks of the kernel (`ops/promotion/`): the programs that carry them, entries of conntrack, and the
//! judge over the rules of the host.

pub mod rules;

pub(crate) use super::ebpf::carry::{Carrier, Ends, Keys, MOST, NextHop, Scene};
pub(crate) use super::netfilter::adopt::{Entry, entry, make_liberal};
pub(crate) use super::netfilter::nfnetlink::open as conntrack;
