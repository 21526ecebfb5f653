//! Podman's face: netavark's command line and JSON (netavark 2.1).
//!
//! Podman reads the first JSON value on stdout after the process has ended: a status on success, else one line with only
//! the key `error`. It writes the whole document to stdin first, and hangs if the process ends before it has read that. So
//! stdin is read completely before anything can fail.

mod args;
mod create;
mod json_reader;
mod logs;
mod network;
mod options;
mod plugin;
mod request;
mod status;
mod wire;

use crate::agent::dhcp_proxy;
use crate::dns::aardvark::Aardvark;
use crate::driver::plugin::{find, run as run_plugin};
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
    let closing = parsed.verb.is_brief().then(crate::netlink::close_later);
    let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| answer(parsed, stdin)));
    let answer = answer.unwrap_or_else(|_| Err(Error::new("netpath has a bug").because("it panicked; see stderr")));
    let (line, code) = match answer {
        Ok(line) => (line, ExitCode::SUCCESS),
        Err(e) => (format!("{}\n", serde_json::json!({ "error": in_one_line(&e) })), ExitCode::FAILURE),
    };
    // The caller may have closed stdout.
    let _ = std::io::stdout().write_all(line.as_bytes());
    drop(closing);
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
            let document = args.document(stdin, "network options")?;
            let choice = args.choice()?;
            let names = names(&args, "setup")?;
            let attach = request::attach(&document, &args.plugin_directory).map_err(|e| {
                Error::new("failed to load network options").because(format!("{e}; nothing was changed"))
            })?;
            let request::Attach { container, endpoints, dns_servers } = attach;
            let attached =
                ops::setup(ops::Attach { container, netns: netns.clone(), endpoints, choice, names: Box::new(names) })?;
            status::of(&attached, &dns_servers)
        }
        Verb::Teardown { netns } => {
            let document = args.document(stdin, "network options")?;
            let names = names(&args, "teardown")?;
            let detach = request::detach(&document, &args.plugin_directory)
                .map_err(|e| Error::new("failed to load network options").because(e))?;
            ops::teardown(ops::Detach {
                container: detach.container,
                netns: netns.clone(),
                leaving: detach.leaving,
                endpoints: detach.endpoints,
                config: args.config.clone().unwrap_or_default(),
                names: Box::new(names),
            })?;
            Ok(String::new())
        }
        Verb::Update { network, network_dns_servers } => {
            let servers = args::servers(network_dns_servers)?;
            let updated = names(&args, "update")?.update(network, &servers);
            updated.map_err(|e| e.within("unable to modify network dns servers"))?;
            Ok(String::new())
        }
        Verb::Version => Ok(args::version()),
        Verb::FirewallReload => {
            ops::reconcile()?;
            // Target and text are netavark's.
            tracing::info!(target: "netpath::commands::firewall_reload", "Successfully reloaded firewall rules");
            Ok(String::new())
        }
        Verb::Create => {
            let document = args.document(stdin, "network create")?;
            let host = create::Host { links: ops::link_names().ok(), random: ops::random()? };
            create::complete(&document, &host, |driver, network| {
                let none = || format!("plugin for driver {driver:?} not found in plugin directories");
                let program = find(&args.plugin_directory, driver).ok_or_else(none)?;
                let printed = run_plugin(&program, &["create".as_ref()], &network.to_string());
                let printed = printed.map_err(|e| in_one_line(&e))?;
                serde_json::from_str(&printed).map_err(|e| format!("plugin {driver:?} printed no network: {e}"))
            })
            .map_err(Error::new)
        }
        Verb::DhcpProxy(options) => dhcp_proxy::run(options).map(|()| String::new()),
        Verb::FirewalldReload => ops::follow_firewalld().map(|()| String::new()),
    }
}

fn names(args: &Args, verb: &str) -> Result<Aardvark> {
    let config = args
        .config
        .as_deref()
        .ok_or_else(|| Error::new(format!("--config not specified but required for netavark {verb}")))?;
    let binary = args.aardvark_binary.as_deref().unwrap_or(Path::new(""));
    Ok(Aardvark::new(config, binary, args::dns_port()?, args.rootless))
}
