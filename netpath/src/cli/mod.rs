//! netpath's own verbs, for people. Verbs read through `observe`; `gc` and `agent` also change the host.

mod print;
mod table;

use crate::agent::dhcp_proxy;
use crate::datapath::inspect::Level;
use crate::datapath::ladder;
use crate::model::error::Error;
use crate::observe::{Host, doctor, monitor, names, ports, promotion, status};
use crate::ops::{self, gc, install, preload};
use crate::state::installed::Root;
use clap::{Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

fn environment() -> String {
    format!(
        "\
Environment:
  NETPATH_DATAPATH  {}; by default the best that works
  NETPATH_TC        tcx or clsact: how the eBPF datapath attaches to interfaces; by default tcx where possible
  NETPATH_AGENT     off: no command starts the agent
  NETPATH_KEEP_LOADED  seconds that programs stay loaded after the last container, 600 by default
  RUST_LOG          filter for the log on standard error, for example netpath=debug",
        ladder::names()
    )
}

/// The container network of this host
#[derive(Parser)]
#[command(name = "netpath", version, disable_help_subcommand = true, after_help = environment())]
struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve Podman's contract, as under the program name netavark
    #[command(name = "podman", disable_help_flag = true)]
    Podman,
    /// Show the datapath and why it was chosen, its hooks, paths and counters
    Status {
        #[command(flatten)]
        output: Output,
    },
    /// List the connections of containers, and what carries their packets
    Flows {
        #[command(flatten)]
        output: Output,
    },
    /// List published ports and the containers that own them
    Ports {
        #[command(flatten)]
        output: Output,
    },
    /// List the names of containers, or look one up as a container would see it
    Dns {
        /// The name to look up
        #[arg(requires = "client")]
        name: Option<String>,
        /// The container that asks: a name, the beginning of its id, or its address
        #[arg(long = "as", value_name = "CONTAINER", requires = "name")]
        client: Option<String>,
        /// The type of records to look up
        #[arg(long = "type", value_name = "TYPE", default_value = "A")]
        kind: String,
        /// The engine's directory of network files, if the agent does not serve it
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        #[command(flatten)]
        output: Output,
    },
    /// Print events of the eBPF programs until interrupted
    Monitor {
        /// Events to print
        #[arg(long, value_enum, default_value_t = Show::Flows)]
        show: Show,
        #[command(flatten)]
        output: Output,
    },
    /// Follow changes of the host and expire flows; commands start the agent when needed
    Agent {
        /// Log on standard error instead of the file beside the state
        #[arg(long)]
        foreground: bool,
        /// Wait until the agent is killed, and take its place; ends when there are no names to answer
        #[arg(long, conflicts_with = "foreground")]
        standby: bool,
    },
    /// Get addresses for containers by DHCP, and extend their leases; setup starts it when needed
    DhcpProxy(dhcp_proxy::Options),
    /// Load the programs now and keep them, so that the first container starts sooner
    Preload,
    /// Remove expired flows, and records and pins of containers and hosts that are gone
    Gc {
        /// Also remove programs that stay loaded without a container
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Put netpath in the place of an engine's network programs, with systemd units
    Install {
        engine: Engine,
        #[command(flatten)]
        place: Place,
    },
    /// Remove what install has put there
    Uninstall {
        engine: Engine,
        #[command(flatten)]
        place: Place,
    },
    /// Show the features of this host, the datapath that it gets, and problems
    Doctor {
        #[command(flatten)]
        output: Output,
    },
}

#[derive(clap::Args)]
struct Output {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
struct Place {
    /// Work on the file system in this directory, such as that of an image
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// Print what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Engine {
    Podman,
}

#[derive(Clone, Copy, ValueEnum)]
enum Show {
    /// Dropped packets
    Drops,
    /// Dropped packets and new flows
    Flows,
    /// All events
    All,
}

impl Place {
    fn carry_out(&self, changes: Vec<install::Change>) -> Result<Vec<install::Change>, Error> {
        if !self.dry_run {
            install::carry_out(&changes)?;
        }
        Ok(changes)
    }
}

/// Runs one verb. `args` begins with the program's name.
pub fn run(args: Vec<OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let result = Host::here().and_then(|host| verb(args.verb, &host));
    match result {
        // A reader such as `head` may close the pipe early.
        Ok((text, code)) => match std::io::stdout().lock().write_all(text.as_bytes()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => fail(&Error::new("cannot print").because(e)),
            _ => code,
        },
        Err(e) => fail(&e),
    }
}

fn fail(e: &Error) -> ExitCode {
    eprintln!("{e}");
    if let Some(next) = e.next_step() {
        eprintln!("    next: {next}");
    }
    ExitCode::FAILURE
}

fn verb(verb: Verb, host: &Host) -> Result<(String, ExitCode), Error> {
    let mut code = ExitCode::SUCCESS;
    let text = match verb {
        Verb::Podman => return Err(Error::new("netpath podman must be the first argument")),
        Verb::Status { output } => {
            let status = status::status(host)?;
            if output.json { print::json(&status)? } else { print::status(&status) }
        }
        Verb::Flows { output } => {
            let flows = promotion::flows(host)?;
            match (output.json, flows) {
                (true, flows) => print::json_list("flows", &flows.unwrap_or_default())?,
                (false, None) => "no flows: no datapath serves containers of this host\n".into(),
                (false, Some(flows)) => print::flows(&flows),
            }
        }
        Verb::Ports { output } => {
            let ports = ports::ports(host)?;
            if output.json { print::json_list("ports", &ports)? } else { print::ports(&ports) }
        }
        Verb::Dns { name, client, kind, dir, output } => match name.zip(client) {
            Some((name, client)) => {
                let told = names::ask(host, dir, &name, &kind, &client)?;
                if output.json { print::json(&told)? } else { print::told(&told) }
            }
            None => {
                let names = names::names(host, dir)?;
                if output.json { print::json(&names)? } else { print::names(&names) }
            }
        },
        Verb::Monitor { show, output } => {
            let level = match show {
                Show::Drops => Level::Drops,
                Show::Flows => Level::Flows,
                Show::All => Level::All,
            };
            monitor::run(host, level, output.json)?;
            String::new()
        }
        Verb::Agent { standby: true, .. } => {
            crate::agent::standby::run()?;
            String::new()
        }
        Verb::Agent { foreground, .. } => {
            crate::agent::run(foreground)?;
            String::new()
        }
        Verb::DhcpProxy(options) => {
            dhcp_proxy::run(&options)?;
            String::new()
        }
        Verb::Preload => {
            let word = std::env::var("NETPATH_DATAPATH").unwrap_or_default();
            print::preload(&preload::preload(ops::wish(&word)?.unwrap_or_default())?)
        }
        Verb::Gc { all, output } => {
            let removed = gc::gc(all)?;
            if output.json { print::gc_json(&removed)? } else { print::gc(&removed) }
        }
        Verb::Install { engine: Engine::Podman, place } => {
            let own = std::env::current_exe().map_err(|e| Error::new("cannot find netpath's own path").because(e))?;
            let changes = install::install(&Root::new(&place.root), &own)?;
            print::installed(&place.carry_out(changes)?, place.dry_run)
        }
        Verb::Uninstall { engine: Engine::Podman, place } => {
            let changes = install::uninstall(&Root::new(&place.root))?;
            print::uninstalled(&place.carry_out(changes)?, place.dry_run)
        }
        Verb::Doctor { output } => {
            let report = doctor::examine(host)?;
            if !report.findings.is_empty() {
                code = ExitCode::FAILURE;
            }
            if output.json { print::json(&report)? } else { print::doctor(&report) }
        }
    };
    Ok((text, code))
}
