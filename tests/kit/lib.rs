//! The only shared helpers of the black-box tests: topology, packets, residue, needs, traffic, podman.
