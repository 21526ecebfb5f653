//! Containers from start to removal.

use super::*;
use anyhow::ensure;
use support::podman::image::PAGE;

pub(crate) fn a_stopped_container_serves_again_after_start_and_restart(m: &Machine) -> Result<()> {
    run_httpd(m, "web", &["-p", "8080:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    m.podman(&["stop", "-t", "0", "web"])?;
    m.client(|| reach::silent(SocketAddr::new(HOST, 8080)))??;
    m.nothing_left().context("after stop")?;
    m.podman(&["start", "web"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    assert_eq!(PAGE, page_inside(m, LOCALHOST, 8080)?);
    m.podman(&["restart", "-t", "0", "web"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    assert_eq!(PAGE, page_inside(m, LOCALHOST, 8080)?);
    check_rung(m)
}

pub(crate) fn a_paused_container_goes_on_after_unpause(m: &Machine) -> Result<()> {
    // `podman pause` needs the freezer cgroup, which a machine without cgroups for containers lacks: the process is stopped by
    // a signal.
    run_httpd(m, "web", &["-p", "8080:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    let pid = m.podman(&["inspect", "--format", "{{.State.Pid}}", "web"])?;
    m.run_on_host("sh", &["-c", &format!("kill -STOP {pid}")])?;
    m.client(|| reach::silent(SocketAddr::new(HOST, 8080)))??;
    m.run_on_host("sh", &["-c", &format!("kill -CONT {pid}")])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    check_rung(m)
}

pub(crate) fn a_container_that_ends_by_itself_leaves_nothing(m: &Machine) -> Result<()> {
    // In the foreground podman removes it, in the background the cleanup process of conmon does.
    let address = m.podman(&["run", "--rm", "-p", "8080:80", "bb", "ip", "-4", "-o", "address", "show", "eth0"])?;
    ensure!(address.contains("10.88.0."), "{address}");
    m.nothing_left().context("after a container in the foreground")?;
    m.podman(&["run", "-d", "--rm", "--name", "short", "-p", "8080:80", "bb", "sleep", "1"])?;
    check_rung(m)?;
    reach::eventually(Duration::from_secs(10), || {
        let names = m.podman(&["ps", "-a", "--format", "{{.Names}}"])?;
        ensure!(names.is_empty(), "still there: {names}");
        Ok(())
    })?;
    m.nothing_left().context("after a container in the background")
}

pub(crate) fn a_pod_shares_one_network(m: &Machine) -> Result<()> {
    // Podman's pause image cannot be fetched here; any image that sleeps is enough.
    let infra = ["--infra-image", "localhost/bb", "--infra-command", "sleep 1000"];
    m.podman(&[&["pod", "create", "--name", "pair", "-p", "8080:80", "-p", "9000:9000"][..], &infra].concat())?;
    m.podman(&["run", "-d", "--pod", "pair", "--name", "web", "bb", "httpd", "-f", "-p", "80", "-h", "/www"])?;
    m.podman(&["run", "-d", "--pod", "pair", "--name", "peer", "bb", "peer", "9000"])?;
    logs_until(m, "peer", "serving")?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    assert_eq!(format!("pair:9000 sees {CLIENT}"), m.client(|| reach::tcp(SocketAddr::new(HOST, 9000)))??);
    assert_eq!(PAGE.trim_end(), page_from(m, "peer", "http://127.0.0.1/")?);
    check_rung(m)?;
    m.podman(&["pod", "stop", "-t", "0", "pair"])?;
    m.nothing_left().context("after pod stop")?;
    m.podman(&["pod", "start", "pair"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    m.podman(&["pod", "rm", "-f", "-t", "0", "pair"]).map(drop)
}

pub(crate) fn reload_keeps_a_container_reachable(m: &Machine) -> Result<()> {
    run_httpd(m, "web", &["-p", "8080:80"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    let before = m.podman(&["exec", "web", "ip", "-o", "address", "show", "eth0"])?;
    let address = m.address("web", "podman")?;
    m.podman(&["network", "reload", "web"])?;
    assert_eq!(address, m.address("web", "podman")?);
    let after = m.podman(&["exec", "web", "ip", "-o", "address", "show", "eth0"])?;
    let ip = |text: &str| text.split_whitespace().nth(3).map(str::to_owned);
    assert_eq!(ip(&before), ip(&after));
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    assert_eq!(PAGE, page_inside(m, LOCALHOST, 8080)?);
    check_rung(m)?;
    m.podman(&["network", "reload", "--all"])?;
    assert_eq!(PAGE, page_outside(m, HOST, 8080)?);
    Ok(())
}

pub(crate) fn many_containers_start_and_go_at_once(m: &Machine) -> Result<()> {
    const COUNT: u16 = 8;
    let names: Vec<String> = (0..COUNT).map(|i| format!("web{i}")).collect();
    let ports: Vec<String> = (0..COUNT).map(|i| format!("{}:80", 8100 + i)).collect();
    let start = names.iter().zip(&ports).map(|(name, port)| {
        m.engine(&["run", "-d", "--name", name, "-p", port, "bb", "httpd", "-f", "-p", "80", "-h", "/www"])
    });
    all_at_once(start.collect())?;
    for i in 0..COUNT {
        assert_eq!(PAGE, page_outside(m, HOST, 8100 + i)?);
        assert_eq!(PAGE, page_inside(m, LOCALHOST, 8100 + i)?);
    }
    m.try_podman(&["ps"])?;
    check_rung(m)?;
    all_at_once(names.iter().map(|name| m.engine(&["rm", "-f", "-t", "0", name])).collect())?;
    m.nothing_left()
}

fn all_at_once(commands: Vec<std::process::Command>) -> Result<()> {
    let run = |c| std::thread::spawn(|| support::podman::finish(c, None));
    let threads: Vec<_> = commands.into_iter().map(run).collect();
    for thread in threads {
        let output = thread.join().map_err(|_| anyhow::anyhow!("a command panicked"))??;
        ensure!(output.code == Some(0), "{}{}", output.out, output.err);
    }
    Ok(())
}

/// As with `ip netns exec` and services with private mounts: each command sees another bpffs, or none.
pub(crate) fn commands_in_mount_namespaces_of_their_own_share_the_programs(m: &Machine) -> Result<()> {
    // Mounts that Podman makes for a container propagate to all, as on a host with systemd.
    m.run_on_host("mount", &["--make-rshared", "/run"])?;
    let apart = |args: &[&str]| {
        let hidden = "umount /sys/fs/bpf 2>/dev/null; exec \"$@\"";
        let all = [&["--mount", "--propagation", "unchanged", "sh", "-c", hidden, "sh"][..], args].concat();
        m.run_on_host("unshare", &all)
    };
    for (name, port) in [("one", "8080:80"), ("two", "8081:80"), ("three", "8082:80")] {
        let httpd = ["bb", "httpd", "-f", "-p", "80", "-h", "/www"];
        apart(&[&["podman", "run", "-d", "--name", name, "-p", port][..], &httpd].concat())?;
    }
    for port in [8080, 8081, 8082] {
        assert_eq!(PAGE, page_outside(m, HOST, port)?);
    }
    if m.backend() == Backend::Netpath(None) {
        let netpath = support::netavark::binary()?.display().to_string();
        let status: serde_json::Value = serde_json::from_str(&apart(&[&netpath, "status", "--json"])?)?;
        let uplinks = |s: &serde_json::Value| {
            let hooks = s["hooks"].as_array().into_iter().flatten();
            hooks.filter(|h| h["program"] == "np_uplink_in" && h["interface"] == "eth0").count()
        };
        ensure!(status["endpoints"] == 3 && uplinks(&status) == 1, "{status}");
        let attached = m.host(|| {
            use aya::programs::{SchedClassifier, TcAttachType};
            SchedClassifier::query_tcx("eth0", TcAttachType::Ingress).map(|(_, programs)| programs.len())
        })?;
        ensure!(!matches!(attached, Ok(more) if more > 1), "{attached:?} programs at the uplink");
    }
    apart(&["podman", "rm", "-f", "-t", "0", "one"])?;
    m.podman(&["rm", "-f", "-t", "0", "two"])?;
    m.client(|| reach::silent(SocketAddr::new(HOST, 8080)))??;
    assert_eq!(PAGE, page_outside(m, HOST, 8082)?);
    apart(&["podman", "rm", "-f", "-t", "0", "three"])?;
    // A server of the host gets its port back.
    let server = m.host(|| std::net::TcpListener::bind(SocketAddr::new(HOST, 8082)))??;
    let client =
        m.client(|| std::net::TcpStream::connect_timeout(&SocketAddr::new(HOST, 8082), Duration::from_secs(3)))?;
    ensure!(client.is_ok(), "the port is dead after its container: {client:?}");
    drop(server);
    Ok(())
}
