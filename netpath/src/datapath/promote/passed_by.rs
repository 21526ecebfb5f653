//! What sees or counts packets on this host, and does not see those that programs carry.

use super::rules::Ruleset;
use crate::model::Desired;
use std::collections::BTreeMap;

/// One sentence each; empty: this host has nothing of the kind.
pub fn passed_by(desired: &Desired, ruleset: &Ruleset) -> Vec<String> {
    let mut found = Vec::new();
    // Of the calling thread's network namespace.
    let sockets = std::fs::read_to_string("/proc/thread-self/net/packet").unwrap_or_default();
    let bridges: BTreeMap<u32, String> = desired
        .bridged()
        .filter_map(|(record, links)| Some((links.bridge_index, record.network.bridge()?.to_string())))
        .collect();
    for (index, bridge) in bridges {
        if captures(&sockets, index) {
            found.push(format!("a packet capture at {bridge} (AF_PACKET)"));
        }
    }
    match ruleset.counters() {
        0 => {}
        1 => found.push("the counter of 1 rule".to_owned()),
        n => found.push(format!("counters of {n} rules")),
    }
    let accounts = std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_acct");
    if accounts.is_ok_and(|value| value.trim() == "1") {
        found.push("packets and bytes of connections (nf_conntrack_acct)".to_owned());
    }
    found
}

/// Whether a packet socket is bound to this interface (`net/packet/af_packet.c, packet_seq_show()`).
fn captures(sockets: &str, index: u32) -> bool {
    let interface = |line: &str| line.split_whitespace().nth(4)?.parse().ok();
    sockets.lines().filter_map(interface).any(|of: u32| of == index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_is_found_by_its_interface() {
        let sockets = "sk       RefCnt Type Proto  Iface R Rmem   User   Inode\n\
                       0000000000000000 3      3    0003   7     1 0      0      81234 \n";
        assert!(captures(sockets, 7));
        assert!(!captures(sockets, 3));
        assert!(!captures("", 0));
    }
}
