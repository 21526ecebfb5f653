//! Shared by the control plane and the eBPF programs: the layout of the maps, and the pure decisions about packets.
//! `no_std`, no allocation, no panic on any input; everything here is tested on the host.
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod checksum;
pub mod family;
pub mod flow;
pub mod layout;
pub mod nat_plan;
pub mod policy;
pub mod ports;
pub mod reason;
pub mod rule;
pub mod tcp;
