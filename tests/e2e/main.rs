//! Real traffic through real namespaces: the data *and* the source address that the server saw, on every rung.
//!
//! Each test is a function of the rung; [`on_every_rung`] makes it three tests.

/// `tcx::name`, `clsact::name` and `iptables::name` for each function `name(rung) -> anyhow::Result<()>`.
macro_rules! on_every_rung {
    ($($name:ident),* $(,)?) => {
        on_every_rung!(@ tcx Tcx $($name)*);
        on_every_rung!(@ clsact Clsact $($name)*);
        on_every_rung!(@ iptables Iptables $($name)*);
    };
    (@ $module:ident $rung:ident $($name:ident)*) => {
        mod $module {
            $(#[test]
            fn $name() -> anyhow::Result<()> {
                kit::need!(kit::need::rung(kit::netavark::Rung::$rung));
                super::$name(kit::netavark::Rung::$rung)
            })*
        }
    };
}

mod chosen;
mod lifecycle;
mod local;
mod masquerade;
mod matrix;
mod options;
mod policy;
mod publish;
mod rig;
mod tun;
