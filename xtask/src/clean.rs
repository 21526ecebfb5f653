//! Removes what tests and demos that were killed have left: only what carries our names and whose maker is dead.

use anyhow::Result;
use std::path::Path;
use std::process::ExitCode;

pub fn run() -> Result<ExitCode> {
    let mut removed = 0;
    for entry in std::fs::read_dir(std::env::temp_dir())?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_leftover(&name) {
            std::fs::remove_dir_all(entry.path())?;
            println!("removed {}", entry.path().display());
            removed += 1;
        }
    }
    println!("{}", if removed == 0 { "nothing was left over" } else { "clean" });
    Ok(ExitCode::SUCCESS)
}

/// `netpath-<room>-<pid>` of a process that is gone.
fn is_leftover(name: &str) -> bool {
    let Some((room, pid)) = name.strip_prefix("netpath-").and_then(|r| r.rsplit_once('-')) else { return false };
    let maker: Option<u32> = pid.parse().ok();
    room == "xtask" && maker.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_living_process_made_is_no_leftover() {
        assert!(!is_leftover(&format!("netpath-xtask-{}", std::process::id())));
        assert!(is_leftover("netpath-xtask-4194305"));
        assert!(!is_leftover("netpath-4194305"));
        assert!(!is_leftover("somebody-else-4194305"));
    }
}
