//! np_lo_in: clients of the host that bind a source address.

use crate::{STACK, becomes, cut_everywhere, gateway, host, into, ip, shapes, stays};
use anyhow::Result;
use netpath_common::addr::Addr;
use netpath_common::layout::program::{BRIDGE_IN, LO_IN};
use netpath_common::reason::Reason;
use support::packet::{ACK, BRIDGE_MAC, Frame, Lab, SYN, WEB_MAC, container, mapped};

const LO: u32 = 1;
const NO_MAC: support::packet::Mac = [0; 6];

#[test]
fn a_bound_client_reaches_the_container_through_lo_and_back() -> Result<()> {
    let mut lab = Lab::new(&[LO_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    let bridge = lab.bridge;
    for (v4, address) in [(true, ip("127.0.0.1")), (true, host(true)), (false, ip("::1")), (false, host(false))] {
        let (from, to, web) = ((address, 40_000), (address, 8080), (container(7, v4), 80));
        let seen = (gateway(7, v4), 40_000);
        for sent in [Frame::tcp(from, to, SYN), Frame::udp(from, to)] {
            for (shape, sent) in shapes(&sent) {
                lab.forget()?;
                let what = format!("{shape}: {sent:?}");
                let sent = sent.macs(NO_MAC, NO_MAC);
                let got = into(&sent.becomes(seen, web), WEB_MAC, BRIDGE_MAC);
                becomes(&mut lab, &what, (LO_IN, LO), &sent, &got, Reason::FlowLoopback)?;
                becomes(&mut lab, &what, (LO_IN, LO), &sent, &got, Reason::Redirected)?;
                let answer = Frame::tcp(web, seen, SYN | ACK).macs(BRIDGE_MAC, WEB_MAC);
                if matches!(sent.l4, support::packet::L4::Tcp { .. }) {
                    let back = answer.becomes(to, from).macs(NO_MAC, NO_MAC);
                    becomes(&mut lab, &what, (BRIDGE_IN, bridge), &answer, &back, Reason::Redirected)?;
                }
            }
            cut_everywhere(&mut lab, "on lo", (LO_IN, LO), &sent.macs(NO_MAC, NO_MAC))?;
        }
    }
    Ok(())
}

/// A published range may include the port of a client that uses a service of its own host.
#[test]
fn an_answer_to_a_socket_of_the_host_is_no_packet_to_a_published_port() -> Result<()> {
    let mut lab = Lab::new(&[LO_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    for local in [ip("127.0.0.1"), ip("::1")] {
        let answer = Frame::udp((local, 9_999), (local, 8080)).macs(NO_MAC, NO_MAC);
        let socket = std::net::UdpSocket::bind((local, 8080))?;
        socket.connect((local, 9_999))?;
        stays(&mut lab, "an answer", (LO_IN, LO), &answer.bytes(), STACK, Reason::NotOurs)?;
        drop(socket);
        assert_ne!(STACK, lab.action(LO_IN, LO, &answer.bytes())?, "an answer without a flow is taken for a request");
    }
    Ok(())
}

#[test]
fn other_traffic_on_lo_is_left_alone() -> Result<()> {
    let mut lab = Lab::new(&[LO_IN])?;
    lab.publish(1, mapped(ip("127.0.0.1")), 8080, 7)?;
    let local = ip("127.0.0.1");
    for (what, frame) in [
        ("another port", Frame::tcp((local, 40_000), (local, 8081), SYN)),
        ("another address", Frame::tcp((local, 40_000), (ip("127.0.0.2"), 8080), SYN)),
        ("the middle of a connection", Frame::tcp((local, 40_000), (local, 8080), ACK)),
    ] {
        stays(&mut lab, what, (LO_IN, LO), &frame.macs(NO_MAC, NO_MAC).bytes(), STACK, Reason::NotOurs)?;
    }
    Ok(())
}
