//! The names of containers: what commands tell the agent about them.

use crate::datapath::ladder;
use crate::dns::inherited::Inherited;
use crate::dns::server::{Lead, Led, Loaded, Place};
use crate::dns::service::Service;
use crate::dns::{Settings, pid_file};
use crate::state::agent::AgentLock;
use crate::state::dns_places::{self, DnsPlace};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use tokio::sync::Mutex;

pub(super) struct Names {
    lock: Arc<AgentLock>,
    /// Of the state.
    dir: PathBuf,
    served: Mutex<Served>,
}

#[derive(Default)]
struct Served {
    /// From the first place on.
    service: Option<Service>,
    places: Vec<DnsPlace>,
    /// From the first place on that wants it; `None` inside: the kernel refuses it.
    lead: Option<Option<Arc<Lead>>>,
}

impl Names {
    pub(super) fn new(lock: Arc<AgentLock>, dir: PathBuf) -> Self {
        Self { lock, dir, served: Mutex::default() }
    }

    /// Serves what an earlier agent has served, with its sockets where it was replaced.
    pub(super) async fn restore(&self, inherited: Inherited) {
        let places = dns_places::read(&self.dir);
        if places.is_empty() {
            return;
        }
        match Service::start(inherited) {
            Ok(service) => self.served.lock().await.service = Some(service),
            Err(e) => tracing::error!("{e}"),
        }
        for place in places {
            self.log(self.serve(place).await);
        }
        if let Some(service) = &self.served.lock().await.service {
            service.restored();
        }
    }

    /// Reads all files again.
    pub(super) async fn reload(&self) {
        let places = self.served.lock().await.places.clone();
        for place in places {
            self.log(self.serve(place).await);
        }
    }

    fn log(&self, loaded: io::Result<Loaded>) {
        match loaded {
            Ok(loaded) => loaded.failed.iter().for_each(|(_, cause)| tracing::error!("{cause}")),
            Err(e) => tracing::error!("{e}"),
        }
    }

    /// Serves the names in a directory as they are now.
    ///
    /// # Errors
    /// The directory cannot be read, or the state not written.
    pub(super) async fn serve(&self, mut place: DnsPlace) -> io::Result<Loaded> {
        let mut served = self.served.lock().await;
        let Served { service, places, lead } = &mut *served;
        // A command knows those of its container.
        let known = places.iter().filter(|other| other.dir == place.dir).flat_map(|other| &other.led);
        place.led.extend(known);
        place.led.sort_unstable();
        place.led.dedup();
        let by = match lead {
            _ if place.led.is_empty() => None,
            Some(lead) => lead.clone(),
            None => lead.insert(open_lead()).clone(),
        };
        let service = match service {
            Some(service) => service,
            None => service.insert(Service::start(Inherited::default())?),
        };
        let settings = Settings::new(crate::dns::SEARCH_DOMAIN, place.forwards);
        let led = Led { addresses: place.led.clone(), by };
        let loaded = service.serve(Place { dir: place.dir.clone(), port: place.port, settings, led }).await?;
        place.led.retain(|address| loaded.listen.contains(address));
        let before = places.clone();
        places.retain(|other| other.dir != place.dir);
        if loaded.networks > 0 {
            pid_file::write(&place.dir)?;
            places.push(place);
        } else {
            pid_file::remove_own(&place.dir);
        }
        if *places != before {
            dns_places::write(&self.lock, &self.dir, places).map_err(|e| io::Error::other(e.to_string()))?;
        }
        Ok(loaded)
    }

    /// What each server has counted, as JSON.
    pub(super) async fn counts(&self) -> serde_json::Value {
        let served = self.served.lock().await;
        let counts = match &served.service {
            Some(service) => service.counts().await.unwrap_or_default(),
            None => Vec::new(),
        };
        let server = |(dir, counts)| serde_json::json!({ "dir": dir, "counts": counts });
        counts.into_iter().map(server).collect()
    }

    /// So that no command signals a process of the same number later.
    pub(super) async fn close(&self) {
        self.served.lock().await.places.iter().for_each(|place| pid_file::remove_own(&place.dir));
    }
}

fn open_lead() -> Option<Arc<Lead>> {
    let opened = ladder::open_dns();
    let sockets = opened.inspect_err(|e| tracing::info!("the DNS server needs port 53 of the gateways: {e}")).ok()?;
    let sockets = std::sync::Mutex::new(sockets);
    Some(Arc::new(move |server, is_udp, socket| {
        let led = sockets.lock().unwrap_or_else(PoisonError::into_inner).lead(server, is_udp, socket);
        led.map_err(|e| io::Error::other(e.to_string()))
    }))
}
