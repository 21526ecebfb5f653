//! The few methods of firewalld that netpath calls.
//!
//! Source: firewalld.dbus(5); netavark, src/firewall/firewalld.rs.

use super::ZONE;
use crate::model::error::{Error, Result};
use ipnet::IpNet;
use serde::{Serialize, de::DeserializeOwned};
use std::cell::Cell;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use zbus::export::futures_core::Stream;
use zbus::zvariant::{DynamicType, OwnedValue, Type};
use zbus::{Connection, MatchRule, MessageStream, connection};

const NAME: &str = "org.fedoraproject.FirewallD1";
const PATH: &str = "/org/fedoraproject/FirewallD1";
const ZONES: &str = "org.fedoraproject.FirewallD1.zone";
const CONFIG: &str = "org.fedoraproject.FirewallD1.config";
/// The time limit of all calls of one command: longer than most reloads, during which firewalld does not answer.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// D-Bus specification, "Well-known Message Bus Instances".
const ADDRESS: &str = "DBUS_SYSTEM_BUS_ADDRESS";
const DEFAULT: &str = "unix:path=/var/run/dbus/system_bus_socket";

/// Whether there may be a system bus.
pub(super) fn exists() -> bool {
    let address = std::env::var(ADDRESS).unwrap_or_else(|_| DEFAULT.to_owned());
    let path = |a: &str| a.strip_prefix("unix:path=").map(|p| p.split(',').next().unwrap_or(p).to_owned());
    address.split(';').any(|a| path(a).is_none_or(|p| Path::new(&p).exists()))
}

/// Waits for reloads of firewalld.
pub(super) struct Reloads {
    runtime: Runtime,
    signals: MessageStream,
}

impl Reloads {
    /// # Errors
    /// The system bus cannot be reached.
    pub(super) fn watch() -> Result<Self> {
        let what = || "cannot wait for reloads of firewalld".to_owned();
        let runtime = runtime().map_err(|e| Error::new(what()).because(e))?;
        let signals = runtime.block_on(async {
            let bus = connection::Builder::system()?.build().await?;
            let reloaded = MatchRule::builder().msg_type(zbus::message::Type::Signal).interface(NAME)?;
            let reloaded = reloaded.member("Reloaded")?.path(PATH)?.build();
            MessageStream::for_match_rule(reloaded, &bus, None).await
        });
        // Netavark's prefix.
        let signals = signals.map_err(|e| Error::new(what()).because(format!("DBus error: {e}")))?;
        Ok(Self { runtime, signals })
    }

    /// # Errors
    /// The bus has ended.
    pub(super) fn next(&mut self) -> Result<()> {
        let Self { runtime, signals } = self;
        let next = std::future::poll_fn(|context| Pin::new(&mut *signals).poll_next(context));
        let ended = || Error::new("cannot wait for reloads of firewalld").because("the system bus has ended");
        runtime.block_on(next).ok_or_else(ended)?.map(drop).map_err(|e| ended().because(e))
    }
}

pub(super) struct Firewalld {
    runtime: Runtime,
    bus: Connection,
    /// The unique name on the bus: a call by the well-known name could start a firewalld that has ended.
    owner: String,
    left: Cell<Duration>,
}

impl Firewalld {
    /// The firewalld of the calling thread's network namespace, if it runs.
    ///
    /// # Errors
    /// The bus cannot be asked.
    pub(super) fn here() -> Result<Option<Self>> {
        let what = || "cannot ask the system bus for firewalld".to_owned();
        let runtime = runtime().map_err(|e| Error::new(what()).because(e))?;
        let left = Cell::new(PATIENCE);
        let asked = within(&runtime, &left, async {
            let bus = connection::Builder::system()?.build().await?;
            let dbus =
                zbus::fdo::DBusProxy::builder(&bus).cache_properties(zbus::proxy::CacheProperties::No).build().await?;
            let owner = match dbus.get_name_owner(NAME.try_into()?).await {
                Err(zbus::fdo::Error::NameHasNoOwner(_)) => return Ok(None),
                owner => owner?.to_string(),
            };
            let pid = dbus.get_connection_unix_process_id(owner.as_str().try_into()?).await?;
            Ok(Some((bus, owner, pid)))
        });
        let Some((bus, owner, pid)) = asked.map_err(|e| e.within(what()))? else { return Ok(None) };
        if !is_here(pid) {
            tracing::debug!(pid, "firewalld runs in another network namespace");
            return Ok(None);
        }
        Ok(Some(Self { runtime, bus, owner, left }))
    }

