//! Where the XDP program is wanted.

use crate::model::error::Result;
use crate::model::{HostLink, HostView, Network, Xdp};

/// Drivers with which `netpath.xdp=auto` is on, because the bench was faster: none yet. Not veth: each frame is an
/// skb first and becomes one again, and the sender loses TSO (docs/performance.md).
const FASTER: &[&str] = &[];

/// The setting that enables the program at this uplink; `None`: there is none.
pub(super) fn asked<'a>(networks: impl Iterator<Item = &'a Network>, uplink: &HostLink) -> Option<Xdp> {
    let faster = uplink.driver.as_deref().is_some_and(|d| FASTER.contains(&d));
    strongest(networks.filter(|n| !n.internal).map(|n| n.xdp), faster)
}

/// One network that enables it suffices: the program does nothing that the classifiers would not do.
fn strongest(all: impl Iterator<Item = Xdp>, faster: bool) -> Option<Xdp> {
    let mut asked = None;
    for xdp in all {
        match xdp {
            Xdp::On => return Some(Xdp::On),
            Xdp::Auto if faster => asked = Some(Xdp::Auto),
            Xdp::Auto | Xdp::Off => {}
        }
    }
    asked
}

/// Whether any uplink of the host can have the program for this network.
///
/// # Errors
/// `host` cannot be read; it is read only if necessary.
pub(super) fn is_on_somewhere(network: &Network, host: &dyn Fn() -> Result<HostView>) -> Result<bool> {
    if network.internal || network.xdp == Xdp::Off || (network.xdp == Xdp::Auto && FASTER.is_empty()) {
        return Ok(false);
    }
    Ok(network.xdp == Xdp::On || host()?.links.iter().any(|l| asked(std::iter::once(network), l).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_network_that_has_it_on_is_enough_and_auto_takes_what_is_faster() {
        let of = |all: &[Xdp], faster| strongest(all.iter().copied(), faster);
        for faster in [false, true] {
            assert_eq!(None, of(&[], faster));
            assert_eq!(None, of(&[Xdp::Off], faster));
            assert_eq!(Some(Xdp::On), of(&[Xdp::Off, Xdp::Auto, Xdp::On], faster));
            assert_eq!(faster.then_some(Xdp::Auto), of(&[Xdp::Off, Xdp::Auto], faster));
        }
    }
}
