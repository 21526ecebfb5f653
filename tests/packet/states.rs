//! States of TCP connections (RFC 5382 §5, RFC 7857 §2): what establishes one, what ends one, and which of them make room.

use crate::{at_host, client, host, outside};
use anyhow::{Result, ensure};
use netpath_common::addr::Addr;
use netpath_common::flow::{ESTABLISHED, RESET};
use netpath_common::layout::program::{BRIDGE_IN, UPLINK_IN};
use netpath_common::layout::{FLOWS4, FLOWS6, SIDE_BRIDGE, SIDE_UPLINK};
use netpath_common::reason::Reason;
use netpath_common::tcp::{ESTABLISHED_S, RESET_S, TRANSITORY_S};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use support::packet::{ACK, BRIDGE_MAC, FIN, Frame, Lab, REDIRECTED, RST, SYN, WEB_MAC, container};

fn lab() -> Result<Lab> {
    let mut lab = Lab::new(&[UPLINK_IN, BRIDGE_IN])?;
    lab.publish(1, Addr::ANY, 8080, 7)?;
    Ok(lab)
}

/// One connection, seen at both hooks.
#[derive(Clone, Copy, Debug)]
struct Connection {
    outside: (IpAddr, u16),
    host: (IpAddr, u16),
    inside: (IpAddr, u16),
    /// Begun by the container.
    masqueraded: bool,
}

impl Connection {
    /// By a client to the published port.
    fn published(client: (IpAddr, u16), v4: bool) -> Self {
        Self { outside: client, host: (host(v4), 8080), inside: (container(7, v4), 80), masqueraded: false }
    }

    fn masqueraded(port: u16, v4: bool) -> Self {
        let (server, host, inside) = ((outside(v4), 443), (host(v4), port), (container(7, v4), port));
        Self { outside: server, host, inside, masqueraded: true }
    }

    /// Of both kinds.
    fn both(v4: bool) -> [Self; 2] {
        [Self::published((client(v4), 40_000), v4), Self::masqueraded(40_001, v4)]
    }

    /// Its segment from outside, or from the container.
    fn segment(&self, inward: bool, flags: u8) -> Frame {
        if inward {
            at_host(Frame::tcp(self.outside, self.host, flags))
        } else {
            Frame::tcp(self.inside, self.outside, flags).macs(BRIDGE_MAC, WEB_MAC)
        }
    }

    fn hook(lab: &Lab, inward: bool) -> (&'static str, u32) {
        if inward { (UPLINK_IN, lab.uplink) } else { (BRIDGE_IN, lab.bridge) }
    }

    fn send(&self, lab: &mut Lab, inward: bool, frame: &Frame) -> Result<()> {
        let at = Self::hook(lab, inward);
        let action = lab.action(at.0, at.1, &frame.bytes())?;
        ensure!(action == REDIRECTED, "{self:?}: {frame:?} gives {action}");
        Ok(())
    }

    /// SYN and its answer.
    fn open(&self, lab: &mut Lab) -> Result<()> {
        let first = !self.masqueraded;
        self.send(lab, first, &self.segment(first, SYN))?;
        self.send(lab, !first, &self.segment(!first, SYN | ACK))
    }

    fn establish(&self, lab: &mut Lab) -> Result<()> {
        self.open(lab)?;
        self.send(lab, !self.masqueraded, &self.segment(!self.masqueraded, ACK))
    }

    /// Whether its next segment in that direction belongs to the flow, rather than to another that it begins.
    fn goes_on(&self, lab: &mut Lab, inward: bool) -> Result<bool> {
        let at = Self::hook(lab, inward);
        let out = lab.run(at.0, at.1, &self.segment(inward, ACK).bytes())?;
        Ok(out.counted == [(Reason::Redirected, 1)])
    }
}

