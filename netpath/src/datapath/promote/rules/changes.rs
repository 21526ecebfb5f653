//! Changes of rules: sockets with the kernel's notifications, and a poll for those without.

use super::{ipset, legacy};
use crate::netlink::listen;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_XFRM};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::os::fd::OwnedFd;

/// `include/uapi/linux/netfilter/nfnetlink.h, enum nfnetlink_groups`
const NFTABLES: u32 = 7;
/// `include/uapi/linux/xfrm.h, enum xfrm_nlgroups`: security associations, policies.
const IPSEC: [u32; 2] = [3, 4];

/// Non-blocking sockets that can be read when rules of the calling thread's network namespace have changed: nf_tables with the
/// elements of sets, and IPsec policies where the kernel has them.
///
/// # Errors
/// The kernel's.
pub fn watch() -> io::Result<Vec<OwnedFd>> {
    let mut sockets = vec![listen(NETLINK_NETFILTER, &[NFTABLES])?];
    sockets.extend(listen(NETLINK_XFRM, &IPSEC).ok());
    Ok(sockets)
}

/// Changes with legacy tables of iptables and with sets of `ipset` in the calling thread's network namespace: not with
/// counters, and not with elements of sets that have more than 1,000, which forbid promotion where a rule reads them.
///
/// # Errors
/// The kernel's.
pub fn digest() -> io::Result<u64> {
    let mut hasher = DefaultHasher::new();
    legacy::bytes()?.hash(&mut hasher);
    ipset::hash(&mut hasher)?;
    legacy::bridge_rules().hash(&mut hasher);
    Ok(hasher.finish())
}
