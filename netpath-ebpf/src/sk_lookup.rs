//! What a packet asks for at the look-up of the host's sockets.

use aya_ebpf::programs::SkLookupContext;
use netpath_common::addr::Addr;

/// `include/linux/socket.h`.
const AF_INET: u32 = 2;

pub struct Asked<'c> {
    ctx: &'c SkLookupContext,
    /// As in the IP header.
    pub proto: u32,
    pub port: u16,
    pub is_v4: bool,
}

impl<'c> Asked<'c> {
    #[inline(always)]
    pub fn of(ctx: &'c SkLookupContext) -> Self {
        let lookup = ctx.lookup;
        // SAFETY: context fields, a word at a time as the verifier requires.
        let (proto, family, port) = unsafe {
            (
                (&raw const (*lookup).protocol).read_volatile(),
                (&raw const (*lookup).family).read_volatile(),
                (&raw const (*lookup).local_port).read_volatile(),
            )
        };
        Self { ctx, proto, port: port as u16, is_v4: family == AF_INET }
    }

    /// The host's address, v4-mapped. Reads the fields of both families, one of them zero: the verifier rejects a read at an
    /// offset that depends on the family.
    #[inline(always)]
    pub fn address(&self) -> Addr {
        let lookup = self.ctx.lookup;
        // SAFETY: context fields, a word at a time as the verifier requires.
        let (v4, v6) = unsafe {
            let at = (&raw const (*lookup).local_ip6).cast::<u32>();
            let v6 =
                [at.read_volatile(), at.add(1).read_volatile(), at.add(2).read_volatile(), at.add(3).read_volatile()];
            ((&raw const (*lookup).local_ip4).read_volatile(), v6)
        };
        if self.is_v4 {
            return Addr::v4(v4.to_ne_bytes());
        }
        let mut bytes = [0; 16];
        for (word, part) in v6.iter().zip(bytes.chunks_exact_mut(4)) {
            part.copy_from_slice(&word.to_ne_bytes());
        }
        Addr(bytes)
    }
}
