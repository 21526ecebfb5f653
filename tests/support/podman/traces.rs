//! The state of a [`Machine`](super::Machine), read without netpath's own code, so that leftovers are found.

use super::{Backend, Machine};
use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

/// Objects by kind: links, routes, rules, files, processes …
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Traces(BTreeMap<&'static str, BTreeSet<String>>);

impl Traces {
    /// Objects that only `self` or only `before` has, one line each.
    fn differences(&self, before: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let empty = BTreeSet::new();
        for kind in self.0.keys().chain(before.0.keys()).collect::<BTreeSet<_>>() {
            let (now, then) = (self.0.get(kind).unwrap_or(&empty), before.0.get(kind).unwrap_or(&empty));
            lines.extend(now.difference(then).map(|x| format!("{kind} left: {x}")));
            // A mount of the real host is removed when its directory is removed there.
            if *kind != "mount" {
                lines.extend(then.difference(now).map(|x| format!("{kind} gone: {x}")));
            }
        }
        lines
    }

    fn add(&mut self, kind: &'static str, things: impl IntoIterator<Item = String>) {
        self.0.entry(kind).or_default().extend(things);
    }
}

/// Ids of the programs and maps that were pinned on the machine: the kernel does not reuse an id.
#[derive(Default)]
pub struct KernelObjects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl KernelObjects {
    /// Adds the objects pinned below `bpffs` now.
    pub fn note(&mut self, bpffs: &Path) {
        for file in files_below(bpffs) {
            let path = bpffs.join(file);
            if let Ok(info) = aya::programs::ProgramInfo::from_pin(&path) {
                self.programs.insert(info.id());
            } else if let Ok(info) = aya::maps::MapInfo::from_pin(&path) {
                self.maps.insert(info.id());
            }
        }
    }

    fn alive(&self) -> Vec<String> {
        let programs = aya::programs::loaded_programs().flatten().filter(|p| self.programs.contains(&p.id()));
        let maps = aya::maps::loaded_maps().flatten().filter(|m| self.maps.contains(&m.id()));
        let programs = programs.map(|p| format!("{} id {}", p.name_as_str().unwrap_or("?"), p.id()));
        let maps = maps.map(|m| format!("{} id {}", m.name_as_str().unwrap_or("?"), m.id()));
        programs.chain(maps).collect()
    }
}

impl Machine {
    /// All objects that a container network could leave behind.
    ///
    /// # Errors
    /// A kind could not be read.
    pub fn traces(&self) -> Result<Traces> {
        let mut traces = Traces::default();
        let words = |out: String| out.lines().map(|l| l.trim().to_owned()).collect::<Vec<_>>();
        let links = self.run_on_host("ip", &["-o", "link"])?;
        traces.add("link", links.lines().filter_map(|l| l.split_whitespace().nth(1)).map(str::to_owned));
        for family in ["-4", "-6"] {
            let routes = words(self.run_on_host("ip", &[family, "route", "show", "table", "all"])?);
            // Anycast routes come with forwarding, which stays.
            traces.add("route", routes.into_iter().filter(|r| !r.starts_with("anycast ")));
        }
        traces.add("policy rule", words(self.run_on_host("ip", &["rule"])?));
        traces.add("namespace", names_in(&self.root("/run/netns")));
        traces.add("process", self.processes()?);
        // Directories too: netpath removes its own with their last entry.
        let pins = everything_below(&self.root("/sys/fs/bpf")).into_iter();
        // Present in every bpffs.
        traces.add("pin", pins.filter(|p| !["maps.debug", "progs.debug"].contains(&p.as_str())));
        traces.add("file", everything_below(&self.root("/run")).into_iter().filter(|f| f.starts_with("netpath")));
        // Files of Podman and crun: databases, storage, and crun's record of a container whose conmon was killed.
        let files = files_below(&self.root("/run")).into_iter();
        traces.add(
            "file",
            files.map(|f| format!("/run/{f}")).filter(|f| {
                let podmans =
                    ["/run/containers/storage/", "/run/containers/networks/ipam.db", "/run/libpod/", "/run/crun/"];
                let locks = ["/run/lock/netavark.lock", "/run/containers/networks/aardvark.lock"];
                // Netavark 2 stores the name of its driver.
                let netavarks: &[&str] = match self.backend() {
                    Backend::Netavark => &["/run/containers/networks/firewall/"],
                    Backend::Netpath(_) => &[],
                };
                !podmans.iter().chain(&locks).chain(netavarks).any(|p| f.starts_with(p))
            }),
        );
        if self.backend() != Backend::Netavark {
            // Netavark keeps its chains and its bridges' sysctls for the next container.
            traces.add("netfilter rule", self.netfilter()?);
            traces.add("sysctl", self.sysctls()?);
            traces.add("mount", self.mounts()?);
        }
        Ok(traces)
    }

    /// Rules of netfilter in the host's namespace, as iptables and nft show them; the empty base chains of iptables do not
    /// count.
    ///
    /// # Errors
    /// No tool to show them is installed.
    pub fn netfilter(&self) -> Result<Vec<String>> {
        let mut rules = Vec::new();
        let mut shown = false;
        for tool in ["iptables-save", "ip6tables-save", "iptables-legacy-save", "ip6tables-legacy-save"] {
            if super::find_program(tool).is_none() {
                continue;
            }
            shown = true;
            let saved = self.run_on_host(tool, &[])?;
            let own = saved.lines().filter(|l| l.starts_with("-A") || (l.starts_with(':') && l.contains(" - ")));
            rules.extend(own.map(|l| format!("{tool}: {}", l.split(" [").next().unwrap_or(l))));
        }
        if super::find_program("nft").is_some() {
            shown = true;
            // Tables of iptables are listed above, rule by rule.
            let tables = self.run_on_host("nft", &["list", "tables"])?;
            let names = ["filter", "nat", "mangle", "raw", "security"];
            let own = tables.lines().filter(|t| !names.iter().any(|n| t.ends_with(&format!(" {n}"))));
            rules.extend(own.map(|t| format!("nft: {t}")));
        }
        ensure!(shown, "neither iptables-save nor nft is installed");
        Ok(rules)
    }

    /// Whether programs were seen in the host's bpffs after a command of the engine.
    pub fn has_pinned_programs(&self) -> bool {
        !self.kernel_objects.borrow().programs.is_empty()
    }

    /// Command lines in the host's pid namespace, without its init and without the reader's own.
    fn processes(&self) -> Result<Vec<String>> {
        let proc = self.root("/proc");
        let mut processes = Vec::new();
        for pid in names_in(&proc).into_iter().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) {
            let Ok(command) = std::fs::read(proc.join(&pid).join("cmdline")) else { continue };
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            let name = std::fs::read_to_string(proc.join(&pid).join("comm")).unwrap_or_default();
            // An empty command line is a process that has ended and is about to be reaped; the other one ends by itself
            // (`netpath/src/netlink/later.rs`).
            if pid != "1" && !command.is_empty() && name.trim() != "netpath-closing" {
                processes.push(command.trim_end().to_owned());
            }
        }
        Ok(processes)
    }

    /// Network settings, without those that are meant to stay: forwarding stays on once a container ran, and a router accepts
    /// no redirects.
    fn sysctls(&self) -> Result<Vec<String>> {
        let script = "cd /proc/sys/net && grep -r . ipv4/conf/all ipv4/conf/default ipv4/conf/lo ipv4/conf/eth0 \
                      ipv6/conf/all ipv6/conf/default ipv6/conf/lo ipv6/conf/eth0 2>/dev/null";
        let text = finish_any(self, script)?;
        Ok(text
            .lines()
            .filter(|l| !["forwarding", "/all/accept_redirects", "stable_secret"].iter().any(|n| l.contains(n)))
            .map(str::to_owned)
            .collect())
    }

    /// Mounts of the host, without bpffs: it is mounted on demand, and stays.
    fn mounts(&self) -> Result<Vec<String>> {
        let text = self.run_on_host("cat", &["/proc/self/mountinfo"])?;
        let line = |l: &str| {
            let (mount, fs) = l.split_once(" - ")?;
            let kind = fs.split(' ').next()?;
            (kind != "bpf").then(|| format!("{kind} on {}", mount.split(' ').nth(4).unwrap_or("?")))
        };
        // Podman keeps its storage and its directory of namespaces mounted.
        let podmans = ["/run/netns", "/var/lib/containers/storage/overlay"];
        Ok(text.lines().filter_map(line).filter(|l| !podmans.iter().any(|p| l.ends_with(p))).collect())
    }

    /// Checks that nothing made after the start of the machine is left. Engines clean up asynchronously: a few seconds are
    /// allowed. The kernel frees unpinned programs and maps later, on a loaded machine even more so.
    ///
    /// # Errors
    /// The leftovers, one per line.
    pub fn nothing_left(&self) -> Result<()> {
        let begun = Instant::now();
        loop {
            let left = self.traces()?.differences(&self.before);
            let alive = self.kernel_objects.borrow().alive();
            if left.is_empty() && alive.is_empty() {
                return Ok(());
            }
            let patience = Duration::from_secs(if left.is_empty() { 60 } else { 8 });
            let objects = alive.iter().map(|object| format!("kernel object left: {object}"));
            let lines: Vec<String> = left.into_iter().chain(objects).collect();
            ensure!(begun.elapsed() < patience, "left behind:\n  {}", lines.join("\n  "));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// The state of the machine, for a failure message.
    pub fn picture(&self) -> String {
        let script = "podman ps -a; ip -br address; ip route; ip -6 route; iptables-save; ip6tables-save; \
                      cat /run/netpath/*/rung; ls -R /sys/fs/bpf/netpath /run/netpath; ps ax";
        finish_any(self, script).unwrap_or_else(|e| e.to_string())
    }
}

fn finish_any(machine: &Machine, script: &str) -> Result<String> {
    super::finish(machine.on_host("sh", &["-c", script]), None).map(|o| o.out).context("sh")
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect()
}

/// Files and directories below `dir`, as relative paths; a directory's ends with a slash.
fn everything_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![String::new()];
    while let Some(at) = open.pop() {
        for entry in std::fs::read_dir(dir.join(&at)).into_iter().flatten().flatten() {
            let mut path = format!("{at}{}", entry.file_name().to_string_lossy());
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                path.push('/');
                open.push(path.clone());
            }
            found.push(path);
        }
    }
    found
}

fn files_below(dir: &Path) -> Vec<String> {
    everything_below(dir).into_iter().filter(|path| !path.ends_with('/')).collect()
}
