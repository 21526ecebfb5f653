//! State of a node: its own namespace, containers with their backend, servers, connections, background programs.

use crate::commands::{Container, Probe};
use crate::ethtool;
use crate::measure::Served;
use crate::probes::dial;
use anyhow::{Context, Result, bail, ensure};
use aya::programs::loaded_programs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use support::backend::Backend;
use support::host::{Netns, SOON, wait_for};
use support::long_lived::LongLived;
use support::netavark::{Document, Network};
use support::topology::sends;
use support::traffic::{ANY, Proto, Server};

const DIR: &str = "/run/vm_node";
/// Number for [`Network::dual`], and the container's host part in it.
const NETWORK: u8 = 7;
const HOST_PART: u8 = 5;
const AARDVARK: &str = "/usr/bin/aardvark-dns";
const DRIVER: &str = "/sys/bus/virtio/drivers/virtio_net";

/// A container that is up.
struct Placed {
    netns: Netns,
    backend: Backend,
    document: Value,
    /// Files of the backend.
    dir: PathBuf,
}

impl Placed {
    fn end(self) -> Result<()> {
        drop(self.netns);
        fs::remove_dir_all(&self.dir).with_context(|| format!("cannot remove {}", self.dir.display()))
    }
}

pub(crate) struct Machine {
    pub own: Netns,
    // Dropped before the namespaces that they are in.
    pub served: BTreeMap<Option<String>, Served>,
    echoes: BTreeMap<Option<String>, Vec<Server>>,
    long_lived: BTreeMap<String, LongLived>,
    running: BTreeMap<String, Child>,
    containers: BTreeMap<String, Placed>,
}

impl Machine {
    pub(crate) fn new() -> Result<Self> {
        fs::create_dir_all(DIR).with_context(|| format!("cannot create {DIR}"))?;
        Ok(Self {
            own: Netns::own()?,
            served: BTreeMap::new(),
            echoes: BTreeMap::new(),
            long_lived: BTreeMap::new(),
            running: BTreeMap::new(),
            containers: BTreeMap::new(),
        })
    }

    /// The namespace of a container, or the machine's own.
    pub(crate) fn netns(&self, container: Option<&str>) -> Result<&Netns> {
        let Some(name) = container else { return Ok(&self.own) };
        self.containers.get(name).map(|c| &c.netns).with_context(|| format!("there is no container {name}"))
    }

