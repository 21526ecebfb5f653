//! The shared helpers of the black-box tests: topology, packets, residue, requirements, traffic, podman.

// Used by vm_node alone.
use serde as _;

pub mod agent;
pub mod backend;
pub mod bpf;
pub mod denied;
pub mod dhcp;
pub mod dns;
pub mod document;
pub mod echo;
pub mod example;
pub mod expect;
pub mod filter;
pub mod frames;
pub mod generator;
pub mod harness;
pub mod holder;
pub mod hop;
pub mod host;
pub mod incumbent;
pub mod load;
pub mod long_lived;
pub mod maps;
pub mod need;
pub mod neighbour;
pub mod netavark;
pub mod object;
pub mod offload;
pub mod packet;
pub mod packet_socket;
pub mod podman;
pub mod raw;
pub mod residue;
pub mod rng;
pub mod third_party;
pub mod topology;
pub mod traffic;
pub mod tun;

/// Shadows the compiler's own in suites that say `#[macro_use] extern crate support`.
pub use test_macro::test;
