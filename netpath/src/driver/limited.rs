//! Runs another program that must end in time.

use crate::state::pidfd;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// A status block has some hundred bytes.
const LONGEST: usize = 1 << 20;
/// Between two looks at a program on kernels that cannot report its end.
const LOOK: Duration = Duration::from_millis(10);

/// Runs the program with `input` on its standard input, in a process group of its own, and returns what it printed. Its output is not
/// waited for once it has ended: a process that it leaves behind may keep it open. `None`: it did not end within `limit`, and was killed
/// with its group.
///
/// # Errors
/// It cannot be run.
pub(super) fn run(command: &mut Command, input: &str, limit: Duration) -> io::Result<Option<(ExitStatus, String)>> {
    let deadline = Instant::now() + limit;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0).spawn()?;
    // Not before Linux 5.3.
    let end = pidfd(child.id()).ok().flatten();
    let (mut stdin, mut stdout) = (child.stdin.take(), child.stdout.take());
    stdin.iter().try_for_each(nonblocking)?;
    stdout.iter().try_for_each(nonblocking)?;
    let (mut input, mut printed) = (input.as_bytes(), Vec::new());
    loop {
        // Before its output is read, so that all of it is read.
        let status = child.try_wait()?;
        if stdout.as_mut().is_some_and(|from| !is_open(from, &mut printed)) {
            stdout = None;
        }
        if let Some(status) = status {
            return Ok(Some((status, String::from_utf8_lossy(&printed).into_owned())));
        }
        // Beside reading: a program that prints before it has read everything would wait for ever.
        stdin = stdin.filter(|to| is_unread(to, &mut input));
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            // It fails for a program that has just ended with its whole group.
            let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
            child.wait()?;
            return Ok(None);
        }
        let mut events = Vec::new();
        events.extend(end.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        events.extend(stdout.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLIN)));
        events.extend(stdin.as_ref().map(|fd| PollFd::new(fd.as_fd(), PollFlags::POLLOUT)));
        let wait = if end.is_some() { left } else { left.min(LOOK) };
        // Rounded up: the last wait must not become a busy loop.
        match poll(&mut events, PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Whether the program may print more. Appends what it has printed.
fn is_open(from: &mut ChildStdout, printed: &mut Vec<u8>) -> bool {
    let mut some = [0; 8192];
    loop {
        match from.read(&mut some) {
            Ok(0) => return false,
            Ok(n) => printed.extend_from_slice(&some[..n]),
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        }
        if printed.len() > LONGEST {
            return false;
        }
    }
}

/// Whether the program has not taken all of `input` yet. One that closes its standard input wants no more.
fn is_unread(mut to: &ChildStdin, input: &mut &[u8]) -> bool {
    while !input.is_empty() {
        match to.write(input) {
            Ok(n) => *input = &input[n..],
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return e.kind() == ErrorKind::WouldBlock,
        }
    }
    false
}

fn nonblocking(fd: &impl AsFd) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    Ok(fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map(drop)?)
}
