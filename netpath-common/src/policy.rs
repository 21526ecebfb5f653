//! Which networks may reach each other, and which packets fit a link.

use crate::layout::{NET_INTERNAL, NET_ISOLATED, NET_STRICT};

/// Whether packets pass from a network with the flags `from` to another with the flags `to`. Symmetric, so that a
/// reply to a packet that passed is never dropped.
#[inline(always)]
pub const fn may_pass(from: u32, to: u32) -> bool {
    (from | to) & (NET_STRICT | NET_INTERNAL) == 0 && from & to & NET_ISOLATED == 0
}

/// Whether an IP packet of `len` bytes fits a link of `mtu`. A GSO packet (`gso_size` bytes of payload each, behind
/// `headers` bytes) is measured by its segments.
#[inline(always)]
pub const fn fits(len: u32, gso_size: u32, headers: u32, mtu: u32) -> bool {
    len <= mtu || (gso_size != 0 && gso_size.saturating_add(headers) <= mtu)
}

/// The MTU of a device and of a route through it, 0 = the route has none.
#[inline(always)]
pub const fn smaller_mtu(device: u16, route: u16) -> u16 {
    if route == 0 || route > device { device } else { route }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn isolation_follows_the_options_and_is_symmetric() {
        for (a, b, pass) in [
            (0, 0, true),
            (NET_ISOLATED, 0, true),
            (NET_ISOLATED, NET_ISOLATED, false),
            (NET_STRICT, 0, false),
            (NET_STRICT, NET_ISOLATED, false),
            (NET_INTERNAL, 0, false),
            (crate::layout::NET_MASQUERADE, crate::layout::NET_MASQUERADE, true),
        ] {
            assert_eq!(pass, may_pass(a, b), "{a} to {b}");
            assert_eq!(pass, may_pass(b, a), "{b} to {a}");
        }
    }

    #[test]
    fn a_route_narrows_its_device() {
        assert_eq!((1300, 1500, 1500), (smaller_mtu(1500, 1300), smaller_mtu(1500, 0), smaller_mtu(1500, 9000)));
    }

    #[test]
    fn a_segmented_packet_is_measured_by_its_segments() {
        assert!(fits(1500, 0, 40, 1500));
        assert!(!fits(1501, 0, 40, 1500));
        assert!(fits(65_000, 1448, 52, 1500));
        assert!(!fits(65_000, 1449, 52, 1500));
        assert!(!fits(65_000, u32::MAX, 52, 1500));
    }
}
