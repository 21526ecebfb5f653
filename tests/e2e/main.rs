//! Real traffic through real namespaces: the data *and* the source address that the server saw, on every rung.
//!
//! Each test is a function of the rung; [`on_every_rung`] makes it three tests.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

/// `tcx::name`, `clsact::name`, `nftables::name` and `iptables::name` for each function `name(rung) -> anyhow::Result<()>`.
macro_rules! on_every_rung {
    ($($name:ident),* $(,)?) => {
        on_every_rung!(@ tcx Tcx $($name)*);
        on_every_rung!(@ clsact Clsact $($name)*);
        on_every_rung!(@ nftables Nftables $($name)*);
        on_every_rung!(@ iptables Iptables $($name)*);
    };
    (@ $module:ident $rung:ident $($name:ident)*) => {
        mod $module {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                support::need!(support::need::rung(support::netavark::Rung::$rung));
                super::$name(support::netavark::Rung::$rung)
            })*
        }
    };
}

/// The same for functions `name(way) -> anyhow::Result<()>`, and on the eBPF rungs additionally on the edge path, and on a host
/// that tracks connections.
macro_rules! on_every_way {
    ($($name:ident),* $(,)?) => {
        on_every_way!(@ tcx Tcx Path::Auto, false $($name)*);
        on_every_way!(@ clsact Clsact Path::Auto, false $($name)*);
        on_every_way!(@ nftables Nftables Path::Auto, false $($name)*);
        on_every_way!(@ iptables Iptables Path::Auto, false $($name)*);
        on_every_way!(@ tcx_edge Tcx Path::Edge, false $($name)*);
        on_every_way!(@ clsact_edge Clsact Path::Edge, false $($name)*);
        on_every_way!(@ tcx_edge_tracked Tcx Path::Edge, true $($name)*);
        on_every_way!(@ clsact_edge_tracked Clsact Path::Edge, true $($name)*);
        on_every_way!(@ tcx_offload_tracked Tcx Path::Offload, true $($name)*);
    };
    (@ $module:ident $rung:ident $path:path, $tracked:literal $($name:ident)*) => {
        mod $module {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                support::need!(support::need::rung(support::netavark::Rung::$rung));
                use crate::rig::Path;
                let way = crate::rig::Way { rung: support::netavark::Rung::$rung, path: $path, tracked: $tracked };
                support::need!(way.turn());
                support::need!(way.need());
                super::$name(way)
            })*
        }
    };
}

mod chosen;
mod differential;
mod direct;
mod edge;
mod errors;
mod following;
mod fragments;
mod ladder;
mod lifecycle;
mod link_local;
mod links;
mod local;
mod macvlan;
mod masquerade;
mod matrix;
mod options;
mod policy;
mod protocols;
mod publish;
mod restart;
mod rig;
mod route_source;
mod segments;
mod sysctl_conf;
mod tables;
mod takeover;
mod third_party;
mod tun;
mod upgrade;
mod xdp;
