//! Netavark's command line. Podman puts the options before the verb.

use crate::agent::dhcp_proxy;
use crate::datapath::ladder::Choice;
use crate::model::Rung;
use crate::model::error::{Context, Error, Result};
use crate::ops;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

#[derive(Parser, Debug)]
#[command(name = "netavark", version = concat!("2.1.0 (netpath ", env!("CARGO_PKG_VERSION"), ")"))]
#[command(about = "netpath in netavark's place: the container network of a host, with an eBPF datapath")]
pub(super) struct Args {
    /// Read the JSON document from this file instead of standard input
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// Firewall driver of the engine: none, or empty, ebpf, nftables, iptables, firewalld for the best datapath
    #[arg(long, env = "NETAVARK_FW", default_value = "")]
    firewall_driver: String,
    /// Run-time directory of the engine
    #[arg(short, long)]
    pub config: Option<PathBuf>,
    /// The engine runs without root
    #[arg(short, long, default_value_t = false, num_args = 1, action = clap::ArgAction::Set)]
    pub rootless: bool,
    /// The aardvark-dns program; empty if the engine has none
    #[arg(short, long, default_value = "/usr/libexec/podman/aardvark-dns", value_parser = any_path)]
    pub aardvark_binary: Option<PathBuf>,
    /// Directory of netavark plugins; can be repeated
    #[arg(long)]
    pub plugin_directory: Vec<OsString>,
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Subcommand, Debug)]
pub(super) enum Verb {
    /// Complete a network's configuration
    Create,
    /// Attach a container to networks
    Setup {
        /// Path of the container's network namespace
        #[arg(value_parser = any_path, value_name = "NETNS_PATH")]
        netns: PathBuf,
    },
    /// Detach a container from networks
    Teardown {
        /// Path of the container's network namespace
        #[arg(value_parser = any_path, value_name = "NETNS_PATH")]
        netns: PathBuf,
    },
    /// Change the DNS servers of a network
    Update {
        network: String,
        /// Addresses separated by commas; empty for none
        #[arg(long, required = true)]
        network_dns_servers: Vec<String>,
    },
    /// Print the version
    Version,
    /// Get addresses for containers by DHCP, and extend their leases
    DhcpProxy(dhcp_proxy::Options),
    /// Restore the rules for containers each time firewalld reloads
    FirewalldReload,
    /// Restore the rules for containers after a flush of the host's rules
    FirewallReload,
}

impl Verb {
    /// Whether the command ends with its work on the host.
    pub(super) fn is_brief(&self) -> bool {
        matches!(self, Verb::Setup { .. } | Verb::Teardown { .. } | Verb::Update { .. } | Verb::FirewallReload)
    }
}

/// Accepts an empty path too: netpath's own error is clearer to an engine than clap's usage text.
fn any_path(path: &str) -> std::result::Result<PathBuf, String> {
    Ok(PathBuf::from(path))
}

impl Args {
    /// The text of the document: from `--file`, else from standard input. `what`: its name in errors.
    ///
    /// # Errors
    /// The document cannot be read.
    pub(super) fn document(&self, stdin: Result<String>, what: &str) -> Result<String> {
        match &self.file {
            Some(path) => std::fs::read_to_string(path).map_err(|e| {
                // The text is netavark's.
                Error::new(format!("failed to load {what}")).because(format!("IO error: {e}: file {}", path.display()))
            }),
            None => stdin,
        }
    }

    /// The requested datapath: `NETPATH_DATAPATH` takes precedence over the engine's firewall driver.
    ///
    /// # Errors
    /// An unknown driver or datapath.
    pub(super) fn choice(&self) -> Result<Choice> {
        let engine = match self.firewall_driver.to_ascii_lowercase().as_str() {
            "" | "ebpf" | "nftables" | "iptables" | "firewalld" => Choice::Auto,
            "none" => {
                // Target and text are netavark's.
                tracing::info!(target: "netpath::firewall", "Not using firewall");
                Choice::Only(Rung::None)
            }
            other => {
                return Err(Error::new(format!("Must provide a valid firewall backend, got {other}"))
                    .because("expected ebpf, nftables, iptables, firewalld or none")
                    .next("set firewall_driver in containers.conf, or leave it out"));
            }
        };
        let own = std::env::var("NETPATH_DATAPATH").unwrap_or_default();
        Ok(ops::wish(&own)?.unwrap_or(engine))
    }
}

