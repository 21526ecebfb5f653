//! Global functions: the verifier checks each once (5.6), independent of the number of calls, which keeps the verified size
//! of the programs small. They take the context and numbers and have a separate stack frame; all other data is in scratch
//! (`scratch.rs`).

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::programs::TcContext;

use crate::headers::Wire;
use crate::scratch::ScratchMut;

/// `fn name as name4, name6 = body;` makes `body::<F>` a global function for each family, and `name::<F>` a call of the
/// function of the family. The callee borrows the whole scratch.
macro_rules! subprog {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $t:ty),*) -> $ret:ty as $v4:ident, $v6:ident = $body:ident;)*) => { $(
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $v4(skb: *mut aya_ebpf::bindings::__sk_buff $(, $arg: $t)*) -> $ret {
            $crate::subprog::enter::<netpath_common::family::Ipv4, _>(skb, |ctx, scratch| $body(ctx, scratch $(, $arg)*))
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $v6(skb: *mut aya_ebpf::bindings::__sk_buff $(, $arg: $t)*) -> $ret {
            $crate::subprog::enter::<netpath_common::family::Ipv6, _>(skb, |ctx, scratch| $body(ctx, scratch $(, $arg)*))
        }

        $(#[$doc])*
        #[inline(always)]
        $vis fn $name<F: $crate::headers::Wire>(
            ctx: &aya_ebpf::programs::TcContext,
            _: &mut $crate::scratch::ScratchMut<F>
            $(, $arg: $t)*
        ) -> $ret {
            if F::IS_V4 { $v4(ctx.skb.skb $(, $arg)*) } else { $v6(ctx.skb.skb $(, $arg)*) }
        }
    )* };
}

pub(crate) use subprog;

/// `NONE` is the result if there is no scratch, which does not happen.
pub trait ReturnValue {
    const NONE: Self;
}

impl ReturnValue for u32 {
    const NONE: Self = 0;
}

#[inline(always)]
pub fn enter<F: Wire, R: ReturnValue>(
    skb: *mut __sk_buff,
    body: impl FnOnce(&TcContext, &mut ScratchMut<F>) -> R,
) -> R {
    keep(skb);
    // SAFETY: this is the only call in the global function that it is inlined into, and `subprog!` borrows the caller's
    // scratch for the call.
    let Some(mut scratch) = (unsafe { ScratchMut::take() }) else { return R::NONE };
    body(&TcContext::new(skb), &mut scratch)
}

/// An unused argument would be passed uninitialised, and the verifier checks arguments.
#[inline(always)]
#[allow(clippy::pointers_in_nomem_asm_block, reason = "the value stays in its register")]
fn keep(skb: *mut __sk_buff) {
    // SAFETY: the register keeps its value. (Without an instruction the line table would have two lines at one place,
    // which the kernel rejects.)
    unsafe { core::arch::asm!("{0} = {0}", in(reg) skb, options(nomem, nostack, preserves_flags)) };
}
