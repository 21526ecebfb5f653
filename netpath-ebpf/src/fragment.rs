//! Fragments: the first one says which ports the others belong to.
//!
//! What arrives before its first fragment goes where the last fragmented datagram between the same two went: there is
//! nowhere to keep a packet, and most pairs have one such conversation. A wrong guess is a datagram that is never whole,
//! as it would be had the fragment been dropped.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::programs::TcContext;
use netpath_common::addr::Be16;
use netpath_common::layout::{PROTO_SCTP, PROTO_TCP, PROTO_UDP, SIDE_UPLINK};

use crate::headers::Wire;
use crate::packet::{Kind, Packet};
use crate::scratch::ScratchMut;
use crate::subprog::subprog;

/// In the key's side: the last datagram of the two, whichever its identification.
const LAST: u8 = 0x80;

subprog! {
    /// Remembers the ports of the first fragment on the scratch.
    pub fn learn() -> u32 as np_learn4, np_learn6 = learn_ports;
}

#[inline(always)]
fn learn_ports<F: Wire>(_ctx: &TcContext, scratch: &mut ScratchMut<F>) -> u32 {
    let packet = &scratch.packet;
    let (tuple, proto, side) = (&packet.tuple, packet.ip.proto, packet.side);
    let ports = tuple.ports();
    let key = F::fragment_key(&tuple.src, &tuple.dst, packet.ip.id, proto, side);
    let _ = F::fragments().insert(&key, &ports, u64::from(BPF_ANY));
    let key = F::fragment_key(&tuple.src, &tuple.dst, 0, proto, side | LAST);
    let _ = F::fragments().insert(&key, &ports, u64::from(BPF_ANY));
    1
}

/// The kind of a later fragment, with the ports that its first one had.
#[inline(always)]
pub fn of_known<F: Wire>(packet: &mut Packet<F>) -> Kind {
    let (proto, side) = (packet.ip.proto, packet.side);
    packet.headers = (packet.ip.l4 - packet.l3) as u32;
    let own = F::fragment_key(&packet.tuple.src, &packet.tuple.dst, packet.ip.id, proto, side);
    let last = F::fragment_key(&packet.tuple.src, &packet.tuple.dst, 0, proto, side | LAST);
    // SAFETY: the references are not kept.
    let Some(&ports) = (unsafe { F::fragments().get(own).or_else(|| F::fragments().get(last)) }) else {
        return Kind::Fragment;
    };
    let [a, b, c, d] = ports.to_ne_bytes();
    (packet.tuple.sport, packet.tuple.dport) = (Be16([a, b]), Be16([c, d]));
    match proto {
        PROTO_TCP => Kind::Tcp,
        PROTO_UDP => Kind::Udp,
        PROTO_SCTP => Kind::Sctp,
        p if p != F::ICMP => Kind::Other,
        _ if side == SIDE_UPLINK => Kind::EchoReply,
        _ => Kind::EchoRequest,
    }
}
