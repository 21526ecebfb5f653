//! The calls of the proxy, and the leases that it keeps.

use super::interface::{Entered, Interface, V6};
use super::keeper::{Ended, Held, Keeper};
use crate::dhcp::rpc::{IsGone, Service, Status, read};
use crate::dhcp::wire::{CLEAN, NetworkConfig, OperationResponse, SETUP, TEARDOWN, WireLease};
use crate::dhcp::{Client, Identity, Lease};
use crate::model::Mac;
use crate::model::error::{Error, Result};
use crate::state::proxy_dir::{ProxyDir, ProxyLock};
use bytes::Bytes;
use prost::Message;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// A namespace, an interface in it, and whether its lease is by DHCPv6.
type Key = (PathBuf, String, bool);

struct Kept {
    keeper: Arc<Keeper>,
    thread: JoinHandle<()>,
}

pub(super) struct Proxy {
    pub(super) dir: ProxyDir,
    /// `None`: the leases are the next proxy's.
    lock: Mutex<Option<ProxyLock>>,
    timeout: Duration,
    kept: Mutex<BTreeMap<Key, Kept>>,
    /// Calls that run, and when the last one came.
    calls: Mutex<(usize, Instant)>,
}

impl Proxy {
    /// With the leases of an earlier proxy.
    ///
    /// # Errors
    /// No thread can be started.
    pub(super) fn load(dir: ProxyDir, lock: ProxyLock, timeout: Duration) -> Result<Arc<Self>> {
        let left: Vec<Held> = dir.read_leases().unwrap_or_else(|e| {
            tracing::warn!("leases of an earlier proxy are not extended: {e}");
            Vec::new()
        });
        let (kept, calls, lock) = (Mutex::default(), Mutex::new((0, Instant::now())), Mutex::new(Some(lock)));
        let proxy = Arc::new(Self { dir, lock, timeout, kept, calls });
        left.into_iter().try_for_each(|held| proxy.keep(held))?;
        Ok(proxy)
    }

