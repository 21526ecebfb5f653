//! The only shared helpers of the black-box tests: topology, packets, residue, needs, traffic, podman.

pub mod backend;
pub mod bpf;
pub mod dice;
pub mod echo;
pub mod example;
pub mod filter;
pub mod foreign;
pub mod frames;
pub mod generator;
pub mod hop;
pub mod host;
pub mod load;
pub mod maps;
pub mod need;
pub mod netavark;
pub mod object;
pub mod offload;
pub mod packet;
pub mod podman;
pub mod raw;
pub mod refuse_bpf;
pub mod residue;
pub mod steady;
pub mod topology;
pub mod traffic;
pub mod tun;
