//! Requirements of a machine as values: how to detect each, and the Debian package that provides it.

use std::path::{Path, PathBuf};

pub(crate) struct Need {
    /// Shown to users.
    pub what: &'static str,
    pub seen_by: Probe,
    /// Debian's package.
    pub apt: &'static str,
}

pub(crate) enum Probe {
    /// A program in PATH or in the system's sbin directories.
    Program(&'static str),
    /// Any of these files.
    AnyFile(&'static [&'static str]),
}

impl Need {
    pub(crate) fn is_met(&self) -> bool {
        match self.seen_by {
            Probe::Program(name) => program(name).is_some(),
            Probe::AnyFile(paths) => paths.iter().any(|p| Path::new(p).exists()),
        }
    }
}

const fn program_of(what: &'static str, name: &'static str, apt: &'static str) -> Need {
    Need { what, seen_by: Probe::Program(name), apt }
}

/// Required by every build.
pub(crate) const BUILD: &[Need] = &[
    program_of("C compiler", "cc", "gcc"),
    Need { what: "C library headers", seen_by: Probe::AnyFile(&["/usr/include/stdio.h"]), apt: "libc6-dev" },
    Need {
        what: "certificates of the crate registry",
        seen_by: Probe::AnyFile(&[
            "/etc/ssl/certs/ca-certificates.crt",
            "/etc/pki/tls/certs/ca-bundle.crt",
            "/etc/ssl/cert.pem",
        ]),
        apt: "ca-certificates",
    },
];

/// Programs that the tests and the demo call besides netpath itself.
pub(crate) const TEST: &[Need] = &[
    program_of("iproute2", "ip", "iproute2"),
    program_of("nftables", "nft", "nftables"),
    program_of("iptables", "iptables", "iptables"),
    program_of("busybox", "busybox", "busybox-static"),
    program_of("iperf3", "iperf3", "iperf3"),
    program_of("conntrack", "conntrack", "conntrack"),
    program_of("DHCP server", "dnsmasq", "dnsmasq-base"),
    // Modules of guest kernels are compressed with it.
    program_of("xz", "xz", "xz-utils"),
];

/// A real Podman, with the parts that netpath replaces.
pub(crate) const ENGINE: &[Need] = &[
    program_of("podman", "podman", "podman"),
    program_of("crun", "crun", "crun"),
    program_of("conmon", "conmon", "conmon"),
    // Rootless Podman before 5.
    program_of("slirp4netns", "slirp4netns", "slirp4netns"),
    Need {
        what: "netavark",
        seen_by: Probe::AnyFile(&["/usr/lib/podman/netavark", "/usr/libexec/podman/netavark"]),
        apt: "netavark",
    },
    Need {
        what: "aardvark-dns",
        seen_by: Probe::AnyFile(&["/usr/lib/podman/aardvark-dns", "/usr/libexec/podman/aardvark-dns"]),
        apt: "aardvark-dns",
    },
];

/// Required to build the Netavark that the bench compares with.
pub(crate) const PEER: &[Need] =
    &[program_of("protobuf compiler", "protoc", "protobuf-compiler"), program_of("dnsperf", "dnsperf", "dnsperf")];

/// Finds a program in PATH, then in the system's sbin directories.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    in_path(name).next().or_else(|| {
        ["/usr/local/sbin", "/usr/sbin", "/sbin"].iter().map(|d| Path::new(d).join(name)).find(|p| p.is_file())
    })
}

/// Every program of this name in PATH, in order.
pub(crate) fn in_path(name: &str) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found: Vec<_> = std::env::split_paths(&path).map(|d| d.join(name)).filter(|p| p.is_file()).collect();
    found.into_iter()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_and_a_missing_one_is_not() {
        assert!(program("sh").is_some());
        assert!(program("no-such-program-anywhere").is_none());
        assert!(!Need { what: "", seen_by: Probe::AnyFile(&["/no/such/file"]), apt: "" }.is_met());
    }
}
