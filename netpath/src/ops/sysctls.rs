//! Sysctls of the host's namespace: set while containers need them, restored with the last. Forwarding stays on: other software may
//! rely on it by then.

use crate::driver::bridge;
use crate::link::sysctl::{self, FORWARDING};
use crate::link::sysctl_conf;
use crate::model::error::Result;
use crate::model::{Desired, Network};
use crate::state::store::SavedSysctl;
use crate::state::{Lock, Store};
use std::collections::BTreeMap;

/// Forwarding, which every rung needs for `desired`: paths below /proc/sys and values. An IPv6 host that forwards ignores routes of
/// router advertisements; Netavark accepts that for networks with IPv6 too.
pub(super) fn forwarding(desired: &Desired) -> Vec<(String, String)> {
    let mut wanted = Vec::new();
    let mut outside = desired.bridged().map(|(r, _)| &r.network).filter(|n| !n.internal).peekable();
    if outside.peek().is_some() {
        wanted.push((FORWARDING[0].to_owned(), "1".to_owned()));
    }
    if outside.any(Network::has_v6) {
        wanted.push((FORWARDING[1].to_owned(), "1".to_owned()));
    }
    wanted
}

/// Sets them. The host's own value is saved before it is changed.
///
/// # Errors
/// One cannot be read, saved or written.
pub(super) fn ensure(store: &Store, lock: &Lock, wanted: &[(String, String)]) -> Result<()> {
    let mut saved = None;
    for (path, value) in wanted {
        let Some(before) = sysctl::read(path)?.filter(|now| now != value) else {
            // It is right, or the kernel does not have it, which is an error.
            sysctl::ensure(path, value)?;
            continue;
        };
        let saved = match &mut saved {
            Some(saved) => saved,
            none => none.insert(store.sysctls()?),
        };
        // The host's own value is the one before the first change.
        let before = saved.get(path).map_or(before, |s| s.before.clone());
        saved.insert(path.clone(), SavedSysctl { before, written: value.clone() });
        store.keep_sysctls(lock, saved)?;
        sysctl_conf::keep_also(path, value);
        sysctl::write(path, value)?;
    }
    Ok(())
}

/// Bridges of internal networks forward nothing. Repeated after [`ensure`]: the kernel copies a change of the host's `ip_forward` to
/// every interface (`net/ipv4/devinet.c, inet_forward_change()`).
///
/// # Errors
/// A value cannot be read or written.
pub(super) fn stop_forwarding_of_internal(_lock: &Lock, desired: &Desired) -> Result<()> {
    let internal = desired.bridged().map(|(r, _)| &r.network).filter(|n| n.internal);
    let bridges: BTreeMap<_, bool> = internal.filter_map(|n| Some((n.bridge()?.as_str(), n.has_v6()))).collect();
    let mut sysctls = bridges.into_iter().flat_map(|(bridge, v6)| bridge::no_forwarding(bridge, v6));
    sysctls.try_for_each(|(path, value)| sysctl::ensure(&path, &value).map(drop))
}

/// Restores the host's own values, except forwarding, and except values that other software has changed since.
///
/// # Errors
/// The saved values cannot be read. One that cannot be written is only logged.
pub(super) fn restore(store: &Store, _lock: &Lock) -> Result<()> {
    for (path, saved) in store.sysctls()?.into_iter().filter(|(path, _)| !FORWARDING.contains(&path.as_str())) {
        match sysctl::read(&path) {
            Ok(Some(now)) if now == saved.written => {
                if let Err(e) = sysctl::write(&path, &saved.before) {
                    tracing::warn!("{e}");
                }
            }
            Ok(_) => {}
            Err(e) => tracing::warn!("{e}"),
        }
    }
    Ok(())
}
