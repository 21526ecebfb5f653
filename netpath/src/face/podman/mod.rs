//! Podman's face: netavark's command line and JSON (netavark 2.1).
//!
//! Podman reads the first JSON value on stdout after the process has ended: a status on success, else one line with only
//! the key `error`. It writes the whole document to stdin first, and hangs if the process ends before it has read that. So
//! stdin is read completely before anything can fail.

mod args;
mod json_reader;
mod logs;
mod network;
mod options;
mod request;
mod status;
mod wire;

use crate::dns::aardvark::Aardvark;
use crate::model::error::{Error, Result};
use crate::ops;
use args::{Args, Verb};
use clap::Parser;
use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;

/// Serves one call by Podman. `args` begins with the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let stdin = if args::takes_document(&args) { read_stdin() } else { Ok(String::new()) };
    let parsed = match Args::try_parse_from(&args) {
        Ok(parsed) => parsed,
        Err(e) => e.exit(),
    };
    logs::init();
    let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| answer(parsed, stdin)));
    let answer = answer.unwrap_or_else(|_| Err(Error::new("netpath has a bug").because("it panicked; see stderr")));
    let (line, code) = match answer {
        Ok(line) => (line, ExitCode::SUCCESS),
        Err(e) => (format!("{}\n", serde_json::json!({ "error": in_one_line(&e) })), ExitCode::FAILURE),
    };
    // The caller may have closed stdout.
    let _ = std::io::stdout().write_all(line.as_bytes());
    code
}

fn in_one_line(e: &Error) -> String {
    match e.next_step() {
        Some(next) => format!("{e} (next: {next})"),
        None => e.to_string(),
    }
}

fn read_stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|e| Error::new("cannot read standard input").because(e))?;
    String::from_utf8(bytes).map_err(|e| Error::new("cannot read standard input").because(e))
}

/// The text for stdout.
fn answer(args: Args, stdin: Result<String>) -> Result<String> {
    match &args.verb {
        Verb::Setup { netns } => {
            let document = args.document(stdin)?;
            let choice = args.choice()?;
            let names = names(&args, "setup")?;
            let attach = request::attach(&document)
                .map_err(|e| Error::new("cannot read setup input").because(format!("{e}; nothing was changed")))?;
            let request::Attach { container, endpoints, dns_servers } = attach;
            let attached = ops::setup(ops::Attach { container, netns: netns.clone(), endpoints, choice, names })?;
            status::of(&attached, &dns_servers)
        }
        Verb::Teardown { netns } => {
            let document = args.document(stdin)?;
            let names = names(&args, "teardown")?;
            let detach = request::detach(&document).map_err(|e| Error::new("cannot read teardown input").because(e))?;
            ops::teardown(ops::Detach {
                container: detach.container,
                netns: netns.clone(),
                leaving: detach.leaving,
                endpoints: detach.endpoints,
                names,
            })?;
            Ok(String::new())
        }
        Verb::Update { network, network_dns_servers } => {
            let servers = args::servers(network_dns_servers)?;
            names(&args, "update")?.update(network, &servers)?;
            Ok(String::new())
        }
        Verb::Version => Ok(args::version()),
        Verb::FirewallReload => ops::reconcile().map(|()| String::new()),
        Verb::Create => Err(unsupported("create", "create networks with a netavark that supports it")),
        Verb::DhcpProxy => Err(unsupported("dhcp-proxy", "use networks with host-local IPAM")),
        Verb::FirewalldReload => {
            Err(unsupported("firewalld-reload", "run firewall-reload after firewalld has reloaded"))
        }
    }
}

fn unsupported(verb: &str, next: &str) -> Error {
    Error::new(format!("netavark {verb}")).because("this version of netpath does not support it").next(next)
}

fn names(args: &Args, verb: &str) -> Result<Aardvark> {
    let config = args
        .config
        .as_deref()
        .ok_or_else(|| Error::new(format!("--config not specified but required for netavark {verb}")))?;
    let binary = args.aardvark_binary.as_deref().unwrap_or(Path::new(""));
    Ok(Aardvark::new(config, binary, args::dns_port()?, args.rootless))
}
