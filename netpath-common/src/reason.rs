//! Why a packet was translated, dropped or left to the stack: one number per cause, counted per CPU.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $n:literal, $word:literal;)*) => {
        /// Index into the counter map, printed by monitor and status.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Reason { $($(#[$doc])* $name = $n,)* }

        impl Reason {
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)*];

            /// The reason with the number `n`; [`Reason::NotOurs`] for an unknown number.
            #[inline(always)]
            pub const fn at(n: u32) -> Self {
                match n { $($n => Reason::$name,)* _ => Reason::NotOurs }
            }

            /// The name in output and JSON keys.
            pub const fn word(self) -> &'static str {
                match self { $(Reason::$name => $word,)* }
            }
        }
    };
}

reasons! {
    /// Neither published, nor masqueraded, nor part of a flow: left to the stack unchanged.
    NotOurs = 0, "not_ours";
    /// A flow began at a published port.
    FlowPublished = 1, "flow_published";
    /// A flow began that leaves through masquerade.
    FlowMasqueraded = 2, "flow_masqueraded";
    /// A flow began from a container to a published port of its own host.
    FlowHairpin = 3, "flow_hairpin";
    /// A flow began on `lo`: a client that the sock_addr programs could not serve.
    FlowLoopback = 4, "flow_loopback";
    /// A packet of a known flow was translated and redirected.
    Redirected = 5, "redirected";
    /// Left to the stack unchanged because its TTL or hop limit is exhausted.
    StackTtl = 6, "stack_ttl";
    /// Left to the stack unchanged because it exceeds the MTU of the next hop.
    StackMtu = 7, "stack_mtu";
    /// Left to the stack unchanged because the kernel has no route for it.
    StackNoRoute = 8, "stack_no_route";
    /// Dropped: no source port was free for a masqueraded or hairpin flow.
    DropPortsExhausted = 9, "drop_ports_exhausted";
    /// Dropped: the two networks are isolated from each other, or one is internal.
    DropIsolated = 10, "drop_isolated";
    /// Dropped: a packet of a masqueraded network that cannot be translated would leave with a private source.
    DropUntranslatable = 11, "drop_untranslatable";
    /// Dropped: a loopback address arrived on a link.
    DropMartian = 12, "drop_martian";
    /// Dropped: the headers could not be written.
    DropRewrite = 13, "drop_rewrite";
    /// A socket of the host was connected directly to a container.
    Connected = 14, "connected";
    /// A later fragment that came before every other fragment of its datagram, so that its flow is unknown: left to
    /// the stack.
    Fragment = 15, "fragment";
    /// A packet of a known flow was translated and continues through the host's stack.
    Translated = 16, "translated";
    /// Dropped: it came from outside to a container's own address, not to a published port.
    DropDirect = 17, "drop_direct";
    /// Dropped: it came from a container with a source address outside its network.
    DropSpoofed = 18, "drop_spoofed";
    /// Dropped: its source is not on the allow list of the published port.
    DropNotAllowed = 19, "drop_not_allowed";
    /// A flow of the host itself began and got another source port: a container's flow to the same destination has
    /// its own.
    FlowHost = 20, "flow_host";
    /// A flow began to a container's own address, on an open network (`netpath.direct`).
    FlowDirect = 21, "flow_direct";
}

/// Slots of the counter map, with spare ones, so that a new reason does not change the layout.
pub const SLOTS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_own_slot_and_word() {
        for (i, a) in Reason::ALL.iter().enumerate() {
            assert_eq!(i, *a as usize);
            assert!((*a as u32) < SLOTS);
            assert_eq!(*a, Reason::at(*a as u32));
            assert!(Reason::ALL[..i].iter().all(|b| b.word() != a.word()));
        }
    }
}
