//! Faults of real hosts: killed processes, taken ports, names in use.

use super::*;
use anyhow::ensure;
use support::podman::image::PAGE;

fn pid_of(m: &Machine, field: &str, name: &str) -> Result<String> {
    m.podman(&["inspect", "--format", &format!("{{{{.State.{field}}}}}"), name])
}

pub(crate) fn a_killed_container_is_removed_and_replaced(m: &Machine) -> Result<()> {
    run_httpd(m, "web", &["-p", "8080:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    let pid = pid_of(m, "Pid", "web")?;
    m.run_on_host("sh", &["-c", &format!("kill -KILL {pid}")])?;
    m.podman(&["rm", "-f", "-t", "0", "web"])?;
    m.nothing_left()?;
    run_httpd(m, "web", &["-p", "8080:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    assert_eq!(PAGE, page_inside(m, LOCALHOST, 8080)?);
    Ok(())
}

pub(crate) fn a_container_is_removed_after_its_conmon_was_killed(m: &Machine) -> Result<()> {
    run_httpd(m, "web", &["-p", "8080:80"])?;
    run_httpd(m, "bystander", &["-p", "8081:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    for field in ["ConmonPid", "Pid"] {
        let pid = pid_of(m, field, "web")?;
        m.run_on_host("sh", &["-c", &format!("kill -KILL {pid}")])?;
    }
    m.podman(&["rm", "-f", "-t", "0", "web"])?;
    m.client(|| reach::silent(SocketAddr::new(HOST, 8080)))??;
    assert_eq!(PAGE, page_outside(m, HOST, 8081)?);
    run_httpd(m, "web", &["-p", "8080:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    assert_eq!(PAGE, page_inside(m, LOCALHOST, 8080)?);
    check_rung(m)
}

pub(crate) fn a_taken_host_port_is_refused_without_harm_to_others(m: &Machine) -> Result<()> {
    run_httpd(m, "web", &["-p", "8080:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    let second = m.try_podman(&["run", "-d", "--name", "rival", "-p", "8080:80", "bb", "sleep", "100"])?;
    assert_ne!(Some(0), second.code);
    // netpath is called before Podman binds the port, and knows its owner.
    let why = if m.backend() == Backend::Netavark { "address already in use" } else { "container web" };
    ensure!(second.err.contains("8080") && second.err.contains(why), "{}", second.err);
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    m.podman(&["rm", "-f", "rival"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    // Netavark 1.4 removes the rules that both containers share.
    if m.backend() != Backend::Netavark {
        assert_eq!(PAGE, page_inside(m, LOCALHOST, 8080)?);
    }
    check_rung(m)
}

pub(crate) fn an_error_of_setup_names_its_cause_and_leaves_nothing(m: &Machine) -> Result<()> {
    // A link of other software has the bridge's name.
    m.podman(&["network", "create", "--subnet", "10.89.5.0/24", "clash"])?;
    let format = "{{.NetworkInterface}}";
    let bridge = m.podman(&["network", "inspect", "--format", format, "clash"])?;
    m.run_on_host("ip", &["link", "add", &bridge, "type", "veth", "peer", "name", "foreign"])?;
    let failed = m.try_podman(&["run", "-d", "--name", "web", "--network", "clash", "bb", "sleep", "100"])?;
    assert_ne!(Some(0), failed.code);
    ensure!(failed.err.contains(&bridge), "the error does not name the link: {}", failed.err);
    ensure!(!failed.err.contains("EOF"), "no JSON reached podman: {}", failed.err);
    println!("{}", failed.err);
    m.podman(&["rm", "-f", "web"])?;
    m.run_on_host("ip", &["link", "del", &bridge])?;
    m.nothing_left()?;
    run_httpd(m, "web", &["--network", "clash", "-p", "8080:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    Ok(())
}

pub(crate) fn a_backend_killed_during_setup_is_repaired_by_the_next_container(m: &Machine) -> Result<()> {
    // Podman does not call teardown after a failed setup, so objects that netavark has created stay for ever.
    if m.backend() == Backend::Netavark {
        return Ok(());
    }
    let mut killed = 0;
    for round in 0..40_u64 {
        let run =
            m.engine(&["run", "-d", "--name", "web", "-p", "8080:80", "bb", "httpd", "-f", "-p", "80", "-h", "/www"]);
        let podman = std::thread::spawn(|| support::podman::finish(run, None));
        let helper = m.helper("netavark");
        // A short setup may be missed.
        while !podman.is_finished() {
            if kill_setup(&helper, Duration::from_millis(round % 12 * 12))? {
                killed += 1;
                break;
            }
        }
        let output = podman.join().map_err(|_| anyhow::anyhow!("podman run panicked"))??;
        if output.code == Some(0) {
            assert_eq!(PAGE, page_outside(m, HOST, 8080)?, "round {round}");
        }
        m.podman(&["rm", "-f", "-t", "0", "web"])?;
        if round >= 11 && killed >= 6 {
            break;
        }
    }
    ensure!(killed > 0, "not one setup was killed in time");
    run_httpd(m, "web", &["-p", "8080:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    assert_eq!(PAGE, page_inside(m, LOCALHOST, 8080)?);
    check_rung(m)
}

/// Kills the machine's `netavark … setup` some time after it was seen; false = there was none, or it had ended.
fn kill_setup(helper: &str, after: Duration) -> Result<bool> {
    let Some(seen) = setup_of(helper) else { return Ok(false) };
    std::thread::sleep(after);
    // Checked again: the kernel may have given the pid to another process.
    if setup_of(helper) != Some(seen) {
        return Ok(false);
    }
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(seen), nix::sys::signal::Signal::SIGKILL) {
        Err(nix::errno::Errno::ESRCH) => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

fn setup_of(helper: &str) -> Option<i32> {
    std::fs::read_dir("/proc").into_iter().flatten().flatten().find_map(|process| {
        let command = std::fs::read(process.path().join("cmdline")).ok()?;
        let command = String::from_utf8_lossy(&command).into_owned();
        let ours = command.starts_with(helper) && command.split('\0').any(|word| word == "setup");
        ours.then(|| process.file_name().to_string_lossy().parse().ok()).flatten()
    })
}
