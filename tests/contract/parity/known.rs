//! Where netpath differs from Netavark on purpose (docs/differences.md).

pub(super) struct Known {
    #[expect(dead_code, reason = "for the reader")]
    pub why: &'static str,
    /// The place, Netavark's value there, and netpath's; an absent one is empty.
    pub holds: fn(&str, &str, &str) -> bool,
}

pub(super) const KNOWN: &[Known] = &[
    Known {
        why: "neighbours may have cached another container's hardware address",
        holds: |place, netavark, netpath| {
            (place.ends_with("/ndisc_notify") || place.ends_with("/arp_notify"))
                && place.starts_with("container ")
                && (netavark, netpath) == ("0", "1")
        },
    },
    Known {
        why: "the programs serve localhost by lo, and not by routes from 127.0.0.0/8 to the bridge",
        holds: |place, netavark, netpath| match place.strip_prefix("host/") {
            Some("lo/ipv4/route_localnet" | "lo/ipv4/accept_local") => (netavark, netpath) == ("0", "1"),
            Some(of) => of.ends_with("/ipv4/route_localnet") && (netavark, netpath) == ("1", "0"),
            None => false,
        },
    },
    Known {
        why: "an internal network stays one when another network switches the host's forwarding on",
        holds: |place, netavark, netpath| {
            place.starts_with("host/podman") && place.ends_with("/forwarding") && (netavark, netpath) == ("1", "0")
        },
    },
    Known {
        why: "a network without an address of the host has no DNS server, and needs no file for one",
        holds: |place, netavark, netpath| {
            place.starts_with("dns/") && netavark.starts_with(['\n', ' ']) && netpath.is_empty()
        },
    },
    Known {
        why: "`update` gives an internal network its servers too",
        holds: |place, netavark, netpath| {
            let hosts = |text: &str| text.split_once('\n').map(|(_, lines)| lines.to_owned());
            place.starts_with("dns/") && place.ends_with("%int") && hosts(netavark) == hosts(netpath)
        },
    },
    Known {
        why: "an engine repeats a teardown that failed, so what is gone already is no error",
        holds: |place, netavark, netpath| {
            place == "error" && netavark.contains("No such process") && netpath.is_empty()
        },
    },
    Known {
        why: "by rules alone, a container reaches its own published port through its own port of the bridge",
        holds: |place, netavark, netpath| {
            place.starts_with("host/") && place.ends_with("/port hairpin") && (netavark, netpath) == ("false", "true")
        },
    },
    Known {
        why: "two networks of a container may have the same default route",
        holds: |place, netavark, netpath| {
            place == "error"
                && netavark.contains("add default route")
                && netavark.contains("File exists")
                && netpath.is_empty()
        },
    },
];
