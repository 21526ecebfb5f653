//! SIGTERM and SIGINT: in setup they end the plan between two steps and what was done is taken back; in teardown they
//! are ignored, since an engine that is being stopped would leave links and rules behind.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::atomic::{AtomicBool, Ordering};

static SEEN: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    SEEN.store(true, Ordering::Relaxed);
}

/// Without SA_RESTART, so that a wait for the lock ends too.
pub(super) fn catch() {
    handle(SigHandler::Handler(note));
}

pub(super) fn ignore() {
    handle(SigHandler::SigIgn);
}

pub(super) fn seen() -> bool {
    SEEN.load(Ordering::Relaxed)
}

fn handle(handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: `note` does nothing but store to an atomic, which is safe at any moment.
        if let Err(e) = unsafe { sigaction(signal, &action) } {
            tracing::debug!(%signal, error = %e, "the signal keeps its action");
        }
    }
}
