//! Global functions: the verifier checks each once on its own (5.6), however often and from however many paths it is
//! called, which keeps the programs small to it. They take the context and numbers, and have a stack frame of their own;
//! the rest is on the desk (`desk.rs`).

/// `fn name as name4, name6 = body;` makes `body::<F>` a global function for each family, and `name::<F>` the call of the
/// right one.
macro_rules! global {
    ($($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $t:ty),*) -> $ret:ty as $v4:ident, $v6:ident = $body:ident;)*) => { $(
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $v4(skb: *mut aya_ebpf::bindings::__sk_buff $(, $arg: $t)*) -> $ret {
            $crate::global::keep(skb);
            $body::<netpath_common::family::Ipv4>(&aya_ebpf::programs::TcContext::new(skb) $(, $arg)*)
        }

        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $v6(skb: *mut aya_ebpf::bindings::__sk_buff $(, $arg: $t)*) -> $ret {
            $crate::global::keep(skb);
            $body::<netpath_common::family::Ipv6>(&aya_ebpf::programs::TcContext::new(skb) $(, $arg)*)
        }

        $(#[$doc])*
        #[inline(always)]
        $vis fn $name<F: crate::wire::Wire>(ctx: &aya_ebpf::programs::TcContext $(, $arg: $t)*) -> $ret {
            if F::IS_V4 { $v4(ctx.skb.skb $(, $arg)*) } else { $v6(ctx.skb.skb $(, $arg)*) }
        }
    )* };
}

pub(crate) use global;

/// An argument that a body does not use would be passed as garbage, and the verifier looks at what is passed.
#[inline(always)]
pub fn keep(skb: *mut aya_ebpf::bindings::__sk_buff) {
    // SAFETY: the register keeps its value. (With no instruction in it, the line table would have two lines at one
    // place, which the kernel refuses.)
    unsafe { core::arch::asm!("{0} = {0}", in(reg) skb, options(nomem, nostack, preserves_flags)) };
}
