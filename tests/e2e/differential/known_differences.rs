//! Intended differences between the programs and netfilter, with their reasons; for each a step that shows it in every run.

use super::step::{From, Outcome, Step, To, What};
use super::world::{Inside, World};
use nix::errno::Errno;
use std::net::IpAddr;
use support::packet::{ACK, FIN, RST};
use support::topology::Family;
use support::traffic::Dress;

pub(super) struct KnownDifference {
    #[expect(dead_code, reason = "for the reader")]
    pub why: &'static str,
    /// Whether a step may differ in this way, on the host with netfilter.
    pub concerns: fn(&Step, &World<'_>) -> bool,
    /// Whether the outcomes on the programs and on netfilter differ in this way.
    pub holds: fn(&Step, &Outcome, &Outcome) -> bool,
    /// A step that always differs, where concerned.
    pub witness: Step,
}

pub(super) const KNOWN_DIFFERENCES: &[KnownDifference] = &[
    KnownDifference {
        why: "on lo a datagram may be larger than what a container takes, and is not fragmented there: lost. Only of sockets \
              that are bound to an address of the host, all others are led to the container before",
        concerns: |step, _| {
            step.from == From::Host
                && step.bound
                && matches!(step.what, What::Udp(_) | What::Sendto(_))
                && step.bytes > 1_400
        },
        holds: |_, programs, netfilter| {
            matches!(programs, Outcome::Silent | Outcome::Refused)
                && matches!(netfilter, Outcome::Answered { .. } | Outcome::Refused)
        },
        witness: Step { from: From::Host, what: What::Udp(Dress::Plain), bytes: 4_000, bound: true, ..Step::PLAIN },
    },
    KnownDifference {
        why: "netfilter cannot answer for ::1 where br_netfilter has seen the answer first (docs/architecture.md)",
        concerns: |step, netfilter| {
            let localhost = step.to == To::Localhost && step.family == Family::V6;
            step.from == From::Host && is_dial(step) && localhost && netfilter.keeps_localhost6
        },
        holds: |step, programs, netfilter| match programs {
            Outcome::Answered { server, client, keeps_port: true, by_the_asked: true, .. } => {
                *client == gateway(server, step.family) && matches!(netfilter, Outcome::Refused | Outcome::Silent)
            }
            // A port without a server: an ICMP error does not reach ::1.
            _ => false,
        },
        witness: Step { from: From::Host, to: To::Localhost, family: Family::V6, ..Step::PLAIN },
    },
    KnownDifference {
        why: "a socket of the host is led to the container before a packet exists, and so speaks from the bridge's address; \
              netfilter translates a packet that has its address already",
        concerns: |step, _| step.from == From::Host && (is_dial(step) || step.what == What::Aged),
        holds: |step, programs, netfilter| match (programs, netfilter) {
            (
                Outcome::Answered { server, client, keeps_port: true, by_the_asked: true, .. },
                Outcome::Answered { server: same, client: own, keeps_port: true, by_the_asked: true, .. },
            ) => server == same && *client == gateway(server, step.family) && is_the_hosts(*own, step.family),
            // A port without a server: the container sends the error.
            (Outcome::Told { from, kind, .. }, Outcome::Told { from: asked, kind: same, .. }) => {
                let web = Inside::Web.address(step.family);
                kind == same && *from == web && *asked == step.to.address(step.family)
            }
            _ => false,
        },
        witness: Step { from: From::Host, to: To::HostFar, ..Step::PLAIN },
    },
    KnownDifference {
        why: "what may not come in is dropped before its age is looked at; netfilter's policy is in the forward chain, behind \
              that",
        concerns: |step, _| {
            let not_listed = step.port == LISTED && step.to.is_host() && step.from != From::Client;
            step.what == What::Aged && (not_listed || is_outside(step.from) && matches!(step.to, To::In(_)))
        },
        holds: |_, programs, netfilter| *programs == Outcome::Silent && has_aged(netfilter),
        witness: Step { from: From::Far, what: What::Aged, port: LISTED, ..Step::PLAIN },
    },
    KnownDifference {
        why: "the host reports an aged packet as the router that it is, from the link it came by; netfilter makes that the \
              address that was dialled",
        concerns: |step, _| step.what == What::Aged && is_outside(step.from) && step.to.is_host(),
        holds: |step, programs, netfilter| {
            let link = if step.from == From::Far { step.family.host_far() } else { step.family.host() };
            let told = |o: &Outcome, by| matches!(o, Outcome::Told { from, .. } if *from == by) && has_aged(o);
            told(programs, link) && told(netfilter, step.to.address(step.family))
        },
        witness: Step { from: From::Far, what: What::Aged, ..Step::PLAIN },
    },
    KnownDifference {
        why: "a hairpin packet at its end is left to the host that it was sent to, for it cannot be sent on by half: the host \
              refuses it as a packet of its own",
        concerns: |step, _| step.what == What::Aged && matches!(step.from, From::In(_)) && step.to.is_host(),
        holds: |_, programs, netfilter| {
            let refused = Errno::ECONNREFUSED as u8;
            // netfilter's error does not reach the sender.
            matches!(programs, Outcome::Told { kind, .. } if *kind == refused)
                && (has_aged(netfilter) || *netfilter == Outcome::Silent)
        },
        witness: Step { from: From::In(Inside::Other), what: What::Aged, ..Step::PLAIN },
    },
    KnownDifference {
        why: "a packet in the middle of an unknown connection is not masqueraded, and a source that is private does not \
              leave; netfilter takes it for a connection (nf_conntrack_tcp_loose)",
        concerns: |step, _| {
            let leaves = matches!(step.from, From::In(_)) && matches!(step.to, To::Client | To::Outside | To::Far);
            leaves && matches!(step.what, What::Flags(_))
        },
        holds: |_, programs, netfilter| {
            *programs == Outcome::Silent && matches!(netfilter, Outcome::Heard { flags: RST, .. })
        },
        witness: Step {
            from: From::In(Inside::App),
            what: What::Flags(ACK),
            to: To::Client,
            port: 9000,
            ..Step::PLAIN
        },
    },
    KnownDifference {
        why: "a client that is not on a publish's list gets nothing from its port; what netfilter takes for no connection is not \
              asked, and the host refuses it",
        concerns: |step, _| {
            let listed = step.port == LISTED && step.to.is_host() && step.from != From::Client;
            listed && matches!(step.what, What::Flags(_))
        },
        holds: |step, programs, netfilter| {
            let by_the_host = |from| from == step.to.address(step.family);
            *programs == Outcome::Silent && matches!(netfilter, Outcome::Heard { from, .. } if by_the_host(*from))
        },
        witness: Step { from: From::In(Inside::App), what: What::Flags(FIN | ACK), port: LISTED, ..Step::PLAIN },
    },
    KnownDifference {
        why: "the kernel's own: following connections it loses what is sent to the host in pieces with destination options, or \
              finds fault with them",
        concerns: |step, _| {
            let options = matches!(step.what, What::Udp(Dress::Options) | What::Sendto(Dress::Options));
            let large = step.family == Family::V6 && options && step.bytes > 1_400;
            large && is_outside(step.from) && step.to.is_host()
        },
        holds: |_, programs, netfilter| {
            let by_the_host = match programs {
                Outcome::Answered { server, .. } => server == "host",
                other => *other == Outcome::Refused,
            };
            by_the_host && matches!(netfilter, Outcome::Silent | Outcome::Unreachable(Errno::EPROTO))
        },
        witness: Step { family: Family::V6, what: What::Udp(Dress::Options), port: 7777, bytes: 4_000, ..Step::PLAIN },
    },
];

/// Port of the publish with an allow list.
const LISTED: u16 = 8282;

fn is_dial(step: &Step) -> bool {
    matches!(step.what, What::Tcp(_) | What::Udp(_) | What::Sendto(_))
}

/// Beyond an uplink.
fn is_outside(from: From) -> bool {
    matches!(from, From::Client | From::Outside | From::Far)
}

fn has_aged(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Told { kind, .. } if *kind == Errno::EHOSTUNREACH as u8)
}

/// The gateway in the network of the container that runs `server`.
fn gateway(server: &str, family: Family) -> IpAddr {
    match server {
        "other" => family.gateway(8),
        "listed" => family.gateway(9),
        _ => family.gateway(7),
    }
}

fn is_the_hosts(address: IpAddr, family: Family) -> bool {
    let own = [To::Host, To::HostSecond, To::HostFar, To::Gateway(7), To::Gateway(8), To::Gateway(9)];
    own.iter().any(|to| to.address(family) == address)
}