    /// Peer to peer over a socket, without a bus.
    #[cfg(test)]
    pub(super) fn over(stream: std::os::unix::net::UnixStream, patience: Duration) -> Self {
        let runtime = runtime().expect("a runtime");
        let bus = runtime.block_on(async {
            stream.set_nonblocking(true)?;
            let stream = tokio::net::UnixStream::from_std(stream)?;
            connection::Builder::unix_stream(stream).p2p().build().await
        });
        Self { runtime, bus: bus.expect("a connection"), owner: ":1.1".into(), left: Cell::new(patience) }
    }

    /// # Errors
    /// It does not answer in time.
    pub(super) fn ping(&self) -> Result<()> {
        self.call("reach firewalld", PATH, "org.freedesktop.DBus.Peer", "Ping", &())
    }

    /// The zone that a source is bound to.
    ///
    /// # Errors
    /// firewalld's error, or a time-out.
    pub(super) fn zone_of(&self, subnet: IpNet) -> Result<Option<String>> {
        let what = format!("ask firewalld for the zone of {subnet}");
        let zone: String = self.call(&what, PATH, ZONES, "getZoneOfSource", &subnet.to_string())?;
        Ok(Some(zone).filter(|z| !z.is_empty()))
    }

    /// # Errors
    /// As [`Firewalld::zone_of`].
    pub(super) fn add(&self, subnet: IpNet) -> Result<()> {
        let what = format!("put {subnet} into zone {ZONE} of firewalld");
        self.call::<String>(&what, PATH, ZONES, "addSource", &(ZONE, subnet.to_string())).map(drop)
    }

    /// # Errors
    /// As [`Firewalld::zone_of`].
    pub(super) fn remove(&self, subnet: IpNet) -> Result<()> {
        let what = format!("take {subnet} out of zone {ZONE} of firewalld");
        self.call::<String>(&what, PATH, ZONES, "removeSource", &(ZONE, subnet.to_string())).map(drop)
    }

    /// Whether it accepts only ports that it forwards itself. Versions before 2.3 accept all.
    ///
    /// # Errors
    /// It does not answer in time.
    pub(super) fn is_strict(&self) -> Result<bool> {
        let (path, properties) = (format!("{PATH}/config"), "org.freedesktop.DBus.Properties");
        let what = "ask firewalld for StrictForwardPorts";
        match self.call::<OwnedValue>(what, &path, properties, "Get", &(CONFIG, "StrictForwardPorts")) {
            Ok(value) => Ok(String::try_from(value).is_ok_and(|v| v.eq_ignore_ascii_case("yes"))),
            Err(e) if self.is_hung() => Err(e),
            Err(e) => {
                tracing::debug!("{e}");
                Ok(false)
            }
        }
    }

    /// The time limit is used up.
    pub(super) fn is_hung(&self) -> bool {
        self.left.get().is_zero()
    }

    /// Its process has left the bus.
    pub(super) fn has_ended(&self) -> bool {
        let owned = within(&self.runtime, &self.left, async {
            let (path, dbus) = ("/org/freedesktop/DBus", Some("org.freedesktop.DBus"));
            let answer = self.bus.call_method(dbus, path, dbus, "NameHasOwner", &self.owner).await?;
            answer.body().deserialize::<bool>()
        });
        owned.is_ok_and(|owned| !owned)
    }

    fn call<A: DeserializeOwned + Type>(
        &self,
        what: &str,
        path: &str,
        interface: &str,
        method: &str,
        body: &(impl Serialize + DynamicType),
    ) -> Result<A> {
        let answer = within(&self.runtime, &self.left, async {
            let answer = self.bus.call_method(Some(self.owner.as_str()), path, Some(interface), method, body).await?;
            answer.body().deserialize::<A>()
        });
        answer.map_err(|e| e.within(format!("cannot {what}")).next("look at systemctl status firewalld"))
    }
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Runs a job on this thread within the time that is left, and subtracts its duration.
fn within<T>(runtime: &Runtime, left: &Cell<Duration>, job: impl Future<Output = zbus::Result<T>>) -> Result<T> {
    let (start, limit) = (Instant::now(), left.get());
    let done = match limit.is_zero() {
        true => None,
        false => runtime.block_on(async { tokio::time::timeout(limit, job).await.ok() }),
    };
    if let Some(done) = done {
        left.set(limit.saturating_sub(start.elapsed()).max(Duration::from_millis(1)));
        done.map_err(|e| Error::new("D-Bus").because(e))
    } else {
        left.set(Duration::ZERO);
        Err(Error::new(format!("no answer within {} s", PATIENCE.as_secs())))
    }
}

/// Whether a process is in the network namespace of this thread; assumed if it cannot be read.
fn is_here(pid: u32) -> bool {
    let theirs = std::fs::read_link(format!("/proc/{pid}/ns/net"));
    let ours = std::fs::read_link("/proc/thread-self/ns/net");
    theirs.ok().zip(ours.ok()).is_none_or(|(theirs, ours)| theirs == ours)
}
