//! A real rootless Podman of an ordinary user, with slirp4netns: inside its network namespace netpath serves by nftables, without
//! an error or a warning. (Podman before 5 has no pasta for bridge networks; a newer one takes it by default.)

use anyhow::{Context, Result, ensure};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use support::need;
use support::netavark::{binary, write_program};
use support::podman::{Backend, Machine, finish};

const SCRIPT: &str = include_str!("../support/podman/rootless.sh");

#[test]
fn an_ordinary_user_publishes_resolves_names_and_reaches_the_outside() -> Result<()> {
    need!(Machine::need(Backend::Netpath(None)), need::tun(), user_namespaces());
    need!(need::program("setpriv"), need::program("nft"));
    need!(need::program("slirp4netns").or_else(|missing| need::program("pasta").map_err(|_| missing)));
    let dir = std::env::temp_dir().join(format!("netpath-engine-rootless-{}", std::process::id()));
    std::fs::create_dir(&dir)?;
    let outcome = served(&dir);
    std::fs::remove_dir_all(&dir)?;
    outcome
}

/// # Errors
/// This kernel forbids an ordinary user to make namespaces.
fn user_namespaces() -> need::Need {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
    command.args(["unshare", "--user", "--map-root-user", "--net", "true"]);
    let made = command.output().is_ok_and(|out| out.status.success());
    if made { Ok(()) } else { Err("user namespaces of an ordinary user".to_owned()) }
}

fn served(dir: &std::path::Path) -> Result<()> {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    let (base, ours) = (dir.join("base"), dir.join("netpath"));
    std::fs::create_dir(&base)?;
    write_program(&ours, &std::fs::read(binary()?)?)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", SCRIPT]);
    command.env("BASE", &base).env("OURS", &ours);
    let out = finish(command, None).context("rootless.sh")?;
    let lines = [
        "ERRORS ",
        "PUBLISHED a page of the container",
        "BY NAME a page of the container",
        "OUTWARD a page outside",
        "TABLES table inet netpath table inet netpath_hold ",
        "LEFT ",
    ];
    ensure!(out.out.lines().eq(lines), "expected {lines:#?}\nfound {}\n{}", out.out, out.err);
    Ok(())
}
