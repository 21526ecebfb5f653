//! Matches and targets of iptables, in legacy tables and in nf_tables alike. Layouts are those of
//! `include/uapi/linux/netfilter/xt_*.h` on 64-bit machines.

use super::packet::{Packet, port};
use super::table::Verdict;
use super::value::{Answer, Bits};

/// Why packets of one flow differ for a match, or what a target does with each packet.
const VARYING: [(&str, &str); 46] = [
    ("bpf", "a BPF program reads the packet"),
    ("cgroup", "it reads the socket of a packet"),
    ("cluster", "it depends on chance"),
    ("connbytes", "it depends on how much the connection has carried"),
    ("connlimit", "it counts connections"),
    ("cpu", "it depends on the processor"),
    ("dscp", "it reads DSCP"),
    ("ecn", "it reads ECN"),
    ("hashlimit", "it limits a rate"),
    ("hl", "it reads the hop limit"),
    ("length", "it depends on the size of a packet"),
    ("limit", "it limits a rate"),
    ("mac", "it reads addresses of the link layer"),
    ("nfacct", "it may have a quota"),
    ("osf", "it reads the fingerprint of a packet"),
    ("quota", "it has a quota"),
    ("rateest", "it depends on a rate"),
    ("recent", "it counts packets"),
    ("socket", "it reads the socket of a packet"),
    ("statistic", "it depends on chance"),
    ("string", "it reads the payload of a packet"),
    ("tcpmss", "it reads options of TCP"),
    ("time", "it depends on the time"),
    ("tos", "it reads the type of service"),
    ("ttl", "it reads the time to live"),
    ("u32", "it reads the payload of a packet"),
    ("AUDIT", "it logs each packet"),
    ("CHECKSUM", "it changes each packet"),
    ("CLASSIFY", "it sets the priority of each packet"),
    ("CT", "it sets how a packet is tracked"),
    ("DSCP", "it changes DSCP"),
    ("HL", "it changes the hop limit"),
    ("LOG", "it logs each packet"),
    ("MARK", "it sets the mark of each packet"),
    ("NFLOG", "it logs each packet"),
    ("NFQUEUE", "a program decides about each packet"),
    ("NOTRACK", "it keeps packets from being tracked"),
    ("SECMARK", "it sets the security mark of each packet"),
    ("SET", "it changes a set with each packet"),
    ("SYNPROXY", "it answers in the place of a server"),
    ("TCPMSS", "it changes options of TCP"),
    ("TEE", "it copies each packet"),
    ("TOS", "it changes the type of service"),
    ("TPROXY", "it gives packets to a socket of the host"),
    ("TRACE", "it traces each packet"),
    ("TTL", "it changes the time to live"),
];

/// Functions of the flow, of routes or of interfaces, that are not computed.
const FIXED: [&str; 12] = [
    "addrtype",
    "connlabel",
    "devgroup",
    "helper",
    "iprange",
    "mark",
    "owner",
    "physdev",
    "pkttype",
    "policy",
    "realm",
    "rpfilter",
];

const FLAGS: &str = "it reads fields of a packet that netpath does not know";
const TRAFFIC: &str = "it depends on how much a set has counted";

pub(super) enum Action {
    Verdict(Verdict),
    Harmless,
    Forbids(&'static str),
}

fn reason(name: &str) -> Option<&'static str> {
    VARYING.iter().find(|(n, _)| *n == name).map(|(_, why)| *why)
}

pub(super) fn matches(name: &str, revision: u8, info: &[u8], packet: &Packet<'_>) -> Answer {
    let computed = match (name, revision) {
        ("comment", _) => Some(Answer::Yes),
        ("tcp", 0) => tcp(info, packet),
        ("udp", 0) => udp(info, packet),
        ("multiport", 1) => multiport(info, packet),
        ("conntrack", 1..=3) => conntrack(info, revision, packet),
        ("state", 0) => number(info, 0).map(|mask| packet.has_state(mask)),
        ("connmark", 1) => connmark(info, packet),
        ("set", 1..=4) => set(info, revision),
        // ICMP and ICMPv6: a flow has one type in each direction.
        ("icmp" | "icmp6", 0) => Some(Answer::Maybe),
        _ if FIXED.contains(&name) => Some(Answer::Maybe),
        _ => None,
    };
    computed.unwrap_or_else(|| Answer::Varies(reason(name).unwrap_or("it has a match that netpath does not know")))
}