#[test]
fn a_connection_is_established_when_its_originator_has_acknowledged_the_answer() -> Result<()> {
    let mut lab = lab()?;
    for v4 in [true, false] {
        for connection in Connection::both(v4) {
            let reply = connection.masqueraded;
            lab.forget()?;
            connection.establish(&mut lab)?;
            lab.age_flows(v4, ESTABLISHED_S)?;
            assert!(connection.goes_on(&mut lab, reply)?, "idle for two hours: {connection:?}");
            lab.age_flows(v4, ESTABLISHED_S + 1)?;
            assert!(!connection.goes_on(&mut lab, reply)?, "and more: {connection:?}");

            lab.forget()?;
            connection.open(&mut lab)?;
            // A guessed acknowledgement, as a flood sends them.
            let first = !connection.masqueraded;
            let guess = connection.segment(first, ACK).numbered(2, 0x7000_0000);
            connection.send(&mut lab, first, &guess)?;
            assert!(lab.states(v4, SIDE_UPLINK)?.iter().all(|s| s & ESTABLISHED == 0), "{connection:?}");
            lab.age_flows(v4, TRANSITORY_S + 1)?;
            assert!(!connection.goes_on(&mut lab, reply)?, "half-open for four minutes: {connection:?}");
        }
    }
    Ok(())
}

#[test]
fn a_reset_or_fin_with_a_wrong_number_ends_no_connection_and_the_right_one_does() -> Result<()> {
    let mut lab = lab()?;
    for v4 in [true, false] {
        for connection in Connection::both(v4) {
            for inward in [true, false] {
                let what = format!("inward {inward}, {connection:?}");
                lab.forget()?;
                connection.establish(&mut lab)?;
                let before = lab.states(v4, SIDE_UPLINK)?;
                for (flags, seq) in [(RST, 3), (RST, 1), (RST, 0x8000_0000), (FIN | ACK, 0x4000_0000), (FIN | ACK, 1)] {
                    // The receiver decides what to make of it.
                    connection.send(&mut lab, inward, &connection.segment(inward, flags).numbered(seq, 2))?;
                }
                assert_eq!(before, lab.states(v4, SIDE_UPLINK)?, "{what}");
                lab.age_flows(v4, RESET_S + TRANSITORY_S)?;
                for there in [true, false] {
                    assert!(connection.goes_on(&mut lab, there)?, "after forged ones: {what}");
                }
                connection.send(&mut lab, inward, &connection.segment(inward, RST))?;
                for side in [SIDE_UPLINK, SIDE_BRIDGE] {
                    assert!(lab.states(v4, side)?.iter().all(|s| s & RESET != 0), "side {side}: {what}");
                }
                lab.age_flows(v4, RESET_S + 1)?;
                assert!(!connection.goes_on(&mut lab, connection.masqueraded)?, "reset: {what}");
            }
        }
    }
    Ok(())
}

/// The answers count as use for the kernel's LRU.
#[test]
fn a_flood_of_answered_half_open_connections_ends_no_idle_one() -> Result<()> {
    let mut lab = lab()?;
    for (v4, size) in [(true, FLOWS4), (false, FLOWS6)] {
        lab.forget()?;
        let idle: Vec<Connection> = (0..20)
            .flat_map(|n| {
                let client = Connection::published((client(v4), 20_000 + n), v4);
                [client, Connection::masqueraded(30_000 + n, v4)]
            })
            .collect();
        for connection in &idle {
            connection.establish(&mut lab)?;
        }
        // Three times as many as the table holds: 100,000 on IPv4.
        for n in 0..size / 2 * 3 + 1_696 {
            let [_, a, b, c] = n.to_be_bytes();
            let from: IpAddr = if v4 {
                Ipv4Addr::new(100, a, b, c).into()
            } else {
                Ipv6Addr::new(0x2001, 0xdb8, 0xffff, a.into(), 0, 0, b.into(), c.into()).into()
            };
            Connection::published((from, 1_024), v4).open(&mut lab)?;
        }
        let mut ended = Vec::new();
        for connection in &idle {
            for inward in [true, false] {
                if !connection.goes_on(&mut lab, inward)? {
                    ended.push((connection, inward));
                }
            }
        }
        assert!(ended.is_empty(), "v4 {v4}: {} of {} ended: {ended:?}", ended.len(), idle.len() * 2);
    }
    Ok(())
}
