//! SIGTERM and SIGINT: in setup they end the plan between two steps, and it is undone; in teardown they are ignored, since an
//! engine that is being stopped would otherwise leave links and rules behind.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::sync::atomic::{AtomicBool, Ordering};

static SEEN: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_: libc::c_int) {
    SEEN.store(true, Ordering::Relaxed);
}

/// Without SA_RESTART, so that they also end a wait for the lock.
pub(super) fn catch() {
    handle(SigHandler::Handler(note));
}

pub(super) fn ignore() {
    handle(SigHandler::SigIgn);
}

/// They end the process again.
pub(super) fn obey() {
    handle(SigHandler::SigDfl);
}

pub(super) fn seen() -> bool {
    SEEN.load(Ordering::Relaxed)
}

fn handle(handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: `note` only stores to an atomic, which is async-signal-safe.
        if let Err(e) = unsafe { sigaction(signal, &action) } {
            tracing::debug!(%signal, error = %e, "cannot change the action of a signal");
        }
    }
}
