//! Notifications of changes in nf_tables.

use crate::netlink::listen;
use netlink_sys::protocols::NETLINK_NETFILTER;
use std::io;
use std::os::fd::OwnedFd;

/// `include/uapi/linux/netfilter/nfnetlink.h, enum nfnetlink_groups`
const NFNLGRP_NFTABLES: u32 = 7;

/// A socket that can be read when rules of the calling thread's namespace have changed. It does not block. Legacy tables
/// send no notification.
///
/// # Errors
/// A kernel without nfnetlink.
pub fn watch() -> io::Result<OwnedFd> {
    listen(NETLINK_NETFILTER, &[NFNLGRP_NFTABLES])
}

/// Whether a notification concerns more than elements of sets. Those change no rule, and programs such as fail2ban change
/// them often. A datagram may hold many messages.
pub fn concerns_rules(datagram: &[u8]) -> bool {
    /// `include/uapi/linux/netfilter/nf_tables.h, enum nf_tables_msg_types`: NEWSETELEM to NEWGEN, which ends each commit, and
    /// DESTROYSETELEM.
    const OF_ELEMENTS: [u8; 5] = [12, 13, 14, 15, 30];
    let mut rest = datagram;
    while let Some(length) = rest.first_chunk().map(|l| u32::from_ne_bytes(*l) as usize) {
        // The lower byte of the type; the upper one is the subsystem.
        let kind = rest.get(4..6).and_then(|t| t.first_chunk()).map(|t| u16::from_ne_bytes(*t) as u8);
        if length < 16 || length > rest.len() || kind.is_none_or(|kind| !OF_ELEMENTS.contains(&kind)) {
            return true;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    !rest.is_empty() || datagram.is_empty()
}

#[cfg(test)]
mod tests {
    use super::concerns_rules;

    fn message(kind: u8) -> Vec<u8> {
        let mut bytes = vec![0; 20];
        bytes[..4].copy_from_slice(&20_u32.to_ne_bytes());
        bytes[4..6].copy_from_slice(&(0x0a00 | u16::from(kind)).to_ne_bytes());
        bytes
    }

    #[test]
    fn elements_of_sets_are_no_rules_and_an_unreadable_message_may_be_one() {
        let (rule, element, generation) = (message(6), message(12), message(15));
        assert!(!concerns_rules(&element) && !concerns_rules(&[element.clone(), generation.clone()].concat()));
        assert!(concerns_rules(&rule) && concerns_rules(&[element.clone(), rule, generation].concat()));
        assert!(concerns_rules(&[]) && concerns_rules(&element[..17]), "cut off");
    }
}