pub(super) fn target(name: &str, revision: u8, info: &[u8]) -> Action {
    let mode = |at: usize| info.get(at).copied();
    match (name, revision) {
        ("ACCEPT", _) => Action::Verdict(Verdict::Accept),
        ("DROP" | "REJECT", _) => Action::Verdict(Verdict::Drop),
        ("RETURN", _) => Action::Verdict(Verdict::Return),
        ("CONTINUE", _) => Action::Verdict(Verdict::Continue),
        // Set and save change what conntrack has; restore sets the mark of a packet.
        ("CONNMARK", 1) if matches!(mode(12), Some(0 | 1)) => Action::Harmless,
        ("CONNMARK", 2) if matches!(mode(14), Some(0 | 1)) => Action::Harmless,
        ("CONNMARK", _) => Action::Forbids("it sets the mark of each packet"),
        _ => Action::Forbids(reason(name).unwrap_or("it has a target that netpath does not know")),
    }
}

/// A number in the order of the host.
fn number(info: &[u8], at: usize) -> Option<u32> {
    info.get(at..)?.first_chunk().map(|b| u32::from_ne_bytes(*b))
}

fn short(info: &[u8], at: usize) -> Option<u16> {
    info.get(at..)?.first_chunk().map(|b| u16::from_ne_bytes(*b))
}

fn in_range(port: &Bits, first: u16, last: u16) -> Answer {
    if (first, last) == (0, u16::MAX) {
        return Answer::Yes;
    }
    port.between(&first.to_be_bytes(), &last.to_be_bytes())
}

/// The first four numbers of `xt_tcp` and `xt_udp`, with their inversions.
fn ports(info: &[u8], invert: u8, packet: &Packet<'_>) -> Option<Answer> {
    let source = in_range(&port(packet.source), short(info, 0)?, short(info, 2)?).inverted_if(invert & 1 != 0);
    let destination = in_range(&port(packet.destination), short(info, 4)?, short(info, 6)?);
    Some(source.and(destination.inverted_if(invert & 2 != 0)))
}

fn tcp(info: &[u8], packet: &Packet<'_>) -> Option<Answer> {
    let [option, mask, compared, invert] = *info.get(8..)?.first_chunk()?;
    let flags = packet.tcp_flags().masked(&[mask], &[]).equal(&[compared]).inverted_if(invert & 4 != 0);
    let option = if option == 0 { Answer::Yes } else { Answer::Varies("it reads options of TCP") };
    Some(ports(info, invert, packet)?.and(flags).and(option))
}

fn udp(info: &[u8], packet: &Packet<'_>) -> Option<Answer> {
    ports(info, *info.get(8)?, packet)
}

/// `struct xt_multiport_v1`
fn multiport(info: &[u8], packet: &Packet<'_>) -> Option<Answer> {
    let (flags, count, invert) = (*info.first()?, usize::from(*info.get(1)?), *info.get(47)?);
    let (source, destination) = (port(packet.source), port(packet.destination));
    let (mut answer, mut at) = (Answer::No, 0);
    while at < count.min(15) {
        let first = short(info, 2 + 2 * at)?;
        let is_range = *info.get(32 + at)? != 0 && at + 1 < 15;
        at += usize::from(is_range);
        let last = short(info, 2 + 2 * at)?;
        at += 1;
        let (of_source, of_destination) = (in_range(&source, first, last), in_range(&destination, first, last));
        answer = answer.or(match flags {
            0 => of_source,
            1 => of_destination,
            2 => of_source.or(of_destination),
            _ => return None,
        });
    }
    Some(answer.inverted_if(invert != 0))
}

