//! Logging to stderr. Podman sets `RUST_LOG=netavark=<its level>`; the level applies to netpath.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

pub(super) fn init() {
    let rust_log = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = EnvFilter::builder().parse_lossy(directives(&rust_log));
    // Fails only if a subscriber exists already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .without_time()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .try_init();
}

fn directives(rust_log: &str) -> String {
    if rust_log.trim().is_empty() {
        return "warn".to_owned();
    }
    let directives = rust_log.split(',').map(|d| match d.trim().strip_prefix("netavark") {
        Some(rest) => format!("netpath{rest}"),
        None => d.trim().to_owned(),
    });
    directives.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::directives;

    #[test]
    fn netavarks_log_level_applies_to_netpath() {
        assert_eq!("netpath=debug", directives("netavark=debug"));
        assert_eq!("info,netpath::ops=trace", directives("info,netavark::ops=trace"));
        assert_eq!("warn", directives(""));
    }
}
