//! Fragments: the first fragment has the ports of the later ones.
//!
//! A later fragment that arrives before its first one is assigned to the last fragmented datagram between the same two
//! hosts: packets cannot be queued, and most pairs of hosts have one such conversation. After a wrong guess the datagram
//! stays incomplete, as after a drop.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::programs::TcContext;
use netpath_common::addr::Be16;
use netpath_common::layout::{PROTO_SCTP, PROTO_TCP, PROTO_UDP, SIDE_UPLINK};

use crate::headers::Wire;
use crate::parsed::{Kind, Packet};
use crate::scratch::ScratchMut;
use crate::subprog::subprog;

/// Flag in the key's side: the last datagram between the two hosts, independent of its identification.
const LAST: u8 = 0x80;

subprog! {
    /// Stores the ports of the first fragment in scratch.
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

/// The kind of a later fragment, with the ports of its first one.
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
