//! The log of a server in the background: the system's log, as that of aardvark-dns. Without one, nothing is logged.

use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

const SOCKET: &str = "/dev/log";
/// The facility "user".
const USER: u8 = 1 << 3;

/// With the level in `RUST_LOG`, which is one word, or that of netavark's rule.
pub(super) fn init() {
    let wanted = std::env::var("RUST_LOG").unwrap_or_default();
    let level = wanted.rsplit(['=', ',']).next().and_then(|word| word.parse::<Level>().ok()).unwrap_or(Level::INFO);
    let filter = EnvFilter::new(format!("netpath={}", level.as_str().to_ascii_lowercase()));
    // Fails only if a subscriber exists already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_writer(Syslog)
        .try_init();
}

struct Syslog;

/// One line, which is sent when it is dropped.
struct Line {
    severity: u8,
    text: Vec<u8>,
}

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line { severity: 6, text: Vec::new() }
    }

    fn make_writer_for(&'a self, of: &Metadata<'_>) -> Line {
        let severity = match *of.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        Line { severity, text: Vec::new() }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let Ok(socket) = UnixDatagram::unbound() else { return };
        let mut line = format!("<{}>aardvark-dns[{}]: ", USER | self.severity, std::process::id()).into_bytes();
        line.extend_from_slice(self.text.trim_ascii_end());
        let _ = socket.set_nonblocking(true);
        let _ = socket.send_to(&line, SOCKET);
    }
}
