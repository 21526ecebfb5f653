//! The only shared helpers of the black-box tests: topology, packets, residue, needs, traffic, podman.

pub mod host;
pub mod need;
pub mod netavark;
pub mod refuse_bpf;
pub mod topology;
pub mod traffic;
