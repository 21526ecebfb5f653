//! Sysctls of the host's namespace: set while containers need them, put back with the last. Forwarding stays on: other
//! software may have found it on meanwhile and rely on it.

use crate::driver::bridge;
use crate::link::sysctl::{self, FORWARDING};
use crate::link::sysctl_conf;
use crate::model::Desired;
use crate::model::error::Result;
use crate::state::store::SavedSysctl;
use crate::state::{Lock, Store};
use std::collections::BTreeMap;

/// What every rung needs of the host for `desired`, below /proc/sys. An IPv6 host that forwards no longer takes routes
/// from router advertisements; as in Netavark, networks with IPv6 have that price.
pub(super) fn forwarding(desired: &Desired) -> Vec<(String, String)> {
    let mut wanted = Vec::new();
    let mut outside = desired.bridged().map(|(r, _)| &r.network).filter(|n| !n.internal).peekable();
    if outside.peek().is_some() {
        wanted.push((FORWARDING[0].to_owned(), "1".to_owned()));
    }
    if outside.any(super::super::model::network::Network::has_v6) {
        wanted.push((FORWARDING[1].to_owned(), "1".to_owned()));
    }
    wanted
}

/// Makes them so. The host's own value is on disk before it is changed.
///
/// # Errors
/// One cannot be read, kept or written.
pub(super) fn ensure(store: &Store, lock: &Lock, wanted: &[(String, String)]) -> Result<()> {
    let mut saved = None;
    for (path, value) in wanted {
        let Some(before) = sysctl::read(path)?.filter(|now| now != value) else {
            // Also says so when the kernel does not have it.
            sysctl::ensure(path, value)?;
            continue;
        };
        let saved = match &mut saved {
            Some(saved) => saved,
            none => none.insert(store.sysctls()?),
        };
        // A second change keeps the first value: that is the host's own.
        let before = saved.get(path).map_or(before, |s| s.before.clone());
        saved.insert(path.clone(), SavedSysctl { before, written: value.clone() });
        store.keep_sysctls(lock, saved)?;
        sysctl_conf::keep_also(path, value);
        sysctl::write(path, value)?;
    }
    Ok(())
}

/// Bridges of internal networks forward nothing. Said again after [`ensure`]: a change of the host's `ip_forward` is
/// copied to every interface (`net/ipv4/devinet.c, inet_forward_change()`).
///
/// # Errors
/// A value cannot be read or written.
pub(super) fn keep_internal(_lock: &Lock, desired: &Desired) -> Result<()> {
    let internal = desired.bridged().map(|(r, _)| &r.network).filter(|n| n.internal);
    let bridges: BTreeMap<_, bool> = internal.filter_map(|n| Some((n.bridge()?.as_str(), n.has_v6()))).collect();
    let mut sysctls = bridges.into_iter().flat_map(|(bridge, v6)| bridge::no_forwarding(bridge, v6));
    sysctls.try_for_each(|(path, value)| sysctl::ensure(&path, &value).map(drop))
}

/// Puts the host's own values back, except forwarding and where other software has set another one since.
///
/// # Errors
/// The saved values cannot be read. One that cannot be written is reported and passed over.
pub(super) fn put_back(store: &Store, _lock: &Lock) -> Result<()> {
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
