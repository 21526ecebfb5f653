//! The network backends that are set up on the host of the three machines.

use crate::test::run_cargo;
use crate::workspace;
use anyhow::{Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    Netpath,
    /// The release that netpath is compared with, built from its crate.
    Netavark,
}

impl Program {
    pub fn in_guest(self) -> &'static str {
        match self {
            Self::Netpath => "/usr/bin/netpath",
            Self::Netavark => "/usr/bin/netavark",
        }
    }
}

#[derive(Debug)]
pub struct Variant {
    pub key: &'static str,
    pub title: &'static str,
    pub program: Program,
    pub environment: &'static [(&'static str, &'static str)],
    /// Options of the network.
    pub options: &'static [(&'static str, &'static str)],
    /// An option that the program must know; without it the variant does not exist.
    since: Option<&'static str>,
}

/// The environment variable of the rung, and the network options of the path and of XDP.
const RUNG: &str = "NETPATH_DATAPATH";
const PATH: &str = "netpath.path";
const XDP: &str = "netpath.xdp";

impl Variant {
    /// Compares `netpath status --json` while the container is up with the request: where a kernel rejects something, netpath
    /// falls back, and another variant would be measured under this name.
    ///
    /// # Errors
    /// Another rung, another path, or programs at the wrong hooks.
    pub fn is_in_use(&self, status: &Value, uplinks: &[&str]) -> Result<()> {
        if let Some(wrong) = self.wrong(status, uplinks) {
            bail!(
                "{} is not in use: {wrong}\n  next: leave it out by --variants, or take another --kernel",
                self.title
            );
        }
        Ok(())
    }

    fn wrong(&self, status: &Value, uplinks: &[&str]) -> Option<String> {
        let asked = |of: &[(&str, &'static str)], name| of.iter().find(|(n, _)| *n == name).map(|(_, value)| *value);
        let hooks = || list(status, "hooks");
        let (rung, wanted) = (status["rung"].as_str(), asked(self.environment, RUNG));
        if rung != wanted {
            let shown = |rung: Option<&str>| rung.map_or("none of netpath's".to_owned(), |r| format!("netpath's {r}"));
            return Some(format!(
                "the datapath is {}, not {}{}",
                shown(rung),
                shown(wanted),
                why(status, "rejected_rungs")
            ));
        }
        if wanted != Some("ebpf") {
            // They would add to the cost of each packet.
            let hook = hooks().next()?;
            return Some(format!("{} is still attached, side {}", hook["program"], hook["side"]));
        }
        let path = asked(self.options, PATH);
        let paths: Vec<Option<&str>> = list(status, "networks").map(|n| n["path"].as_str()).collect();
        if paths.is_empty() || paths.iter().any(|p| *p != path) {
            return Some(format!("the path of its network is {paths:?}, not {path:?}"));
        }
        let is_early = asked(self.options, XDP) == Some("on");
        for uplink in uplinks {
            let has = |program: &str| hooks().any(|h| h["program"] == program && h["interface"] == *uplink);
            if !has("np_uplink_in") {
                return Some(format!("np_uplink_in is not at {uplink}"));
            }
            if has("np_xdp_in") != is_early {
                let is = if is_early { "is not" } else { "is" };
                return Some(format!("np_xdp_in {is} at {uplink}{}", why(status, "xdp_refused")));
            }
        }
        None
    }
}

fn list<'a>(status: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    status[name].as_array().into_iter().flatten()
}

/// The reasons in a list of rejected choices, if any.
fn why(status: &Value, name: &str) -> String {
    list(status, name).filter_map(|r| r["why"].as_str()).map(|why| format!(": {why}")).collect()
}

/// The peer of the comparison.
pub const PEER: &str = "netavark";

pub const ALL: &[Variant] = &[
    netpath("netpath-offload", "netpath offload", EBPF, &[(PATH, "offload")], None),
    netpath("netpath-edge", "netpath edge", EBPF, &[(PATH, "edge")], None),
    netpath("netpath-xdp", "netpath XDP", EBPF, &[(PATH, "offload"), (XDP, "on")], Some(XDP)),
    netpath("netpath-iptables", "netpath iptables", &[(RUNG, "iptables")], &[], None),
    Variant {
        key: PEER,
        title: "netavark 2.1",
        program: Program::Netavark,
        environment: &[("NETAVARK_FW", "nftables")],
        options: &[],
        since: None,
    },
];

const EBPF: &[(&str, &str)] = &[(RUNG, "ebpf")];

const fn netpath(
    key: &'static str,
    title: &'static str,
    environment: &'static [(&'static str, &'static str)],
    options: &'static [(&'static str, &'static str)],
    since: Option<&'static str>,
) -> Variant {
    Variant { key, title, program: Program::Netpath, environment, options, since }
}

/// The variants of the `netpath` binary at `binary` and, with `peer`, Netavark; with `names` only these.
///
/// # Errors
/// An unknown name, or the binary cannot be read.
pub fn chosen(binary: &Path, peer: bool, names: &[String]) -> Result<Vec<&'static Variant>> {
    let code = std::fs::read(binary)?;
    let knows = |option: &str| code.windows(option.len()).any(|w| w == option.as_bytes());
    let there: Vec<_> =
        ALL.iter().filter(|v| v.since.is_none_or(knows) && (peer || v.program == Program::Netpath)).collect();
    if let Some(unknown) = names.iter().find(|n| !there.iter().any(|v| v.key == **n)) {
        let known: Vec<_> = there.iter().map(|v| v.key).collect();
        bail!("--variants {unknown}: there is {}", known.join(", "));
    }
    Ok(there.into_iter().filter(|v| names.is_empty() || names.iter().any(|n| n == v.key)).collect())
}

