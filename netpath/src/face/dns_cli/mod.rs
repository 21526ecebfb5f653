//! The command line of aardvark-dns 2.1, for engines and for netavark: `aardvark-dns --config DIR --port N run`.

mod daemon;
mod syslog;

use crate::dns::Settings;
use crate::dns::server::{Led, Place};
use crate::model::error::Error;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// The version of aardvark-dns whose contract this is. Podman prints what `--version` says.
const CONTRACT: &str = "2.1.0";

/// A DNS server for containers
#[derive(Parser)]
#[command(name = "aardvark-dns", version = CONTRACT, disable_help_subcommand = false)]
struct Args {
    /// Directory of the network files
    #[arg(short, long)]
    config: Option<PathBuf>,
    /// Port to listen on
    #[arg(short, long, default_value_t = 5533)]
    port: u16,
    /// Domain whose names are never forwarded
    #[arg(short, long, default_value = ".dns.podman")]
    filter_search_domain: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Serve in the background; returns when the server is ready
    Run,
    /// Print the version as JSON
    Version,
}

/// Serves one call. `args` begins with the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args = match Args::try_parse_from(args) {
        Ok(args) => args,
        Err(e) => e.exit(),
    };
    match args.verb {
        Verb::Version => {
            print!("{}", super::version_json(CONTRACT, None));
            ExitCode::SUCCESS
        }
        Verb::Run => {
            let Some(dir) = args.config else {
                return fail(
                    &Error::new("cannot serve names").because("--config is missing").next("name the directory"),
                );
            };
            let forwards = std::env::var_os("AARDVARK_NO_PROXY").is_none();
            let settings = Settings::new(&args.filter_search_domain, forwards);
            daemon::run(Place { dir, port: args.port, settings, led: Led::default() })
        }
    }
}

fn fail(e: &Error) -> ExitCode {
    eprintln!("{e}");
    ExitCode::FAILURE
}
