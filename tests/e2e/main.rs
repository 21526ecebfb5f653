//! Real traffic through real namespaces: the data *and* the source address that the server saw, on every rung.
//!
//! Most tests are functions of the rung, or of the way of packets through the host; a macro makes one test of each for every rung
//! or way.

#![allow(unused_crate_dependencies, reason = "checked in support/lib.rs, for all targets of the package")]

#[macro_use]
extern crate support;

/// As `on_every_rung!`, for functions `name(way) -> anyhow::Result<()>`: additionally on a host that tracks connections, and with
/// legacy iptables.
macro_rules! on_every_way {
    ($($name:ident),* $(,)?) => {
        const GROUP: &[&str] = &[$(stringify!($name)),*];
        on_every_way!(@ tcx Tcx Path::Auto, false $($name)*);
        on_every_way!(@ clsact Clsact Path::Auto, false $($name)*);
        on_every_way!(@ nftables Nftables Path::Auto, false $($name)*);
        on_every_way!(@ iptables Iptables Path::Auto, false $($name)*);
        on_every_way!(@ tcx_offload_tracked Tcx Path::Offload, true $($name)*);
        on_every_way!(@ nftables_tracked Nftables Path::Auto, true $($name)*);
        on_every_way!(@ iptables_tracked Iptables Path::Auto, true $($name)*);
        on_every_way!(@ iptables_legacy IptablesLegacy Path::Auto, false $($name)*);
    };
    (@ $module:ident $rung:ident $path:path, $tracked:literal $($name:ident)*) => {
        mod $module {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                use crate::rig::{Path, Way};
                let way = Way { rung: support::netavark::Rung::$rung, path: $path, tracked: $tracked };
                need!(support::need::rung(way.rung), way.turn(stringify!($name), super::GROUP), way.need());
                super::$name(way)
            })*
        }
    };
}

mod absent_address;
mod big_tcp;
mod chosen;
mod dhcp;
mod differential;
mod direct;
mod errors;
mod families;
mod following;
mod fragments;
mod hot_switch;
mod interim;
mod ipvlan;
mod ladder;
mod lifecycle;
mod link_local;
mod links;
mod local;
mod macvlan;
mod masquerade;
mod matrix;
mod names;
mod new_uplink;
mod options;
mod policy;
mod priority;
mod promote;
mod promote_shown;
mod protocols;
mod publish;
mod reload;
mod restart;
mod rig;
mod rootless;
mod route_source;
mod routes;
mod routing_container;
mod segments;
mod states;
mod sysctl_conf;
mod tables;
mod takeover;
mod third_party;
mod tun;
mod unmanaged;
mod unnumbered;
mod upgrade;
mod xdp;

fn main() -> std::process::ExitCode {
    support::harness::run()
}