    pub(crate) fn up(&mut self, wanted: Container) -> Result<Duration> {
        ensure!(!self.containers.contains_key(&wanted.name), "there is a container {} already", wanted.name);
        let dir = Path::new(DIR).join(&wanted.name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let network = wanted.options.iter().fold(Network::dual(NETWORK), |n, (key, value)| n.option(key, value));
        let document = wanted.publish.iter().fold(
            Document::new().on_dual(&network, "eth0", NETWORK, HOST_PART),
            |document, (host, container)| {
                document.publish("", *host, *container, "tcp").publish("", *host, *container, "udp")
            },
        );
        let id: String = wanted.name.bytes().map(|b| format!("{b:02x}")).collect();
        let placed = Placed {
            netns: Netns::create(&dir.join("netns"))?,
            backend: Backend::new(
                Path::new(&wanted.program),
                Path::new(AARDVARK),
                wanted.environment.into_iter().collect(),
                &dir,
            )?,
            document: document.json_for(&format!("{id:0>64}"), &wanted.name),
            dir,
        };
        let took = match placed.backend.call("setup", &self.own, placed.netns.path(), &placed.document) {
            Ok(took) => took,
            Err(error) => {
                placed.end()?;
                return Err(error);
            }
        };
        self.containers.insert(wanted.name, placed);
        Ok(took)
    }

    pub(crate) fn down(&mut self, name: &str) -> Result<Duration> {
        let key = Some(name.to_owned());
        self.served.remove(&key);
        self.echoes.remove(&key);
        let placed = self.containers.remove(name).with_context(|| format!("there is no container {name}"))?;
        let took = placed.backend.call("teardown", &self.own, placed.netns.path(), &placed.document);
        // Always: the next container uses the same name.
        let ended = placed.end();
        took.and_then(|took| ended.map(|()| took))
    }

    /// netpath's status on this machine.
    pub(crate) fn status(&self) -> Result<Value> {
        let said = self.own.command("netpath", &["status", "--json"])?;
        serde_json::from_str(&said).context("netpath status --json: no JSON")
    }

    pub(crate) fn echo(&mut self, container: Option<&str>, port: u16, name: &str) -> Result<()> {
        let netns = self.netns(container)?;
        let servers = Proto::BOTH.map(|proto| Server::echo(netns, proto, ANY, port, name));
        let servers = servers.into_iter().collect::<Result<Vec<_>>>()?;
        self.echoes.entry(container.map(str::to_owned)).or_default().extend(servers);
        Ok(())
    }

    pub(crate) fn serve(&mut self, container: Option<&str>) -> Result<()> {
        let served = Served::start(self.netns(container)?)?;
        self.served.insert(container.map(str::to_owned), served);
        Ok(())
    }

    pub(crate) fn long_lived(&mut self, name: String, probe: &Probe) -> Result<()> {
        let long_lived = LongLived::start(self.netns(probe.container.as_deref())?, &dial(probe).patience(SOON * 6))?;
        self.long_lived.insert(name, long_lived);
        Ok(())
    }

    pub(crate) fn goes_on(&self, name: &str) -> Result<()> {
        self.long_lived.get(name).with_context(|| format!("there is no connection {name}"))?.goes_on()
    }

    pub(crate) fn finish(&mut self, name: &str) -> Result<()> {
        self.long_lived.remove(name).with_context(|| format!("there is no connection {name}"))?.finish()
    }

    pub(crate) fn carrier(&self, link: &str, up: bool, within_ms: u64) -> Result<()> {
        let carrier = format!("/sys/class/net/{link}/carrier");
        let wanted = if up { "1" } else { "0" };
        let what = format!("{link} {} a carrier", if up { "with" } else { "without" });
        wait_for(&what, Duration::from_millis(within_ms), || {
            (fs::read_to_string(&carrier).ok()?.trim() == wanted).then_some(())
        })?;
        // A carrier alone is not enough: until the kernel has processed it, it drops all packets, and a lost neighbour request
        // is repeated after a second, independently of the datapath.
        if up { sends(&self.own, link) } else { Ok(()) }
    }

    pub(crate) fn has(&self, link: &str, address: IpAddr, within_ms: u64) -> Result<()> {
        let wanted = address.to_string();
        wait_for(&format!("{link} with {address} alone"), Duration::from_millis(within_ms), || {
            let links = self.own.ip_json(&["address", "show", "dev", link]).ok()?;
            let family = if address.is_ipv4() { "inet" } else { "inet6" };
            let all: Vec<&Value> = links[0]["addr_info"].as_array()?.iter().filter(|a| a["family"] == family).collect();
            (all.len() == 1 && all[0]["local"] == wanted.as_str()).then_some(())
        })
    }

    pub(crate) fn unplug(&self, link: &str) -> Result<String> {
        let device = fs::read_link(format!("/sys/class/net/{link}/device"));
        let device = device.with_context(|| format!("{link} is no device"))?;
        let name = device.file_name().unwrap_or_default().to_string_lossy().into_owned();
        fs::write(format!("{DRIVER}/unbind"), &name).with_context(|| format!("cannot unbind {name}"))?;
        Ok(name)
    }

    pub(crate) fn plug(&self, device: &str, link: &str, within_ms: u64) -> Result<()> {
        fs::write(format!("{DRIVER}/bind"), device).with_context(|| format!("cannot bind {device}"))?;
        wait_for(&format!("{link}, a link"), Duration::from_millis(within_ms), || {
            Path::new("/sys/class/net").join(link).exists().then_some(())
        })
    }

    /// Larger packets are lost without an error: as on a wire that is narrower than its ends.
    pub(crate) fn narrow(&self, link: &str, mtu: u32) -> Result<()> {
        // Packets must be measured as received, and not as merged by GRO.
        ethtool::set_gro(link, mtu == 0).with_context(|| format!("cannot set GRO of {link}"))?;
        // Absent at first.
        let _ = self.own.feed("nft", &["-f", "-"], "delete table netdev narrow\n");
        if mtu == 0 {
            return Ok(());
        }
        let rules = format!(
            "table netdev narrow {{\n chain in {{\n  type filter hook ingress device {link} priority 0;\n  \
             meta length > {mtu} counter drop\n }}\n}}\n"
        );
        self.own.feed("nft", &["-f", "-"], &rules).map(drop)
    }

    /// In the background; its output goes to the console.
    pub(crate) fn start(&mut self, name: &str, mut command: Command) -> Result<()> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        self.running.insert(name.to_owned(), child);
        Ok(())
    }

    pub(crate) fn signal(&self, name: &str, signal: Signal) -> Result<()> {
        let child = self.running.get(name).with_context(|| format!("{name} does not run"))?;
        kill(Pid::from_raw(child.id() as i32), signal).with_context(|| format!("cannot signal {name}"))
    }

    /// Whether it still runs or not.
    pub(crate) fn end(&mut self, name: &str) -> Result<()> {
        let Some(mut child) = self.running.remove(name) else { return Ok(()) };
        if let Some(status) = child.try_wait()? {
            bail!("{name} has ended by itself: {status}");
        }
        child.kill().with_context(|| format!("cannot end {name}"))?;
        child.wait().map(drop).with_context(|| format!("cannot wait for {name}"))
    }

    /// Objects on this machine that a backend may leave behind: state files and pins, links, qdiscs and their programs, loaded
    /// programs of netpath, rules, and processes. One line each.
    pub(crate) fn left(&self) -> Result<Vec<String>> {
        const BACKENDS: [&str; 3] = ["netpath", "netavark", "aardvark"];
        let mut found = Vec::new();
        for place in ["/run/netpath", "/sys/fs/bpf/netpath"] {
            files(Path::new(place), &mut found);
        }
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if BACKENDS.iter().any(|backend| name.starts_with(backend)) {
                found.push(format!("process {} {}", entry.file_name().to_string_lossy(), name.trim()));
            }
        }
        let programs = loaded_programs().flatten().filter_map(|p| p.name_as_str().map(str::to_owned));
        found.extend(programs.filter(|name| name.starts_with("np_")).map(|name| format!("program {name}")));
        for link in self.own.ip_json(&["-details", "link", "show"])?.as_array().into_iter().flatten() {
            found.push(format!("link {} xdp {}", link["ifname"], link["xdp"]));
        }
        // Without counters.
        for (program, words) in [("tc", ["qdisc", "show"].as_slice()), ("nft", &["--stateless", "list", "ruleset"])] {
            let said = self.own.command(program, words)?;
            found.extend(said.lines().map(|line| format!("{program} {}", line.trim())));
        }
        Ok(found)
    }
}

fn files(place: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, found);
        } else {
            found.push(path.display().to_string());
        }
    }
}