/// The path of a built program.
pub fn built(name: &str) -> PathBuf {
    workspace::target().join("debug").join(name)
}

/// Builds netpath in the release profile, for measurements. Returns the binary.
///
/// # Errors
/// The build fails.
pub fn released() -> Result<PathBuf> {
    run_cargo(workspace::cargo().args(["build", "--quiet", "--release", "-p", "netpath", "--bin", "netpath"]))?;
    Ok(workspace::target().join("release/netpath"))
}

/// Version of the netpath of this checkout and, where git is available, the commit. Untracked files are ignored.
pub fn version() -> String {
    let git = |arguments: &[&str]| {
        let out = Command::new("git").current_dir(workspace::root()).args(arguments).output().ok()?;
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
    };
    let number = env!("CARGO_PKG_VERSION");
    let Some(commit) = git(&["rev-parse", "--short", "HEAD"]) else { return format!("netpath {number}") };
    let is_clean = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| changes.is_empty());
    format!("netpath {number} ({commit}{})", if is_clean { "" } else { "-dirty" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The status on the eBPF rung: a path, and the uplinks that have the XDP program.
    fn status(path: &str, early: &[&str]) -> Value {
        let hook = |program: &str, uplink: &str| json!({"program": program, "interface": uplink, "side": "ingress"});
        let uplinks = ["eth0", "eth1"].iter().map(|u| hook("np_uplink_in", u));
        let hooks: Vec<Value> = uplinks.chain(early.iter().map(|u| hook("np_xdp_in", u))).collect();
        json!({"rung": "ebpf", "networks": [{"path": path}], "hooks": hooks})
    }

    #[test]
    fn a_variant_that_came_up_another_way_is_not_measured() {
        let wrong = |key: &str, status: &Value| {
            let variant = ALL.iter().find(|v| v.key == key).expect("a variant");
            variant.is_in_use(status, &["eth0", "eth1"]).err().map(|e| e.to_string()).unwrap_or_default()
        };
        let (offload, edge) = (status("offload", &[]), status("edge", &[]));
        let iptables = json!({"rung": "iptables", "hooks": [], "rejected_rungs": [{"rung": "ebpf", "why": "no BPF"}]});
        let nothing = json!({"rung": null, "hooks": [], "networks": []});
        assert_eq!("", wrong("netpath-offload", &offload));
        assert_eq!("", wrong("netpath-edge", &edge));
        assert_eq!("", wrong("netpath-xdp", &status("offload", &["eth0", "eth1"])));
        assert_eq!("", wrong("netpath-iptables", &iptables));
        assert_eq!("", wrong(PEER, &nothing));

        assert!(wrong("netpath-offload", &iptables).contains("netpath's iptables, not netpath's ebpf: no BPF"));
        assert!(wrong("netpath-offload", &edge).contains("the path of its network"));
        assert!(wrong("netpath-edge", &nothing).contains("none of netpath's"));
        assert!(wrong("netpath-offload", &status("offload", &["eth1"])).contains("np_xdp_in is at eth1"));
        assert!(wrong("netpath-xdp", &offload).contains("np_xdp_in is not at eth0"));
        assert!(wrong("netpath-xdp", &status("offload", &["eth0"])).contains("np_xdp_in is not at eth1"));
        assert!(wrong(PEER, &offload).contains("not none of netpath's"));
        let mut left = nothing.clone();
        left["hooks"] = offload["hooks"].clone();
        assert!(wrong(PEER, &left).contains("np_uplink_in"), "{}", wrong(PEER, &left));
        let mut refused = offload.clone();
        refused["xdp_refused"] = json!([{"interface": "eth0", "why": "its driver has none"}]);
        assert!(wrong("netpath-xdp", &refused).contains("its driver has none"));
        let mut no_uplink = offload.clone();
        no_uplink["hooks"] = json!([]);
        assert!(wrong("netpath-offload", &no_uplink).contains("np_uplink_in is not at eth0"));
    }

    #[test]
    fn a_variant_whose_option_the_binary_does_not_know_is_not_there() {
        let directory = std::env::temp_dir().join(format!("netpath-xtask-{}-variants", std::process::id()));
        std::fs::create_dir_all(&directory).expect("a directory");
        let binary = directory.join("netpath");
        let keys = |text: &str, peer| -> Vec<&str> {
            std::fs::write(&binary, text).expect("a file");
            chosen(&binary, peer, &[]).expect("variants").iter().map(|v| v.key).collect()
        };
        assert_eq!(vec!["netpath-offload", "netpath-edge", "netpath-iptables"], keys("netpath.path", false));
        assert!(keys("..netpath.xdp..", false).contains(&"netpath-xdp"));
        assert_eq!(Some(&PEER), keys("", true).last());
        let error = chosen(&binary, false, &["netpath-xdp".to_owned()]).expect_err("unknown").to_string();
        assert!(error.contains("netpath-xdp") && error.contains("netpath-edge"), "{error}");
        std::fs::remove_dir_all(directory).expect("removed");
    }
}
