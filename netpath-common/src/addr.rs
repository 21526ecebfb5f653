//! Addresses and ports in network byte order. The byte order is part of the type.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// A port or other 16-bit field in network byte order. Alignment 1: it may be read from any packet offset.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
pub struct Be16(pub [u8; 2]);

impl Be16 {
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be_bytes())
    }

    /// The value in host byte order.
    #[inline(always)]
    pub const fn value(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

/// An IPv4 address in network byte order.
pub type V4 = [u8; 4];
/// An IPv6 address in network byte order.
pub type V6 = [u8; 16];

/// A hardware address.
pub type Mac = [u8; 6];

/// Zero stands for an unknown address.
#[inline(always)]
pub const fn is_known(mac: &Mac) -> bool {
    difference(mac, &[0; 6]) != 0
}

/// 0 if both are the same. Word by word: `==` on byte arrays calls `memcmp` in programs.
#[inline(always)]
pub const fn difference(a: &Mac, b: &Mac) -> u16 {
    (word(a, 0) ^ word(b, 0)) | (word(a, 2) ^ word(b, 2)) | (word(a, 4) ^ word(b, 4))
}

#[inline(always)]
const fn word(mac: &Mac, at: usize) -> u16 {
    u16::from_ne_bytes([mac[at], mac[at + 1]])
}

/// An IPv6 address, or an IPv4 address mapped into `::ffff:0:0/96` (RFC 4291 §2.5.5.2): one key for both families in
/// the maps that are read only when a flow begins.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// In rules: every address of the host.
    pub const ANY: Self = Self([0; 16]);

    #[inline(always)]
    pub const fn v4(a: V4) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]])
    }

    #[inline(always)]
    pub const fn v6(a: V6) -> Self {
        Self(a)
    }

    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        let a = &self.0;
        a[10] == 0xff && a[11] == 0xff && a[0] | a[1] | a[2] | a[3] | a[4] | a[5] | a[6] | a[7] | a[8] | a[9] == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v4_address_is_mapped_and_recognised() {
        assert!(Addr::v4([192, 0, 2, 1]).is_v4());
        assert!(!Addr::v6([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]).is_v4());
        assert!(!Addr::ANY.is_v4());
    }

    #[test]
    fn a_port_keeps_its_value_through_network_order() {
        assert_eq!([0x1f, 0x90], Be16::new(8080).0);
        assert_eq!(8080, Be16::new(8080).value());
    }
}
