//! Logs go to stderr. Podman sets `RUST_LOG=netavark=<its level>`; that means us.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;

pub(super) fn begin() {
    let asked = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = EnvFilter::builder().parse_lossy(ours(&asked));
    // Fails only when there is one already, which then serves as well.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .without_time()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .try_init();
}

fn ours(asked: &str) -> String {
    if asked.trim().is_empty() {
        return "warn".to_owned();
    }
    let directives = asked.split(',').map(|d| match d.trim().strip_prefix("netavark") {
        Some(rest) => format!("netpath{rest}"),
        None => d.trim().to_owned(),
    });
    directives.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::ours;

    #[test]
    fn the_engines_level_applies_to_us() {
        assert_eq!("netpath=debug", ours("netavark=debug"));
        assert_eq!("info,netpath::ops=trace", ours("info,netavark::ops=trace"));
        assert_eq!("warn", ours(""));
    }
}
