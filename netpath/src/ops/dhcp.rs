//! Addresses by DHCP: what setup and teardown ask of the proxy, which they start where there is none.

use super::agent::detached;
use super::session::Session;
use super::signal;
use crate::dhcp::rpc;
use crate::dhcp::wire::{NetworkConfig, SETUP, TEARDOWN, WireLease};
use crate::driver;
use crate::model::error::{Context, Error, Result};
use crate::model::{Links, Network, Record};
use crate::plan::Done;
use crate::state::proxy_dir::ProxyDir;
use prost::Message;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// When this command asked first. An engine waits for a command with its locks held, so none may take longer than 10 s.
static BEGUN: LazyLock<Instant> = LazyLock::new(Instant::now);
/// For all leases of one command; the proxy gives up after 8 s.
const LIMIT: Duration = Duration::from_millis(8_800);
/// To give one back, and the least for anything.
const GIVE_BACK: Duration = Duration::from_secs(2);
const LEAST: Duration = Duration::from_millis(500);
/// Before a call is repeated, in ms.
const PAUSES: [u64; 5] = [0, 10, 30, 100, 300];
/// Without a lease, a proxy that a command has started ends after so many seconds.
const IDLE: &str = "5";

impl Session {
    pub(super) fn lease(&mut self, at: usize) -> Result<Done> {
        for version in versions(&self.records[at].network) {
            self.lease_of(at, version)?;
        }
        // The addresses go with the interface, and the leases with `Session::disconnect`.
        Ok(Done::ChangedCovered)
    }

    fn lease_of(&mut self, at: usize, version: i32) -> Result<()> {
        // The first words are netavark's.
        let what = |interface: &str| format!("unable to obtain lease for {interface}");
        let config = self.proxy_request(&self.records[at], self.made[at].links.as_ref(), version)?;
        let limit = LIMIT.saturating_sub(BEGUN.elapsed()).max(LEAST);
        let called = call(&ProxyDir::new(None), SETUP, &config, limit, signal::seen, || true);
        let failed = |cause: String| {
            let next = format!("see that a DHCP server answers on the network of {}", config.host_iface);
            Error::new(what(&config.container_iface)).because(cause).next(next)
        };
        let answer: Result<WireLease> = called.map_err(|e| e.within(what(&config.container_iface)))?;
        let lease = answer.map_err(|e| failed(format!("get DHCP lease: {e}")))?;
        let address = lease.address().ok_or_else(|| failed("the DHCP proxy's answer has no address".to_owned()))?;
        let addresses = |texts: &[String]| texts.iter().filter_map(|t| t.parse::<IpAddr>().ok()).collect::<Vec<_>>();
        let made = &mut self.made[at];
        made.addresses.push(address);
        let leased = made.lease.get_or_insert_default();
        leased.gateway = leased.gateway.or(addresses(&lease.gateways).first().copied());
        leased.dns_servers.extend(addresses(&lease.dns_servers));
        leased.domain = leased.domain.take().or(Some(lease.domain_name).filter(|d| !d.is_empty()));
        Ok(())
    }

    /// Gives an endpoint's leases back, if it has any. They end by themselves where that fails.
    pub(super) fn give_back(&self, record: &Record, links: Option<&Links>) {
        let dir = ProxyDir::new(None);
        for version in versions(&record.network) {
            let given = self.proxy_request(record, links, version).and_then(|config| {
                // A proxy that was killed has left its leases; without any there is nothing to give back.
                call::<WireLease>(&dir, TEARDOWN, &config, GIVE_BACK, || false, || dir.has_leases())?.map(drop)
            });
            if let Err(e) = given {
                tracing::warn!("an address of {} is not given back: {e}", record.endpoint.interface);
            }
        }
    }

    fn proxy_request(&self, record: &Record, links: Option<&Links>, version: i32) -> Result<NetworkConfig> {
        let host_iface = driver::of(&record.network.attachment).wire(&self.site, links)?;
        let network = &record.network;
        Ok(NetworkConfig {
            host_iface,
            container_iface: record.endpoint.interface.to_string(),
            container_mac_addr: links.map(|l| l.container_mac().to_string()).unwrap_or_default(),
            domain_name: String::new(),
            host_name: record.endpoint.host_name.clone(),
            version,
            ns_path: record.netns.to_string_lossy().into_owned(),
            container_id: record.container.id.clone(),
            metric: Some(network.metric),
            no_default_route: network.internal || !network.default_route,
        })
    }
}

/// [`NetworkConfig::version`] of each lease that an endpoint has.
fn versions(network: &Network) -> impl Iterator<Item = i32> + use<> {
    [(network.dhcp, 0), (network.dhcp6, 1)].into_iter().filter_map(|(has, version)| has.then_some(version))
}

/// Calls the proxy. Where there is none it starts one, if `may_start` says so: otherwise there is nothing to do. It calls again where one
/// ends before it answers: one may have been idle, or killed, just when the call came, and what is asked for can be asked twice.
///
/// # Errors
/// The outer: no proxy can be reached. The inner: its answer.
fn call<T: Message + Default>(
    dir: &ProxyDir,
    method: &str,
    config: &NetworkConfig,
    limit: Duration,
    stop: impl Fn() -> bool,
    may_start: impl Fn() -> bool,
) -> Result<Result<T>> {
    let (begun, path) = (Instant::now(), dir.socket());
    let mut pauses = PAUSES.iter();
    loop {
        let left = limit.saturating_sub(begun.elapsed()).max(LEAST);
        let failed = match rpc::call(&path, method, config, left, &stop) {
            Ok(answer) => return Ok(answer),
            Err(e) if rpc::is_absent(&e) && !may_start() => return Ok(Ok(T::default())),
            Err(e) => e,
        };
        let may_be_repeated = rpc::is_absent(&failed) || failed.kind() == ErrorKind::ConnectionAborted;
        match pauses.next().filter(|_| may_be_repeated) {
            Some(pause) => std::thread::sleep(Duration::from_millis(*pause)),
            // The text is netavark's.
            None => {
                return Err(Error::new(format!("socket {path:?}"))
                    .because(format!("{failed}, is the netavark-dhcp-proxy.socket unit enabled?")));
            }
        }
        start(dir)?;
    }
}

/// Starts a proxy, unless another command is quicker. The socket is made here, so that a request can be sent at once.
fn start(dir: &ProxyDir) -> Result<()> {
    let what = || format!("cannot start the DHCP proxy of {}", dir.path().display());
    dir.create()?;
    let _held = dir.hold()?;
    let path = dir.socket();
    match UnixStream::connect(&path) {
        Ok(_) => return Ok(()),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(&path).context(what)?,
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(Error::new(what()).because(e)),
    }
    let listener = UnixListener::bind(&path).context(what)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).context(what)?;
    let mut command = detached("warn");
    command.args(["dhcp-proxy", "--on-stdin", "--activity-timeout", IDLE, "--dir"]).arg(dir.path());
    let started = command.stdin(Stdio::from(OwnedFd::from(listener))).spawn();
    if started.is_err() {
        let _ = std::fs::remove_file(&path);
    }
    started.map(drop).context(what)
}