/// Whether the engine writes a document to standard input for this call. Decided before the options are parsed, so that
/// the document is also read when the options are rejected.
pub(super) fn takes_document(args: &[OsString]) -> bool {
    let has = |word: &str| args.iter().any(|a| a == word);
    ["setup", "teardown", "create", "update"].into_iter().any(has)
        && !args.iter().any(|a| {
            let a = a.to_string_lossy();
            a == "-f" || a == "--file" || a.starts_with("--file=")
        })
}

/// The port that aardvark-dns listens on.
///
/// # Errors
/// `NETAVARK_DNS_PORT` is not a port.
pub(super) fn dns_port() -> Result<u16> {
    match std::env::var("NETAVARK_DNS_PORT") {
        Ok(text) => text.parse().context(|| format!("Invalid NETAVARK_DNS_PORT {text}")),
        Err(_) => Ok(53),
    }
}

/// The servers of `update`: Podman joins them with commas into one value, and sends an empty value to clear the list.
///
/// # Errors
/// An item is not an address.
pub(super) fn servers(values: &[String]) -> Result<Vec<IpAddr>> {
    let words = values.iter().flat_map(|v| v.split(',')).map(str::trim).filter(|w| !w.is_empty());
    words.map(|w| w.parse().context(|| format!("--network-dns-servers: {w:?} is not an IP address"))).collect()
}

/// The version of netavark whose contract this is.
const CONTRACT: &str = "2.1.0";

/// The output of `netavark version`. Tools compare `version` with numbers and know netavark's drivers.
pub(super) fn version() -> String {
    crate::face::version_json(CONTRACT, Some("nftables"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> std::result::Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once("netavark").chain(words.iter().copied()))
    }

    #[test]
    fn podmans_command_line_is_parsed() {
        let args = parse(&[
            "--config",
            "/run/containers/networks",
            "--rootless=false",
            "--aardvark-binary=",
            "setup",
            "/run/netns/x",
        ]);
        let args = args.expect("parsed");
        assert!(!args.rootless);
        assert_eq!(Some(PathBuf::new()), args.aardvark_binary);
        assert!(matches!(args.verb, Verb::Setup { ref netns } if netns == &PathBuf::from("/run/netns/x")));
        assert!(parse(&["-c", "/x", "--rootless=true", "update", "net", "--network-dns-servers", ""]).is_ok());
        assert!(parse(&["setup"]).is_err(), "no path");
        assert!(parse(&["update", "net"]).is_err(), "update without servers");
    }

    #[test]
    fn the_engines_firewall_driver_selects_a_datapath() {
        for (word, choice) in [("", Choice::Auto), ("nftables", Choice::Auto), ("None", Choice::Only(Rung::None))] {
            let args = parse(&["--firewall-driver", word, "version"]).expect("parsed");
            assert_eq!(choice, args.choice().expect("a choice"), "{word:?}");
        }
        assert!(parse(&["--firewall-driver", "pf", "version"]).expect("parsed").choice().is_err());
    }

    #[test]
    fn update_takes_servers_separated_by_commas_or_none() {
        assert_eq!(2, servers(&["192.0.2.1,2001:db8::1".into()]).expect("addresses").len());
        assert!(servers(&[String::new()]).expect("none").is_empty());
        assert!(servers(&["x".into()]).expect_err("no address").to_string().contains("\"x\""));
    }

    #[test]
    fn only_verbs_that_take_a_document_read_standard_input() {
        let words = |w: &[&str]| w.iter().map(OsString::from).collect::<Vec<_>>();
        assert!(takes_document(&words(&["netavark", "--nonsense", "setup", "x"])));
        assert!(!takes_document(&words(&["netavark", "-f", "x.json", "setup", "x"])));
        assert!(!takes_document(&words(&["netavark", "version"])));
    }
}
