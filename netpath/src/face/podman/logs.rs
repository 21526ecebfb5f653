//! Logging to stderr, as netavark: `[WARN  netavark::ops] …`. Podman sets `RUST_LOG=netavark=<its level>`; the level applies to
//! netpath.

use std::fmt;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

pub(super) fn init() {
    let rust_log = std::env::var("RUST_LOG").unwrap_or_default();
    let filter = EnvFilter::builder().parse_lossy(directives(&rust_log));
    // Fails only if a subscriber exists already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .event_format(Lines)
        .with_writer(std::io::stderr)
        .try_init();
}

struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let (level, target) = (event.metadata().level(), event.metadata().target());
        match target.strip_prefix("netpath") {
            Some(room) => write!(to, "[{level:<5} netavark{room}] ")?,
            None => write!(to, "[{level:<5} {target}] ")?,
        }
        context.format_fields(to.by_ref(), event)?;
        writeln!(to)
    }
}

fn directives(rust_log: &str) -> String {
    if rust_log.trim().is_empty() {
        return "error".to_owned();
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
        assert_eq!("error", directives(""), "netavark's default");
    }
}