/// `struct xt_conntrack_mtinfo1` to `3`: eight addresses, then numbers.
fn conntrack(info: &[u8], revision: u8, packet: &Packet<'_>) -> Option<Answer> {
    const STATE: u16 = 1;
    const PROTOCOL: u16 = 1 << 1;
    /// Of the original and the reply tuple: source, destination.
    const ADDRESSES: u16 = 1 << 2;
    const PORTS: u16 = 1 << 8;
    const STATUS: u16 = 1 << 6;
    const EXPIRES: u16 = 1 << 7;
    const DIRECTION: u16 = 1 << 12;
    /// XT_CONNTRACK_STATE_SNAT and _DNAT, each with its bit of the status.
    const TRANSLATED: [(u16, u32); 2] = [(1 << 6, 1 << 4), (1 << 7, 1 << 5)];
    let (flags, invert) = (short(info, 146)?, short(info, 148)?);
    let (state, status) = match revision {
        1 => ((*info.get(150)?).into(), u16::from(*info.get(151)?)),
        _ => (short(info, 150)?, short(info, 152)?),
    };
    let has_status = |mask: u32| {
        // Any of the bits.
        packet.status().masked(&mask.to_ne_bytes(), &[]).equal(&[0; 4]).inverted_if(true)
    };
    let mut answer = Answer::Yes;
    let mut and = |flag: u16, test: Answer| {
        if flags & flag != 0 {
            answer = answer.and(test.inverted_if(invert & flag != 0));
        }
    };
    let mut of_state = packet.has_state(state.into());
    for (bit, status) in TRANSLATED {
        if state & bit != 0 {
            of_state = of_state.or(has_status(status));
        }
    }
    and(STATE, of_state);
    and(STATUS, has_status(status.into()));
    and(EXPIRES, Answer::Varies("it depends on the time"));
    and(DIRECTION, packet.reply_direction.map_or(Answer::Maybe, |reply| Answer::of(!reply)));
    and(PROTOCOL, Bits::maybe(packet.protocol.map(|p| [p])).equal(&[short(info, 136)? as u8]));
    let ends = [packet.original.map(|t| t.source), packet.original.map(|t| t.destination)].into_iter();
    let ends = ends.chain([packet.reply.map(|t| t.source), packet.reply.map(|t| t.destination)]);
    for (n, end) in ends.enumerate() {
        let length = if packet.v6 { 16 } else { 4 };
        let value = info.get(32 * n..32 * n + length)?;
        let mask = info.get(32 * n + 16..32 * n + 16 + length)?;
        and(ADDRESSES << n, packet.address(end).masked(mask, &[]).equal(value));
        let of_port = match revision {
            // In the order of the host.
            3 => in_range(&port(end), short(info, 138 + 2 * n)?, short(info, 154 + 2 * n)?),
            _ => Answer::Maybe,
        };
        and(PORTS << n, of_port);
    }
    Some(answer)
}

/// `struct xt_connmark_mtinfo1`
fn connmark(info: &[u8], packet: &Packet<'_>) -> Option<Answer> {
    let (mark, mask, invert) = (number(info, 0)?, number(info, 4)?, *info.get(8)?);
    let answer = packet.mark.map_or(Answer::Maybe, |of_flow| Answer::of(of_flow & mask == mark));
    Some(answer.inverted_if(invert != 0))
}

/// `struct xt_set_info_match_v1`, `_v3`, `_v4`: those from 3 on may compare what the set has counted.
fn set(info: &[u8], revision: u8) -> Option<Answer> {
    let counters: &[usize] = match revision {
        1 | 2 => &[],
        3 => &[8, 24],
        _ => &[16, 32],
    };
    for at in counters {
        // IPSET_COUNTER_NONE
        if *info.get(*at)? != 0 {
            return Some(Answer::Varies(TRAFFIC));
        }
    }
    number(info, 0).map(|_| Answer::Maybe).or(Some(Answer::Varies(FLAGS)))
}

/// The index of the ipset that a match reads.
pub(super) fn set_index(name: &str, info: &[u8]) -> Option<u16> {
    (name == "set").then(|| short(info, 0)).flatten()
}
