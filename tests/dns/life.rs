//! Start, reload, end, and being killed.

use crate::rig::{FRONT, PORT, Rig};
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::dns::{Type, query};
use support::host::{SOON, wait_for};
use support::need;
use support::netavark::binary;
use support::topology::HOST4;

#[test]
fn versions_are_what_engines_read() -> Result<()> {
    need!(need::netpath());
    let say = |words: &[&str]| -> Result<String> {
        let out = Command::new(binary()?).arg0("/usr/libexec/podman/aardvark-dns").args(words).output()?;
        ensure!(out.status.success(), "{words:?}: {}", String::from_utf8_lossy(&out.stderr));
        Ok(String::from_utf8(out.stdout)?)
    };
    ensure!(say(&["--version"])? == "aardvark-dns 2.1.0\n", "{}", say(&["--version"])?);
    let version: serde_json::Value = serde_json::from_str(&say(&["version"])?)?;
    ensure!(
        version["version"] == "2.1.0" && version["commit"].is_string() && version["target"].is_string(),
        "{version}"
    );
    ensure!(say(&["help"])?.contains("--filter-search-domain"), "{}", say(&["help"])?);
    Ok(())
}

#[test]
fn it_starts_in_the_background_reloads_and_ends_with_the_last_network() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = Rig::serving(FRONT)?;
    let pid = rig.pid()?;
    ensure!(rig.is_running(pid), "no process {pid}");
    // It tells its parent before it closes the pipe to it.
    wait_for("no descriptor of the caller", SOON, || {
        let open: Vec<_> = std::fs::read_dir(format!("/proc/{pid}/fd"))
            .ok()?
            .flatten()
            .filter_map(|f| std::fs::read_link(f.path()).ok())
            .map(|p| p.display().to_string())
            .collect();
        let is_null = |p: &&String| *p == "/dev/null";
        (open.iter().filter(is_null).count() == 3 && !open.iter().any(|p| p.starts_with("pipe:"))).then_some(())
    })?;
    rig.write("front", &FRONT.replace("10.89.7.3", "10.89.7.33"))?;
    rig.reload_until("web.", "10.89.7.33")?;
    // The address goes, another one comes.
    rig.write("front", &FRONT.replace("192.0.2.1,", "192.0.2.10,"))?;
    rig.signal(Signal::SIGHUP)?;
    let mut client = rig.client();
    client.server.set_ip(support::topology::HOST4_SECOND);
    wait_for("the other address to be served", SOON, || client.addresses("web.", Type::A).ok())?;
    wait_for("the first address to be free", SOON, || rig.topology.host.run(|| UdpSocket::bind((HOST4, PORT)).ok()))?;
    ensure!(rig.pid()? == pid, "another process");
    std::fs::remove_file(rig.dir.join("front"))?;
    rig.signal(Signal::SIGHUP)?;
    wait_for("the end of the server", SOON, || (!rig.is_running(pid)).then_some(()))?;
    ensure!(!rig.dir.join("aardvark.pid").exists(), "the pid file stays");
    Ok(())
}

#[test]
fn an_address_in_use_is_named_at_the_start_and_taken_later_after_a_reload() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = Rig::new()?;
    rig.write("front", FRONT)?;
    let other = rig.topology.host.run(|| UdpSocket::bind((HOST4, PORT)))?;
    let out = rig.try_start(&[])?;
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    ensure!(!out.status.success() && said.contains("failed to bind udp listener on 192.0.2.1:53"), "{said}");
    ensure!(said.contains("Address already in use"), "{said}");
    ensure!(!rig.dir.join("aardvark.pid").exists(), "a pid file");
    // On another address it starts, and goes on when the first one cannot be had.
    rig.write("front", &FRONT.replace("192.0.2.1,", "192.0.2.10,"))?;
    rig.start(&[])?;
    rig.write("front", &FRONT.replace("192.0.2.1,", "192.0.2.1,192.0.2.10,"))?;
    rig.signal(Signal::SIGHUP)?;
    drop(other);
    wait_for("the address to be taken", SOON, || {
        let mut client = rig.client();
        client.limit = Duration::from_millis(200);
        client.addresses("web.", Type::A).ok()
    })?;
    Ok(())
}

#[test]
fn killed_and_started_again_it_answers_the_same() -> Result<()> {
    need!(need::root(), need::netpath());
    let rig = Rig::serving(FRONT)?;
    let before = rig.client().addresses("pool.", Type::A)?;
    let pid = rig.pid()?;
    rig.signal(Signal::SIGKILL)?;
    wait_for("its end", SOON, || (!rig.is_running(pid)).then_some(()))?;
    let begun = Instant::now();
    rig.start(&[])?;
    let took = begun.elapsed();
    ensure!(rig.client().addresses("pool.", Type::A)? == before, "another answer");
    ensure!(took < Duration::from_secs(1) * support::host::patience(), "{took:?}");
    need::say(&format!("a start takes {took:.1?}"));
    Ok(())
}

#[test]
fn no_query_is_lost_while_files_are_reloaded() -> Result<()> {
    need!(need::root(), need::netpath());
    let many: String = (0..2000).map(|n| format!("{n:012} 10.90.{}.{}  other{n}\n", n / 250, n % 250)).collect();
    let rig = Rig::serving(FRONT)?;
    let ends = AtomicBool::new(false);
    let (answered, reloads) = std::thread::scope(|scope| -> Result<(u64, u64)> {
        let asker = scope.spawn(|| -> Result<u64> {
            let (client, mut answered) = (rig.client(), 0);
            client.netns.run(|| -> Result<u64> {
                let socket = UdpSocket::bind((client.address, 0))?;
                socket.set_read_timeout(Some(Duration::from_secs(2)))?;
                socket.connect(client.server)?;
                let mut answer = [0; 2048];
                // Also a TCP connection from before all reloads.
                let mut stream = client.connect()?;
                while !ends.load(Ordering::Relaxed) {
                    let sent = query("web.", Type::A)?.to_vec()?;
                    socket.send(&sent)?;
                    let length = support::traffic::again(|| socket.recv(&mut answer))?;
                    ensure!(answer[..2] == sent[..2] && length > sent.len(), "query {answered}: another answer");
                    if answered % 10 == 0 {
                        std::io::Write::write_all(&mut stream, &support::dns::framed(&sent))?;
                        ensure!(support::dns::read_framed(&mut stream)?[..2] == sent[..2], "TCP");
                    }
                    answered += 1;
                }
                Ok(answered)
            })
        });
        let begun = Instant::now();
        let mut reloads = 0;
        while begun.elapsed() < Duration::from_secs(2) {
            rig.write("front", &format!("{FRONT}{}", if reloads % 2 == 0 { &many } else { "" }))?;
            rig.signal(Signal::SIGHUP)?;
            reloads += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        ends.store(true, Ordering::Relaxed);
        let answered = asker.join().map_err(|_| anyhow::anyhow!("the client has panicked"))??;
        Ok((answered, reloads))
    })?;
    need::say(&format!("{answered} queries answered during {reloads} reloads"));
    ensure!(answered > 1000, "{answered}");
    Ok(())
}