    /// From now on another proxy may write leases, and this one does not.
    pub(super) fn close(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(super) fn count(&self) -> usize {
        self.kept().len()
    }

    pub(super) fn is_idle(&self, limit: Duration) -> bool {
        let (running, last) = *self.calls();
        running == 0 && last.elapsed() >= limit && self.kept().is_empty()
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<Key, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> MutexGuard<'_, (usize, Instant)> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count_call(&self, change: isize) {
        let mut calls = self.calls();
        *calls = (calls.0.saturating_add_signed(change), Instant::now());
    }

    fn keep(self: &Arc<Self>, held: Held) -> Result<()> {
        let key = key(&held.interface, &held.who);
        let keeper = Arc::new(Keeper::new(held));
        let (proxy, own, of) = (self.clone(), keeper.clone(), key.clone());
        let run = move || {
            if own.run(|| proxy.save()) == Ended::Gone {
                proxy.forget(&of, &own);
            }
        };
        // The thread may find at once that its container is gone, and forgets what the table has.
        let mut kept = self.kept();
        let thread = std::thread::Builder::new().name("netpath-lease".into()).spawn(run);
        let thread = thread.map_err(|e| Error::new("cannot keep a lease").because(e))?;
        kept.insert(key, Kept { keeper, thread });
        Ok(())
    }

    /// Writes all leases. In order: the table is locked.
    fn save(&self) {
        let kept = self.kept();
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(lock) = &*lock else { return };
        let all: Vec<Held> = kept.values().map(|k| k.keeper.held()).collect();
        if let Err(e) = self.dir.write_leases(lock, &all) {
            tracing::error!("a restart of the DHCP proxy would lose leases: {e}");
        }
    }

    /// Of a container that is gone: its server is told by the host.
    fn forget(&self, key: &Key, keeper: &Arc<Keeper>) {
        {
            let mut kept = self.kept();
            // Another container may have the place by now.
            if !kept.get(key).is_some_and(|k| Arc::ptr_eq(&k.keeper, keeper)) {
                return;
            }
            kept.remove(key);
        }
        self.save();
        release(&keeper.held());
    }

    /// Ends the keeper of an interface, so that its lease is the caller's.
    fn take(&self, key: &Key) -> Option<Held> {
        let kept = self.kept().remove(key)?;
        kept.keeper.stop();
        let _ = kept.thread.join();
        Some(kept.keeper.held())
    }

    fn setup(self: &Arc<Self>, config: &NetworkConfig, is_gone: &IsGone) -> std::result::Result<WireLease, Status> {
        if !matches!(config.version, 0 | V6) {
            // The text is netavark's.
            return Err(Status::new(Status::INVALID_ARGUMENT, "invalid protocol version"));
        }
        let wrong = |e: Error| Status::new(Status::INVALID_ARGUMENT, e.to_string());
        let (interface, mut who) = Interface::of(config).map_err(wrong)?;
        let gone = || Status::new(Status::INVALID_ARGUMENT, "the interface has disappeared");
        let at = interface.enter().map_err(wrong)?.ok_or_else(gone)?;
        // Of an earlier setup that nothing has torn down.
        if self.take(&key(&interface, &who)).is_some() {
            self.save();
        }
        // A container's first interface is known by the container's id, as with netavark. Another one on the same server's networks
        // would get the same address.
        if who.iaid.is_none() && self.kept().values().any(|k| k.keeper.held().who.client_id == who.client_id) {
            who.client_id.extend(format!(" {}", interface.name).bytes());
        }
        let until = Instant::now() + self.timeout;
        let acquired = at.inside.run(|| {
            let stop = || is_gone.load(Ordering::Relaxed);
            Client { index: at.index, interface: interface.name.as_str(), who: &who, stop: &stop }.acquire(until)
        });
        let internal = |e: Error| Status::new(Status::INTERNAL, e.to_string());
        let lease = acquired.map_err(internal)?.ok_or_else(|| {
            let on = if interface.host.is_empty() { String::new() } else { format!(" on {}", interface.host) };
            // The first words are netavark's.
            let text = format!(
                "Timeout on acquiring DHCPv{} lease{on}: no server granted an address within {} s",
                if who.iaid.is_some() { 6 } else { 4 },
                self.timeout.as_secs()
            );
            Status::new(Status::ABORTED, text)
        })?;
        let held = Held { interface, who, lease: Some(lease.clone()) };
        let configured = held.interface.configure(&at, None, Some(&lease)).map_err(internal);
        let finished = configured.and_then(|()| match is_gone.load(Ordering::Relaxed) {
            true => Err(Status::new(Status::ABORTED, "client disconnected")),
            false => self.keep(held.clone()).map_err(internal),
        });
        if let Err(e) = finished {
            release(&held);
            return Err(e);
        }
        self.save();
        tracing::info!("{} of {} has {}", held.interface.name, held.interface.netns.display(), lease.address());
        Ok(WireLease::of(&lease, &config.container_mac_addr))
    }

    fn teardown(&self, config: &NetworkConfig) -> WireLease {
        let key = (PathBuf::from(&config.ns_path), config.container_iface.clone(), config.version == V6);
        let Some(held) = self.take(&key) else { return WireLease::default() };
        self.save();
        release(&held);
        let mac = Mac::from_kernel(held.who.mac).to_string();
        held.lease.map(|lease| WireLease::of(&lease, &mac)).unwrap_or_default()
    }

    fn clean(&self) -> OperationResponse {
        let keys: Vec<Key> = self.kept().keys().cloned().collect();
        keys.iter().filter_map(|key| self.take(key)).for_each(|held| release(&held));
        self.save();
        OperationResponse { success: true }
    }
}

fn key(interface: &Interface, who: &Identity) -> Key {
    (interface.netns.clone(), interface.name.to_string(), who.iaid.is_some())
}

/// Gives the address back, from its interface or, where that is gone, from the host. The lease ends by itself if no server hears of it.
fn release(held: &Held) {
    let Some(lease) = &held.lease else { return };
    let released = match held.interface.enter() {
        Ok(Some(at)) => released_inside(&held.interface, &held.who, lease, &at),
        Ok(None) | Err(_) => released_outside(&held.interface, &held.who, lease),
    };
    match released {
        Ok(()) => tracing::info!("{} is released", lease.address()),
        Err(e) => tracing::warn!("{} is not released: {e}", lease.address()),
    }
}

fn released_inside(interface: &Interface, who: &Identity, lease: &Lease, at: &Entered) -> Result<()> {
    let index = at.index;
    let sent =
        at.inside.run(|| Client { index, interface: interface.name.as_str(), who, stop: &|| false }.release(lease));
    interface.configure(at, Some(lease), None).and(sent)
}

fn released_outside(interface: &Interface, who: &Identity, lease: &Lease) -> Result<()> {
    let gone = || Error::new(format!("the host's interface {} is gone", interface.host));
    let index = interface.host_index()?.ok_or_else(gone)?;
    Client { index, interface: &interface.host, who, stop: &|| false }.release(lease)
}

/// [`Service`] for a proxy that its keepers share.
impl Service for Proxy {
    fn call(self: &Arc<Self>, method: &str, message: Bytes, is_gone: &IsGone) -> std::result::Result<Vec<u8>, Status> {
        self.count_call(1);
        let answer = match method {
            SETUP => read(message).and_then(|config| self.setup(&config, is_gone)).map(|m| m.encode_to_vec()),
            TEARDOWN => read(message).map(|config| self.teardown(&config).encode_to_vec()),
            CLEAN => Ok(self.clean().encode_to_vec()),
            other => Err(Status::new(Status::UNIMPLEMENTED, format!("{other} is unknown"))),
        };
        self.count_call(-1);
        answer
    }
}
