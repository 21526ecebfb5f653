//! IPsec policies.

use crate::datapath::netfilter::nftables::raw::Raw;
use crate::netlink::Netlink;
use std::io;

/// `include/uapi/linux/netlink.h`
const NETLINK_XFRM: isize = 6;
/// XFRM_MSG_GETPOLICY
const GET_POLICY: u16 = 0x15;
/// `struct xfrm_userpolicy_id`, of which a dump reads nothing.
const QUESTION: usize = 64;

/// That there are policies in the namespace of the calling thread, in words. `None`: no policy, or no IPsec in the kernel.
///
/// # Errors
/// The kernel's.
pub(super) fn policies() -> io::Result<Option<String>> {
    let list = Netlink::open(NETLINK_XFRM).and_then(|mut n| n.dump(Raw::plain(GET_POLICY, vec![0; QUESTION])));
    match list {
        Ok(list) => Ok((!list.is_empty()).then(|| format!("{} policies of IPsec (ip xfrm policy)", list.len()))),
        Err(e) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => Ok(None),
        Err(e) => Err(e),
    }
}
